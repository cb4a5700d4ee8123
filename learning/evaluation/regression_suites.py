"""Regression suites: what a policy could do before it learned, as files of questions.

A suite is a JSONL file. Each line has a `prompt` (plain text that is continued) or `messages` (a
chat), and either `choices` with `answer`, the place of the right one, or `expected`, the right
answer or several, with `match`: `exact` (the default) or `contains`. One suite of our own is always
run. Knows files, no tokens and no model, so that a bad file is found where it is given;
learning/evaluation/regression_questions.py makes questions of items, regression_scoring.py asks
them, learning/gate/regressions.py compares.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import Unprocessable

BUNDLED = Path(__file__).parent / "suites" / "basics.jsonl"


class Item(BaseModel):
    """One line of a suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = Field(None, min_length=1)
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    choices: tuple[str, ...] = ()
    answer: int | None = Field(None, ge=0)
    expected: str | tuple[str, ...] | None = None
    match: Literal["exact", "contains"] = "exact"
    max_tokens: int = Field(8, ge=1, le=512)
    """Of the answer, where it is given in words"""

    @model_validator(mode="after")
    def _is_one_question(self) -> "Item":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("an item has either `prompt` or `messages`")
        if bool(self.choices) == (self.expected is not None):
            raise ValueError("an item has either `choices` or `expected`")
        if self.choices and (len(self.choices) < 2 or not all(c.strip() for c in self.choices)):
            raise ValueError("two or more `choices` are needed, and none is empty")
        if self.choices and (self.answer is None or self.answer >= len(self.choices)):
            raise ValueError("`answer` is the place of the right one among `choices`, from 0")
        if self.expected is not None and not any(normalised(one) for one in self.accepted):
            raise ValueError("`expected` says nothing")
        return self

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answers in words that are right."""
        one = self.expected
        return (one,) if isinstance(one, str) else one or ()

    @property
    def content(self) -> str:
        """The prompt as snapshots have it."""
        return json.dumps(self.messages if self.prompt is None else {"prompt": self.prompt})


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of items."""

    name: str
    items: tuple[Item, ...]


def read_suites(paths: Sequence[Path]) -> list[Suite]:
    """The bundled suite and those of the given files. Raises Unprocessable for what is none."""
    suites = [read_suite(path) for path in (BUNDLED, *paths)]
    names = [suite.name for suite in suites]
    if len(set(names)) < len(names):
        raise Unprocessable(f"two regression suites have one name: {', '.join(sorted(names))}")
    return suites


def read_suite(path: Path) -> Suite:
    """One file; its name without the ending is the suite's. Raises Unprocessable."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Unprocessable(f"the regression suite {path} cannot be read: {error}") from error
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append(Item.model_validate_json(line))
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise Unprocessable(f"{path}, line {number}: {said}") from error
    if not items:
        raise Unprocessable(f"the regression suite {path} is empty")
    return Suite(path.stem, tuple(items))


def is_right(item: Item, text: str) -> bool:
    """Whether an answer in words is right; of a continuation only the first line counts."""
    said = normalised(text.lstrip().partition("\n")[0] if item.messages is None else text)
    if item.match == "exact":
        return any(said == normalised(one) for one in item.accepted)
    return any(f" {normalised(one)} " in f" {said} " for one in item.accepted)


def normalised(text: str) -> str:
    """Words and numbers in small letters, one space between: dots and capitals do not count."""
    return " ".join(re.findall(r"\w+", text.casefold()))
