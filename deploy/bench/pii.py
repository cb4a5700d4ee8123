"""How good the PII filter is, in figures: recall by kind, precision, ordinary prompts, speed.

Runs the filter in this process on fabricated rows (`pii_labelled.py`) and ordinary prompts. The
part `kept` was never looked at while rules were written, so its figures are first-look ones as far
as one's own templates can be.
"""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from deploy.bench.pii_labelled import Part, Row, rows
from deploy.bench.pii_ordinary import ORDINARY
from feedback.pii.record import FIRST_TIER, Filtered, Plan, filter_record
from feedback.pii.rules import PLACEHOLDER

_SECONDS = 30.0
_WORD = re.compile(r"[^\W_]+")
_PROMPT_CHARACTERS = 450
"""About 100 tokens of English."""


@dataclass(frozen=True, slots=True)
class PiiFigures:
    """What the bench reports. Shares are of 1; times are of CPU, so that load does not matter."""

    recall: dict[str, float]
    """By kind: values of which no word was left, over values."""
    values: dict[str, int]
    rows_clean: float
    precision: float
    """Hidden spans that touch a planted value, over hidden spans."""
    ordinary_touched: float
    ordinary_touched_not_names: float
    ordinary_letters_hidden: float
    cpu_ms_per_prompt: float
    prompts_per_second: float
    """Of one process on an idle core, for prompts of about 100 tokens."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A planted value of which something was left."""

    kind: str
    value: str
    clean: str


def pii_figures(
    *, part: Part = "kept", per_carrier: int = 4, seed: int = 1, plan: Plan = FIRST_TIER
) -> PiiFigures:
    """Measure the filter of this process. Takes some seconds; loads its models at first use."""
    recall, values, clean, precision, _ = measure_rows(
        rows(part, per_carrier=per_carrier, seed=seed), plan=plan
    )
    touched, others, letters = measure_ordinary(ORDINARY, plan=plan)
    milliseconds = cpu_ms_per_prompt(plan=plan)
    return PiiFigures(
        recall=recall,
        values=values,
        rows_clean=clean,
        precision=precision,
        ordinary_touched=touched,
        ordinary_touched_not_names=others,
        ordinary_letters_hidden=letters,
        cpu_ms_per_prompt=milliseconds,
        prompts_per_second=1000 / milliseconds,
    )


def measure_rows(
    labelled: Iterable[Row], *, plan: Plan = FIRST_TIER
) -> tuple[dict[str, float], dict[str, int], float, float, list[Miss]]:
    """Recall by kind, values by kind, share of rows fully clean, span precision, and misses."""
    found: dict[str, int] = defaultdict(int)
    values: dict[str, int] = defaultdict(int)
    misses: list[Miss] = []
    clean_rows = total = right = spans = 0
    for row in labelled:
        clean = _filtered(row.text, plan).texts[0]
        bad = [Miss(k, v, clean) for k, v in row.labels if is_left(row, v, clean)]
        for kind, _ in row.labels:
            values[kind] += 1
            found[kind] += 1
        for miss in bad:
            found[miss.kind] -= 1
        hidden = hidden_parts(row.text, clean)
        spans += len(hidden)
        right += sum(_touches(row, part) for part in hidden)
        misses += bad
        clean_rows += not bad
        total += 1
    recall = {kind: found[kind] / values[kind] for kind in values}
    return recall, dict(values), clean_rows / total, right / max(1, spans), misses


def measure_ordinary(
    prompts: Iterable[str], *, plan: Plan = FIRST_TIER
) -> tuple[float, float, float]:
    """Shares of prompts touched, touched by anything but PERSON, and of letters hidden."""
    touched = others = letters = left = total = 0
    for text in prompts:
        done = _filtered(text, plan)
        total += 1
        touched += done.texts[0] != text
        others += any(kind != "PERSON" for kind in done.counts)
        letters += sum(c.isalnum() for c in text)
        left += sum(c.isalnum() for c in PLACEHOLDER.sub("", done.texts[0]))
    return touched / total, others / total, 1 - left / letters


def cpu_ms_per_prompt(*, prompts: int = 200, plan: Plan = FIRST_TIER) -> float:
    """CPU milliseconds of a prompt of about 100 tokens; every fifth holds something personal."""
    planted = [row.text for row in rows("kept", per_carrier=1, seed=7)]
    ordinary = [
        " ".join(ORDINARY[(n + k) % len(ORDINARY)] for k in range(5)) for n in range(prompts)
    ]
    personal = [" ".join(planted[(n + k) % len(planted)] for k in range(8)) for n in range(prompts)]
    joined = [
        (personal if n % 5 == 0 else ordinary)[n][:_PROMPT_CHARACTERS] for n in range(prompts)
    ]
    _filtered(joined[0], plan)
    begin = time.process_time()
    for text in joined:
        _filtered(text, plan)
    return (time.process_time() - begin) * 1000 / prompts


def is_left(row: Row, value: str, clean: str) -> bool:
    """Whether any word of the value, not said elsewhere in the row, is still in the clean text."""
    rest = row.text
    for _, hidden in row.labels:
        rest = rest.replace(hidden, " ", 1)
    outside = set(_WORD.findall(rest))
    left = set(_WORD.findall(PLACEHOLDER.sub(" ", clean)))
    return any(word in left for word in _WORD.findall(value) if word not in outside)


def hidden_parts(text: str, clean: str) -> list[str]:
    """What each placeholder of the clean text stands for, found by what stands around it."""
    literals = PLACEHOLDER.split(clean)
    pattern = "(.+?)".join(re.escape(literal) for literal in literals)
    match = re.fullmatch(pattern, text, re.DOTALL)
    return list(match.groups()) if match else []


def _touches(row: Row, part: str) -> bool:
    words = set(_WORD.findall(part))
    return any(not words.isdisjoint(_WORD.findall(value)) for _, value in row.labels)


def _filtered(text: str, plan: Plan) -> Filtered:
    return filter_record([text], deadline_seconds=_SECONDS, plan=plan)


def main() -> None:
    """Print the figures of both parts as JSON."""
    for part in ("open", "kept"):
        print(part, json.dumps(asdict(pii_figures(part=part)), indent=1))


if __name__ == "__main__":
    main()
