"""Data from elsewhere into the log, through the door that everybody takes.

A prompt or answer becomes a sealed entry of the inbox, whose texts ingest filters; a comparison is
then a ranking of such answers, a thumb a rating of one, a demonstration a sealed text. Ids are
hashes of the content, so that a second import changes nothing. Nothing of an erased person comes in
again. A line without `user` gets a user of its own, so that cap and split do not take a file for
one person; without `rater` the file is the rater. Lines come from import_files.py.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from core import keys
from core.errors import InstructLoopError
from core.ids import content_token, prompt_tag, token_of
from core.keyring import IDS, Keyring
from core.redis_client import Redis, redis_errors
from core.settings import Settings
from feedback import intake, store
from feedback.entries import IMPORT_KEY_ID, is_hash, user_hash
from feedback.export_columns import What
from feedback.import_files import Line, Origin
from feedback.import_langfuse import langfuse, with_texts_of
from feedback.import_open_webui import open_webui
from feedback.import_rankings import Understood, whole_rankings
from feedback.imported import Item, parse
from feedback.intake import Speaker
from feedback.schemas import (
    DemonstrationRequest,
    FeedbackRequest,
    OutputRef,
    RankingRequest,
)
from feedback.sealing import seal_texts
from feedback.split import prompt_opening
from feedback.texts import prompt_json

VERSION = "imported"
_BATCH = 200
_TELL = 100
Outcome = Literal["imported", "known", "erased"]
_PARSERS: dict[Origin, Callable[[What, object], Item]] = {
    "trl": parse,
    "open-webui": open_webui,
    "langfuse": langfuse,
}


@dataclass(slots=True)
class Summary:
    """What became of the lines."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str]] = field(default_factory=list)
    """Number and reason of the first lines that were not understood; `counts["bad"]` has all."""


@dataclass(frozen=True, slots=True)
class Import:
    """Where it goes, and under which names."""

    redis: Redis
    keyring: Keyring
    settings: Settings
    tenant: str
    source: str
    """The name of the file."""


async def import_lines(
    work: Import,
    lines: Iterable[Line],
    what: What,
    *,
    make_room: Callable[[], Awaitable[None]],
    progress: Callable[[int], None],
    origin: Origin = "trl",
) -> Summary:
    """Take in what can be understood; bad lines are told by number and change nothing.

    `make_room` is called between batches: ingest has to keep up. Raises Unavailable, and
    InstructLoopError when this origin has nothing of the kind.
    """
    if origin != "trl" and what not in ("comparisons", "prompts"):
        raise InstructLoopError(f"{origin} exports no {what}: comparisons or prompts")
    if origin == "langfuse":
        lines = with_texts_of(lines, what)
    summary = Summary()
    count = 0
    with redis_errors():
        for one in whole_rankings(_understood(lines, what, origin)):
            try:
                if isinstance(one.item, ValueError):
                    raise one.item
                summary.counts[await _take(work, what, one.item)] += one.lines
            except (ValueError, InstructLoopError) as error:
                if isinstance(error, InstructLoopError) and error.status >= 500:
                    raise
                summary.counts["bad"] += one.lines
                if len(summary.bad) < _TELL:
                    summary.bad.append((one.number, str(error)))
            before, count = count, count + one.lines
            if count // _BATCH > before // _BATCH:
                await make_room()
                progress(count)
        await make_room()
    return summary


def _understood(lines: Iterable[Line], what: What, origin: Origin) -> Iterator[Understood]:
    for number, value in lines:
        try:
            if isinstance(value, ValueError):
                raise value
            yield Understood(number, _PARSERS[origin](what, value))
        except ValueError as error:
            yield Understood(number, error)


async def _take(work: Import, what: What, item: Item) -> Outcome:
    """One line into the stores."""
    name = item.user or _user_of_its_own(work, item)
    user = user_hash(work.keyring, tenant=work.tenant, key_id=IMPORT_KEY_ID, user=name)
    who = _speaker(work, item)
    if await _is_erased(work.redis, item, user, who.rater):
        return "erased"
    if await _is_known(work.redis, what, item):
        return "known"
    if what == "prompts":
        return await _add_answer(work, item, name, user, item.answers)
    if what == "demonstrations":
        return await _add_demonstration(work, item, who, user if item.user else "")
    for answer in item.answers:
        await _add_answer(work, item, name, user, (answer,))
    done = await _add_comparison(work, item, who, user) if len(item.answers) > 1 else "known"
    if what == "ratings" or item.thumb or item.comment:
        rated = await _add_rating(work, item, who, user)
        return "imported" if "imported" in (done, rated) else "known"
    return done


def _user_of_its_own(work: Import, item: Item) -> str:
    """One for all prompts that count as the same, so that they are in the same split."""
    opening = prompt_opening(item.prompt, work.settings.log.duplicate_prefix_chars)
    return f"import:{work.source}:{hashlib.sha256(opening.encode()).hexdigest()[:12]}"


def _speaker(work: Import, item: Item) -> Speaker:
    name = item.rater or f"import:{work.source}"
    rater = name
    if not is_hash(name):
        rater = work.keyring.hashed(work.tenant, "rater", f"{IMPORT_KEY_ID}\x00{name}")
    heldout = item.heldout
    if heldout is None:
        heldout = intake.is_heldout(name, rater, settings=work.settings.feedback)
    return Speaker(work.tenant, IMPORT_KEY_ID, rater, heldout, trains=True)


