"""An opened entry of the inbox, and the record that it becomes.

The gateway seals what it saw of a request; ingest.py opens it and gives the texts to the filter.
Pure: this file only says which parts of an entry are text, and where the filtered ones go.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, field_validator

from core.keyring import Keyring
from core.records import Choice, Completion, Reply, Split
from feedback.pii.record import Filtered
from feedback.texts import texts_of, with_texts

_WITHOUT_TEXT = {"token", "id", "tenant", "key_id", "prompt_tag"}
_WITHOUT_TEXT |= {"policy_versions", "created_at", "error", "trains"}
"""What a record takes over as it is. A field that is new is left out until it is named here."""


class RawChoice(Choice):
    """An answer as the gateway saw it; one that says nothing may have no text."""

    model_config = ConfigDict(extra="ignore")

    text: str = ""
    finish_reason: str | None = None

    @field_validator("text", mode="before")
    @classmethod
    def _nothing_said(cls, text: str | None) -> str:
        return text or ""


class Entry(Reply):
    """An entry of the inbox, opened; the `user` in it is a name, not yet a keyed hash.

    Fields that a newer gateway adds are ignored.
    """

    model_config = ConfigDict(extra="ignore")

    choices: tuple[RawChoice, ...]


IMPORT_KEY_ID = "00000000"
"""The key id of what was imported: no API key has it."""


def is_hash(name: str) -> bool:
    """Whether a name looks like the keyed hashes that an export gives in place of names."""
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


def user_hash(keyring: Keyring, *, tenant: str, key_id: str, user: str) -> str:
    """Under which keyed hash a user is kept; an import may bring the hash itself."""
    if key_id == IMPORT_KEY_ID and is_hash(user):
        return user
    return keyring.hashed(tenant, "user", user)


def bare_record(entry: Entry, *, user: str, split: Split) -> Completion:
    """The record without any text."""
    return Completion(
        **entry.model_dump(include=_WITHOUT_TEXT),
        user=user,
        messages=[],
        choices=(),
        split=split,
        counted=False,
        sampling=_numbers(entry.sampling),
    )


def entry_texts(entry: Entry) -> list[str]:
    """All texts of an entry that may hold personal data."""
    return texts_of(_parts(entry))


def with_clear_texts(bare: Completion, entry: Entry, clear: Filtered) -> Completion:
    """The record with the filtered texts. Raises ValueError when their number is not right."""
    messages, answers, metadata = with_texts(_parts(entry), clear.texts)
    choices = [
        Choice(
            text=text,
            finish_reason=choice.finish_reason,
            tokens=choice.tokens,
            tool_calls=tool_calls,
        )
        for choice, (text, tool_calls) in zip(entry.choices, answers, strict=True)
    ]
    return bare.model_copy(
        update={
            "messages": messages,
            "choices": tuple(choices),
            "metadata": metadata,
            "pii": clear.counts,
            "pii_version": clear.version,
        }
    )


def _parts(entry: Entry) -> list[Any]:
    answers = [[choice.text, choice.tool_calls] for choice in entry.choices]
    return [entry.messages, answers, entry.metadata]


def _numbers(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings that are numbers; the others (stop strings, schemas) may hold text."""
    return {name: v for name, v in sampling.items() if isinstance(v, bool | int | float)}
