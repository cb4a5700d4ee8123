"""An opened entry of the inbox, and the record that it becomes.

The gateway seals what it saw of a request; ingest.py opens it and gives the texts to the filter.
Pure: this file only says which parts of an entry are text, and where the filtered ones go.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from core.records import Choice, Completion, Split
from feedback.pii.record import Filtered
from feedback.texts import texts_of, with_texts


class RawChoice(BaseModel):
    """An answer as the gateway saw it."""

    text: str | None = None
    finish_reason: str | None = None
    tokens: int | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Entry(BaseModel):
    """An entry of the inbox, opened."""

    model_config = ConfigDict(frozen=True)

    token: str
    id: str
    tenant: str
    key_id: str
    user: str
    prompt_tag: str
    messages: list[dict[str, Any]] | dict[str, str]
    choices: tuple[RawChoice, ...]
    policy_versions: tuple[str, ...]
    created_at: float
    error: str | None = None
    sampling: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    trains: bool = True


def bare_record(entry: Entry, *, user: str, split: Split) -> Completion:
    """The record without any text."""
    return Completion(
        token=entry.token,
        id=entry.id,
        tenant=entry.tenant,
        key_id=entry.key_id,
        user=user,
        prompt_tag=entry.prompt_tag,
        messages=[],
        choices=(),
        policy_versions=entry.policy_versions,
        created_at=entry.created_at,
        split=split,
        counted=False,
        trains=entry.trains,
        error=entry.error,
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
    answers = [[choice.text or "", choice.tool_calls] for choice in entry.choices]
    return [entry.messages, answers, entry.metadata]


def _numbers(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings that are numbers; the others (stop strings, schemas) may hold text."""
    return {name: v for name, v in sampling.items() if isinstance(v, bool | int | float)}
