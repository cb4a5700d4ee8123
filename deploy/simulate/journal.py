"""What a simulation has already said, so that one that was cut short goes on where it stopped.

One JSON line for each step: the rankings that are about to be sent, then that they were taken.
Holds ids and orders, never text. A ranking that was written but not confirmed is sent again with
its old Idempotency-Key, so the service counts it once.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import StartError

Vote = dict[str, Any]
"""The body of one `POST /v1/rankings`."""


@dataclass(slots=True)
class Journal:
    """Without a path nothing is kept, and nothing is resumed."""

    path: Path | None = None
    votes: dict[str, list[Vote]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def intend(self, key: str, votes: list[Vote]) -> None:
        """Remember what will be sent for a prompt."""
        self._append({"key": key, "votes": votes})

    def finish(self, key: str) -> None:
        """Remember that all of it was taken."""
        self._append({"key": key, "done": True})

    def _append(self, entry: dict[str, Any]) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def open_journal(path: Path | None) -> Journal:
    """Read a journal, or begin one. Raises StartError when the file cannot be used."""
    journal = Journal(path)
    if path is None:
        return journal
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):  # a line that a kill cut off: begin a new one
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
    except OSError as error:
        raise StartError(f"the journal {path} cannot be written: {error}") from None
    for line in text.splitlines():
        _take(journal, line)
    return journal


def _take(journal: Journal, line: str) -> None:
    try:
        entry = json.loads(line)
        key = entry["key"]
    except (ValueError, KeyError, TypeError):
        return  # half a line: what it would have said is said again
    if entry.get("done"):
        journal.done.add(key)
    elif isinstance(entry.get("votes"), list):
        journal.votes[key] = entry["votes"]
