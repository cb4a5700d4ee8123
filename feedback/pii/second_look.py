"""What goes to training is read again, with the second model, before a snapshot is made of it.

Far fewer texts go to training than are logged, so they can afford the larger model. What was found
is remembered in one file of the state folder, as places of texts whose names are keyed hashes, so
that a later snapshot asks only about what is new; that file holds no text. A record that cannot be
cleared is left out of this snapshot. Called by snapshot.py.
"""

import asyncio
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core import metrics
from core.keyring import Keyring
from core.records import Completion, Feedback, LabelingTask
from core.settings import Settings
from feedback.dataset import Gathered
from feedback.pii.record import Plan, filter_version
from feedback.pii.rules import PLACEHOLDER
from feedback.pii.worker import PiiFailed, PiiWorker
from feedback.texts import texts_of, with_texts

FILE = "pii-second-look.json"
Edits = list[tuple[int, int, int, str]]
"""(which text, start, end, what stands there instead), in order."""
_log = logging.getLogger(__name__)


async def second_look(gathered: Gathered, *, keyring: Keyring, settings: Settings) -> Gathered:
    """The same records after both models. Raises PiiFailed when the filter does not start."""
    plan = Plan(second_tier=True, recognizers=settings.log.pii_recognizers)
    worker = PiiWorker(plan)
    file = settings.state_dir / FILE
    try:
        version = (
            await asyncio.to_thread(worker.start) if plan.recognizers else filter_version(plan)
        )
        look = _Look(keyring, worker, settings.log.pii_seconds, remembered(file, version))
        result = await _read_all(gathered, look)
    finally:
        worker.close()
    remember(file, version, look.found)
    if look.num_failed:
        _log.error("%d records are left out of a snapshot: PII filter", look.num_failed)
    return result


def edits_between(old: Sequence[str], new: Sequence[str]) -> Edits | None:
    """What the filter replaced, as edits that lead from old to new; None if none would."""
    edits: Edits = []
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after:
            edits += _edits_of_text(index, before, after)
    return edits if edited(old, edits) == list(new) else None


def edited(texts: Sequence[str], edits: Iterable[tuple[int, int, int, str]]) -> list[str]:
    """The texts with all edits made."""
    result = list(texts)
    for index, start, end, placeholder in sorted(edits, reverse=True):
        result[index] = result[index][:start] + placeholder + result[index][end:]
    return result


def remembered(file: Path, version: str) -> dict[str, Edits]:
    """What a filter of this version has found before; empty after another one."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return dict(content["found"]) if content.get("version") == version else {}


def remember(file: Path, version: str, found: Mapping[str, Edits]) -> None:
    """Keep what this snapshot needed, and nothing of records that are gone."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump({"version": version, "found": found}, out, separators=(",", ":"))
    partial.replace(file)


@dataclass(slots=True)
class _Look:
    """One reading of all records."""

    keyring: Keyring
    pii: PiiWorker
    seconds: float
    known: Mapping[str, Edits]
    found: dict[str, Edits] = field(default_factory=dict)
    num_failed: int = 0

    async def read(self, value: list[Any]) -> list[Any] | None:
        """The value with its texts cleared together; None when they could not be."""
        texts = texts_of(value)
        name = self.keyring.hashed("", "second look", json.dumps(texts))
        edits = self.known.get(name, self.found.get(name))
        if edits is None:
            clear = await self._clear(texts)
            if clear is None:
                return None
            edits = edits_between(texts, clear)
            if edits is None:
                return list(with_texts(value, clear))
        self.found[name] = edits
        return list(with_texts(value, edited(texts, edits)))

    async def _clear(self, texts: Sequence[str]) -> tuple[str, ...] | None:
        try:
            clear = await asyncio.to_thread(
                self.pii.filter_record, texts, deadline_seconds=self.seconds
            )
        except PiiFailed as error:
            if error.reason == "start":
                raise
            self.num_failed += 1
            return None
        for kind, number in clear.counts.items():
            metrics.PII_ENTITIES.labels(kind).inc(number)
        return clear.texts


async def _read_all(gathered: Gathered, look: _Look) -> Gathered:
    completions = [await _completion(c, look) for c in gathered.completions.values()]
    feedback = [await _feedback(f, look) for f in gathered.feedback]
    tasks = [await _task(t, look) for t in gathered.tasks]
    return replace(
        gathered,
        completions={c.token: c for c in completions if c},
        feedback=[f for f in feedback if f],
        tasks=[t for t in tasks if t],
    )


async def _completion(record: Completion, look: _Look) -> Completion | None:
    read = await look.read([record.messages, [choice.text for choice in record.choices]])
    if read is None:
        return None
    messages, answers = read
    choices = tuple(
        choice.model_copy(update={"text": text})
        for choice, text in zip(record.choices, answers, strict=True)
    )
    return record.model_copy(update={"messages": messages, "choices": choices})


async def _feedback(record: Feedback, look: _Look) -> Feedback | None:
    if record.messages is None and not record.text:
        return record
    read = await look.read([record.messages, record.text])
    return record.model_copy(update={"messages": read[0], "text": read[1]}) if read else None


async def _task(record: LabelingTask, look: _Look) -> LabelingTask | None:
    notes = [list(answer.notes.values()) for answer in record.answers]
    read = await look.read([record.messages, [output.text for output in record.outputs], notes])
    if read is None:
        return None
    messages, answers, notes = read
    said = tuple(
        answer.model_copy(update={"notes": dict(zip(answer.notes, texts, strict=True))})
        for answer, texts in zip(record.answers, notes, strict=True)
    )
    outputs = tuple(
        output.model_copy(update={"text": text})
        for output, text in zip(record.outputs, answers, strict=True)
    )
    return record.model_copy(update={"messages": messages, "outputs": outputs, "answers": said})


def _edits_of_text(index: int, before: str, after: str) -> Edits:
    """New placeholders (their numbers are new too), each placed by the words that follow it."""
    new = [m for m in PLACEHOLDER.finditer(after) if m.group() not in before]
    edits: Edits = []
    start = copied = 0
    for place, match in enumerate(new):
        start += match.start() - copied
        copied = match.end()
        if place + 1 < len(new):
            end = before.find(after[copied : new[place + 1].start()], start + 1)
        else:
            end = len(before) - len(after) + copied
        edits.append((index, start, max(start, end), match.group()))
        start = max(start, end)
    return edits
