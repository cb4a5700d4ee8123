# ruff: noqa: E501 - data, a row a line
"""Recall by kind over the labelled set, and how much of ordinary prompts the filter touches.

OMP_NUM_THREADS=1 python -m tests.feedback.pii.measure [SEED] [PER_TEMPLATE] [second]
"""

import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable

from feedback.pii.record import filter_record
from feedback.pii.rules import PLACEHOLDER
from tests.feedback.pii.carriers import CARRIERS
from tests.feedback.pii.carriers_second import SECOND_CARRIERS
from tests.feedback.pii.labelled import Row, rows
from tests.feedback.pii.ordinary import ORDINARY

_ALNUM = re.compile(r"[^\W_]+")


def leaked(row: Row, value: str, clean: str) -> bool:
    """Whether any word of the value, not said elsewhere in the row, is still in the clean text."""
    rest = row.text
    for _, hidden in row.labels:
        rest = rest.replace(hidden, " ", 1)
    outside = set(_ALNUM.findall(rest))
    left = set(_ALNUM.findall(PLACEHOLDER.sub(" ", clean)))
    return any(word in left for word in _ALNUM.findall(value) if word not in outside)


def recall(
    labelled: Iterable[Row],
) -> tuple[dict[str, tuple[int, int]], float, list[tuple[str, str, str]]]:
    """(kind -> (found, all)), share of rows fully clean, and the misses."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    misses = []
    clean_rows = total = 0
    for row in labelled:
        clean = filter_record([row.text], deadline_seconds=10).texts[0]
        bad = [(kind, value, clean) for kind, value in row.labels if leaked(row, value, clean)]
        misses += bad
        clean_rows += not bad
        total += 1
        for kind, value in row.labels:
            counts[kind][0] += not leaked(row, value, clean)
            counts[kind][1] += 1
    return {kind: (a, b) for kind, (a, b) in counts.items()}, clean_rows / total, misses


def touched() -> tuple[list[tuple[str, dict[str, int]]], float]:
    """Ordinary prompts that were changed, with what was found, and the share of letters hidden."""
    changed = []
    letters = left = 0
    for text in ORDINARY:
        done = filter_record([text], deadline_seconds=10)
        letters += sum(c.isalnum() for c in text)
        left += sum(c.isalnum() for c in PLACEHOLDER.sub("", done.texts[0]))
        if done.texts[0] != text:
            changed.append((done.texts[0], done.counts))
    return changed, 1 - left / letters


def main() -> None:
    seed, per_template = (int(a) for a in (*sys.argv[1:3], "1", "4")[:2])
    carriers = SECOND_CARRIERS if "second" in sys.argv else CARRIERS
    counts, fully_clean, misses = recall(rows(carriers, per_template=per_template, seed=seed))
    for kind, value, clean in misses:
        print(f"MISS {kind:12} {value!r:45} {clean!r}")
    for kind, (found, total) in counts.items():
        print(f"{kind:12} {found / total:.3f} of {total}")
    print(f"rows fully clean {fully_clean:.3f}")
    changed, hidden = touched()
    for text, kinds in changed:
        print(kinds, text[:200].replace("\n", "\\n"))
    others = sum(any(kind != "PERSON" for kind in kinds) for _, kinds in changed)
    share = len(changed) / len(ORDINARY)
    print(
        f"ordinary: {share:.3f} of {len(ORDINARY)} touched, {others} by other than names; letters {hidden:.3f}"
    )
    texts = [
        " ".join(ORDINARY[i % len(ORDINARY)] for i in range(n, n + 5))[:450] for n in range(200)
    ]
    begin = time.process_time()
    for text in texts:
        filter_record([text], deadline_seconds=10)
    print(f"{(time.process_time() - begin) * 5:.2f} ms CPU per prompt of 450 characters")


if __name__ == "__main__":
    main()