async def _is_erased(redis: Redis, item: Item, *hashes: str) -> bool:
    """Whether this is of a person who was erased after it was said, as far as the line tells."""
    until = [int(ms) for ms in await redis.hmget(keys.tombstones(), hashes) if ms]
    return any(item.created_at is None or item.created_at * 1000 <= ms for ms in until)


async def _is_known(redis: Redis, what: What, item: Item) -> bool:
    """Whether this was exported from this very service and is still there."""
    if not item.known_as:
        return False
    if what == "prompts":
        return await store.is_logged(redis, token_of(item.known_as))
    task_id = item.known_as.partition(":")[0]  # what was said in labeling has the task's name
    return bool(await redis.exists(keys.feedback(item.known_as), keys.labeling_task(task_id)))


async def _add_answer(
    work: Import, item: Item, name: str, user: str, answers: Sequence[str]
) -> Outcome:
    """A sealed entry, as the gateway makes them; without an answer it is a prompt alone."""
    completion_id = _completion_id(work, item, user, answers)
    token = token_of(completion_id)
    if await store.is_logged(work.redis, token):
        return "known"
    reasons = dict(zip(item.answers, item.finish_reasons, strict=False))
    entry: dict[str, Any] = {
        "token": token,
        "id": completion_id,
        "tenant": work.tenant,
        "key_id": IMPORT_KEY_ID,
        "user": name,
        "prompt_tag": _tag(work, item),
        "messages": item.prompt,
        "choices": [
            {
                "text": answer,
                "finish_reason": reasons.get(answer, "stop"),
                "tokens": None,
                "tool_calls": None,
            }
            for answer in answers
        ],
        "policy_versions": [VERSION],
        "created_at": _moment(item),
        "metadata": item.metadata,
    }
    sealed = work.keyring.seal(orjson.dumps(entry))
    await work.redis.xadd(keys.inbox(), {"sealed": sealed})
    return "imported"


async def _add_comparison(work: Import, item: Item, who: Speaker, user: str) -> Outcome:
    ranks = item.ranking or tuple((at,) for at in range(len(item.answers)))
    refs = [
        [
            OutputRef(completion_id=_completion_id(work, item, user, item.answers[at : at + 1]))
            for at in rank
        ]
        for rank in ranks
    ]
    body = RankingRequest(ranking=refs)
    said = intake.ranking(body, who, keyring=work.keyring, now=_moment(item))
    if await work.redis.exists(keys.feedback(said.id)):
        return "known"
    await store.record(work.redis, said, reply="{}")
    return "imported"


async def _add_rating(work: Import, item: Item, who: Speaker, user: str) -> Outcome:
    """What was said of the first answer, the words sealed."""
    body = FeedbackRequest(
        completion_id=_completion_id(work, item, user, item.answers[:1]),
        thumb=item.thumb,
        rating=item.rating,
        flags=item.flags,
        signal=item.signal,
        comment=item.comment or None,
    )
    sealed = seal_texts({"comment": body.comment}, work.keyring) if body.comment else None
    said = intake.rating(body, who, keyring=work.keyring, sealed=sealed, now=_moment(item))
    if await work.redis.exists(keys.feedback(said.id)):
        return "known"
    await store.record(work.redis, said, reply="{}")
    return "imported"


async def _add_demonstration(work: Import, item: Item, who: Speaker, user: str) -> Outcome:
    plain = isinstance(item.prompt, dict)
    about = {"prompt": item.prompt["prompt"]} if isinstance(item.prompt, dict) else {}
    body = DemonstrationRequest.model_validate(
        {**about, **({} if plain else {"messages": item.prompt}), "text": item.answers[0]}
    )
    sealed = seal_texts({"text": body.text, "messages": intake.prompt_of(body)}, work.keyring)
    said = intake.demonstration(body, who, keyring=work.keyring, sealed=sealed, now=_moment(item))
    subject = "\x00".join((VERSION, who.rater, prompt_json(item.prompt), body.text))
    name = "fb-" + work.keyring.hashed(work.tenant, "feedback", subject)
    if await work.redis.exists(keys.feedback(name)):
        return "known"
    said = said.model_copy(update={"id": name, "user": user})
    await store.record(work.redis, said, reply="{}")
    return "imported"


def _moment(item: Item) -> float:
    """When it was said: then, where the line tells."""
    return time.time() if item.created_at is None else item.created_at


def _completion_id(work: Import, item: Item, user: str, answers: Sequence[str]) -> str:
    said: list[str | None] = [*answers] or [None]
    content = json.dumps([work.tenant, user, item.prompt, *said], sort_keys=True)
    token = content_token(
        work.keyring.accepted(IDS)[-1],  # the oldest: the same content has the same id later, too
        tenant=work.tenant,
        key_id=IMPORT_KEY_ID,
        seed=hashlib.sha256(content.encode()).digest(),
        tag=_tag(work, item),
    )
    return f"import-{token}"


def _tag(work: Import, item: Item) -> str:
    return prompt_tag(work.keyring.tag_key(), work.tenant, prompt_json(item.prompt).encode())
