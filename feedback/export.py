"""Live records as data for others: comparisons, ratings, demonstrations, prompts.

Comparisons, demonstrations and prompts are the rows of a snapshot (dataset.py), split and held-out
raters included; ratings are in export_ratings.py. What does not train is left out. A row of a
comparison is one pair of a ranking and says which, with the ranks of both, so that
import_rankings.py can put the ranking together again. Pure but for `read_rows`; export_shapes.py
gives rows the forms that others read, export_files.py writes them.
"""

from collections.abc import Iterator, Mapping
from itertools import product

from core.keyring import Keyring
from core.records import Completion
from core.redis_client import Redis
from core.registry import timestamp
from core.settings import Settings
from feedback.dataset import Gathered, assemble
from feedback.export_columns import Row, What, iso, messages_of, metadata_of, told
from feedback.export_ratings import rating_rows
from feedback.pii.second_look import second_look
from feedback.snapshot import gather
from feedback.split import prompt_opening
from feedback.tables import Table
from feedback.texts import Messages


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

    if what == "ratings":
        return rating_rows(gathered, settings, digest=digest, now=now)
    tables, _ = assemble(gathered, settings, digest=digest, now=now, created_at=timestamp())
    return rows_of(what, tables, gathered)


def rows_of(what: What, tables: Mapping[str, Table], gathered: Gathered) -> Iterator[Row]:
    """Rows as they are exported in `jsonl` and `parquet`, one by one."""
    if what == "prompts":
        return (_prompt(row, gathered) for row in tables["prompts"])
    moments = said_at(gathered)
    if what == "demonstrations":
        return (_demonstration(row, moments) for row in tables["demonstrations"])
    logged = {c.id: c for c in gathered.completions.values()}
    return (pair for row in tables["rankings"] for pair in _pairs(row, moments, logged))


def said_at(gathered: Gathered) -> dict[tuple[str, str], float]:
    """When something was said, by its id; an answer to a task by the task and the rater."""
    moments = {(said.id, ""): said.updated_at for said in gathered.feedback}
    for task in gathered.tasks:
        moments |= {(task.id, answer.rater): answer.answered_at for answer in task.answers}
    return moments


def _of_tenant(gathered: Gathered, tenant: str) -> Gathered:
    return Gathered(
        feedback=[f for f in gathered.feedback if f.tenant == tenant],
        completions={t: c for t, c in gathered.completions.items() if c.tenant == tenant},
        prompt_tokens=gathered.prompt_tokens,
        tasks=[task for task in gathered.tasks if task.tenant == tenant],
        num_users=gathered.num_users,
        recorded_comparisons=gathered.recorded_comparisons,
    )


def _pairs(
    row: Row, moments: Mapping[tuple[str, str], float], logged: Mapping[str, Completion]
) -> Iterator[Row]:
    """Every untied pair of a ranking, the better answer first."""
    name = row["feedback_id"]
    moment = moments.get((name, ""), moments.get((name, row["rater"])))
    answers = row["answers"]
    pairs = [(a, b) for a, b in product(answers, answers) if a["rank"] < b["rank"]]
    about = (logged.get(answer["completion_id"]) for answer in answers)
    metadata = metadata_of(next((c for c in about if c), None))
    for better, worse in pairs:
        yield {
            "feedback_id": name,
            "prompt": messages_of(row["messages"]),
            "chosen": better["text"],
            "rejected": worse["text"],
            "chosen_id": _named(better),
            "rejected_id": _named(worse),
            **told(row, moment),
            "group_id": row["group_id"],
            "chosen_rank": better["rank"],
            "rejected_rank": worse["rank"],
            "ranked_answers": len(answers),
            "ranked_pairs": len(pairs),
            "chosen_finish_reason": better["finish_reason"],
            "rejected_finish_reason": worse["finish_reason"],
            "metadata": metadata,
        }


def _named(answer: Row) -> str:
    return f"{answer['completion_id']}/{answer['choice']}"


def _demonstration(row: Row, moments: Mapping[tuple[str, str], float]) -> Row:
    return {
        "feedback_id": row["feedback_id"],
        "prompt": messages_of(row["messages"]),
        "completion": row["text"],
        **told(row, moments.get((row["feedback_id"], ""))),
    }


def _prompt(row: Row, gathered: Gathered) -> Row:
    record = gathered.completions[row["prompt_id"]]
    first = record.choices[0] if record.choices else None
    return {
        "completion_id": record.id,
        "messages": messages_of(row["messages"]),
        "completion": first.text if first else "",
        "policy_version": record.policy_versions[0] if record.policy_versions else "",
        "created_at": iso(record.created_at),
        "user": record.user,
        "split": row["split"],
        "finish_reason": first.finish_reason if first else None,
        "other_completions": [choice.text for choice in record.choices[1:]],
        "metadata": metadata_of(record),
    }
