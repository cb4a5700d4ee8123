"""Answers for the steps of a reproduction, sampled in parts that a stop does not lose.

Each part is a file in the step's folder; what is there is not sampled again. Knows token ids and
the learner's engine, not what the answers are for.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.engine.client import Sample
from learning.training.encoding import encode_prompt
from learning.training.learner_engine import LearnerEngine, stage_engine
from learning.training.stage import Interrupted, Stage, write_json

PART = 48
"""Prompts of one part."""


@contextmanager
def serving(stage: Stage) -> Iterator[LearnerEngine]:
    """The learner's engine on the step's model, up and answering."""
    stage.progress(0.0, "starting the engine")
    with stage_engine(stage, "model") as engine:
        engine.wait()
        yield engine


def sampled(
    stage: Stage,
    engine: LearnerEngine,
    name: str,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    on_part: Callable[[float], None] = lambda share: None,
) -> list[list[Sample]]:
    """`n` answers to each prompt. Raises Interrupted between two parts once asked to stop."""
    found: list[list[Sample]] = []
    for start in range(0, len(prompts), PART):
        path = stage.folder / "parts" / f"{name}-{start}.json"
        here = prompts[start : start + PART]
        if not path.exists():
            answers = engine.generate(
                here, n=n, max_tokens=max_tokens, temperature=temperature, seed=seed + start * n
            )
            path.parent.mkdir(exist_ok=True)
            write_json(path, [[asdict(sample) for sample in several] for several in answers])
            leave_if_asked(stage)
        found += [[Sample(**one) for one in several] for several in json.loads(path.read_text())]
        on_part((start + len(here)) / len(prompts))
    return found


def leave_if_asked(stage: Stage) -> None:
    """Raise Interrupted once the step was told to stop."""
    if stage.stopping:
        raise Interrupted("stopped; the next start goes on")


def chat(text: str, shots: Sequence[tuple[str, str]] = ()) -> str:
    """A one-turn chat as snapshots hold it, after earlier turns that show how to answer."""
    turns = [turn for asked, said in shots for turn in (("user", asked), ("assistant", said))]
    messages = [{"role": role, "content": content} for role, content in (*turns, ("user", text))]
    return json.dumps(messages)


def encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], shots: Sequence[tuple[str, str]] = ()
) -> list[list[int]]:
    """Chats as token ids."""
    return [encode_prompt(chat(text, shots), tokenizer) for text in texts]


def text_of(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> str:
    """What an answer says."""
    return str(tokenizer.decode(sample.token_ids, skip_special_tokens=True))


def read_json(path: Path) -> Any:  # whatever JSON holds
    """One JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
