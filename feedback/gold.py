"""Gold tasks: ops know the right order, raters are measured by it, and nothing is trained on it.

A line of the file is JSON: `{"messages": [...]}` or `{"prompt": "..."}`, with `"outputs"` (4 to 9
texts, no personal data) and `"ranking"` (places in `outputs`, best first, inner lists are ties).
Pure: lines in, tasks out; labeling.py mixes them in among the others.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from core.errors import Unprocessable
from core.records import LabelingOutput, LabelingTask
from feedback.labeling import MIN_OUTPUTS
from feedback.schemas import MAX_OUTPUTS, Body, Message, Text

RUN = "gold"
Mode = Literal["training", "evaluation"]


class GoldLine(Body):
    """One line of the file."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)] | None = None
    prompt: Text | None = None
    outputs: Annotated[list[Text], Field(min_length=MIN_OUTPUTS, max_length=MAX_OUTPUTS)]
    ranking: list[list[int]]

    @model_validator(mode="after")
    def _complete(self) -> "GoldLine":
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("two outputs are the same")
        if sorted(p for tie in self.ranking for p in tie) != list(range(len(self.outputs))):
            raise ValueError("the ranking must name each output once, counted from 0")
        if len([tie for tie in self.ranking if tie]) < 2:
            raise ValueError("a ranking that ties everything measures nobody")
        return self


def gold_tasks(
    lines: Iterable[str], *, tenant: str, mode: Mode, name: Callable[[str], str], now: float
) -> list[LabelingTask]:
    """The tasks of a file; the same line is the same task. `name` is a keyed hash of the tenant.

    Raises Unprocessable, which names the first bad line.
    """
    tasks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            said = GoldLine.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise Unprocessable(f"line {number}: {first}") from None
        tasks.append(_task(said, tenant=tenant, mode=mode, name=name, now=now))
    return tasks


def _task(
    said: GoldLine, *, tenant: str, mode: Mode, name: Callable[[str], str], now: float
) -> LabelingTask:
    task_id = name(f"gold\x00{mode}\x00{said.model_dump_json()}")[:20]
    ids = [name(f"{task_id}\x00{place}")[:20] for place in range(len(said.outputs))]
    outputs = [
        LabelingOutput(output_id=own, text=text, policy="gold", finish_reason="stop")
        for own, text in zip(ids, said.outputs, strict=True)
    ]
    prompt = {"prompt": said.prompt or ""}
    return LabelingTask(
        id=task_id,
        tenant=tenant,
        mode=mode,
        run_id=RUN,
        user="",
        messages=[m.model_dump() for m in said.messages] if said.messages else prompt,
        outputs=tuple(sorted(outputs, key=lambda output: output.output_id)),
        created_at=now,
        wanted=1_000_000,  # everybody
        gold=tuple(tuple(ids[place] for place in tie) for tie in said.ranking if tie),
    )
