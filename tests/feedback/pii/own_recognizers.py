"""Recognizers that a test plugs in, written to Presidio's protocol and to nothing else."""

import re
from dataclasses import dataclass


@dataclass
class Found:
    """What Presidio's RecognizerResult has that is read."""

    entity_type: str
    start: int
    end: int
    score: float


class Badge:
    """`BDG` and four digits."""

    supported_entities = ["EMPLOYEE_BADGE2"]

    def __init__(self) -> None:
        self.asked_for: list[list[str]] = []

    def analyze(self, text: str, entities: list[str], nlp_artifacts: object = None) -> list[Found]:
        self.asked_for.append(entities)
        found = re.finditer(r"BDG\d{4}", text)
        return [Found("EMPLOYEE_BADGE2", m.start(), m.end(), 0.9) for m in found]


class Wards:
    """A word of a hospital, under a type that Presidio and this filter share."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: object = None) -> list[Found]:
        return [Found("PERSON", m.start(), m.end(), 1.0) for m in re.finditer("ward nine", text)]


class Broken:
    """It raises, and its message holds the text."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: object = None) -> list[Found]:
        raise RuntimeError(text)


class Astray:
    """It gives a span beyond the text."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: object = None) -> list[Found]:
        return [Found("ANYTHING", 0, len(text) + 1, 1.0)]


badge = Badge()
not_one = object()
