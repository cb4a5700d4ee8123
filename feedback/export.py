"""Live records as data for others: comparisons, demonstrations, prompts, as snapshots join them.

Rows are made from the same records and rules as a snapshot (dataset.py), split and held-out raters
included; what does not train is left out. Each format is a table of functions from one row to one
JSON object. Pure but for `read_rows`; export_files.py writes the rows.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import product
from typing import Any, Literal

from core.keyring import Keyring
from core.redis_client import Redis
from core.registry import timestamp
from core.settings import Settings
from feedback.dataset import Gathered, assemble
from feedback.pii.second_look import second_look
from feedback.snapshot import gather
from feedback.split import prompt_opening
from feedback.tables import Table
from feedback.texts import Messages

What = Literal["comparisons", "demonstrations", "prompts"]
Format = Literal["trl", "argilla", "parquet", "jsonl"]
Row = dict[str, Any]


async def read_rows(
    redis: Redis,
    keyring: Keyring,
    settings: Settings,
    *,
    what: What,
    tenant: str | None,
    now: float,
) -> Iterator[Row]:
    """The rows of everybody, or of one tenant, read by the second model as for a snapshot.

    Raises Unavailable, and PiiFailed when the filter does not start.
    """
    gathered = await gather(redis, settings.log, now=now)
    if settings.log.pii_second_tier:
        gathered = await second_look(gathered, keyring=keyring, settings=settings)
    if tenant is not None:
        gathered = _of_tenant(gathered, tenant)

    def digest(owner: str, messages: Messages) -> str:
        opening = prompt_opening(messages, settings.log.duplicate_prefix_chars)
        return keyring.hashed(owner, "opening", opening)

    tables, _ = assemble(gathered, settings, digest=digest, now=now, created_at=timestamp())
    return rows_of(what, tables, gathered)


def rows_of(what: What, tables: Mapping[str, Table], gathered: Gathered) -> Iterator[Row]:
    """Rows as they are exported in `jsonl` and `parquet`, one by one."""
    if what == "comparisons":
        return (pair for row in tables["rankings"] for pair in _pairs(row))
    if what == "demonstrations":
        return (_demonstration(row) for row in tables["demonstrations"])
    return (_prompt(row, gathered) for row in tables["prompts"])


def _of_tenant(gathered: Gathered, tenant: str) -> Gathered:
    return Gathered(
        feedback=[f for f in gathered.feedback if f.tenant == tenant],
        completions={t: c for t, c in gathered.completions.items() if c.tenant == tenant},
        prompt_tokens=gathered.prompt_tokens,
        tasks=[task for task in gathered.tasks if task.tenant == tenant],
        num_users=gathered.num_users,
        recorded_comparisons=gathered.recorded_comparisons,
    )


def _pairs(row: Row) -> Iterator[Row]:
    """Every untied pair of a ranking, the better answer first."""
    for better, worse in product(row["answers"], row["answers"]):
        if better["rank"] < worse["rank"]:
            yield {
                "feedback_id": row["feedback_id"],
                "prompt": _messages(row["messages"]),
                "chosen": better["text"],
                "rejected": worse["text"],
                "chosen_id": _named(better),
                "rejected_id": _named(worse),
                "rater": row["rater"],
                "user": row["user"],
                "split": row["split"],
                "heldout_rater": row["heldout_rater"],
            }


def _named(answer: Row) -> str:
    return f"{answer['completion_id']}/{answer['choice']}"


def _demonstration(row: Row) -> Row:
    return {
        "feedback_id": row["feedback_id"],
        "prompt": _messages(row["messages"]),
        "completion": row["text"],
        "rater": row["rater"],
        "user": row["user"],
        "split": row["split"],
        "heldout_rater": row["heldout_rater"],
    }


def _prompt(row: Row, gathered: Gathered) -> Row:
    record = gathered.completions[row["prompt_id"]]
    return {
        "completion_id": record.id,
        "messages": _messages(row["messages"]),
        "completion": record.choices[0].text if record.choices else "",
        "policy_version": record.policy_versions[0] if record.policy_versions else "",
        "created_at": datetime.fromtimestamp(record.created_at, UTC).isoformat(),
        "user": record.user,
        "split": row["split"],
    }


def _messages(text: str) -> list[dict[str, str]]:
    """A prompt as a conversation; one of a text completion has the role `prompt`."""
    read = json.loads(text)
    return [{"role": "prompt", "content": read["prompt"]}] if isinstance(read, dict) else read


# --- formats --------------------------------------------------------------------------------


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _is_plain(messages: list[dict[str, str]]) -> bool:
    return [message["role"] for message in messages] == ["prompt"]


def _trl(what: What, row: Row) -> Row:
    """TRL's preference, prompt-completion and prompt-only forms: conversational, or plain text."""
    prompt = row["messages"] if what == "prompts" else row["prompt"]
    plain = _is_plain(prompt)
    answers = {"comparisons": ("chosen", "rejected"), "demonstrations": ("completion",)}
    shown: Row = {"prompt": prompt[0]["content"] if plain else prompt}
    for name in answers.get(what, ()):
        shown[name] = row[name] if plain else _said(row[name])
    left = {n: v for n, v in row.items() if n not in shown and n != "messages"}
    return shown | left


def _argilla(what: What, row: Row) -> Row:
    """One record of Argilla's JSON: fields, metadata, and what was said as a suggestion."""
    fields: Row = {"prompt": row["messages"] if what == "prompts" else row["prompt"]}
    suggestions: Row = {}
    if what == "comparisons":
        fields |= {"response_a": row["chosen"], "response_b": row["rejected"]}
        suggestions["preference"] = {"value": "response_a", "score": None, "agent": row["rater"]}
        name = f"{row['feedback_id']}:{row['chosen_id']}:{row['rejected_id']}"
    elif what == "demonstrations":
        said = {"value": row["completion"], "score": None, "agent": row["rater"]}
        suggestions["completion"] = said
        name = row["feedback_id"]
    else:
        fields["completion"] = row["completion"]
        name = row["completion_id"]
    told = ("prompt", "chosen", "rejected", "completion", "messages")
    metadata = {n: str(v) for n, v in row.items() if n not in told}
    return {
        "id": name,
        "fields": fields,
        "metadata": metadata,
        "suggestions": suggestions,
        "responses": {},
        "vectors": {},
    }


def _as_it_is(_: What, row: Row) -> Row:
    return row


FORMATS: dict[Format, Callable[[What, Row], Row]] = {
    "trl": _trl,
    "argilla": _argilla,
    "parquet": _as_it_is,
    "jsonl": _as_it_is,
}
