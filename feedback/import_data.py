"""Data from elsewhere into the log, through the door that everybody takes.

A prompt or answer becomes a sealed entry of the inbox, whose texts ingest filters; a comparison is
then a ranking of two such answers, a demonstration a sealed text. Ids are hashes of the content, so
that a second import changes nothing. Nothing of an erased person comes in again. A line without
`user` gets a user of its own, so that cap and split do not take a file for one person; without
`rater` the file is the rater.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from core import keys
from core.errors import InstructLoopError
from core.ids import content_token, prompt_tag, token_of
from core.keyring import Keyring
from core.redis_client import Redis, redis_errors
from core.settings import Settings
from feedback import intake, store
from feedback.entries import IMPORT_KEY_ID, is_hash, user_hash
from feedback.export import What
from feedback.imported import Item, parse
from feedback.intake import Speaker
from feedback.schemas import DemonstrationRequest, OutputRef, RankingRequest
from feedback.sealing import seal_texts
from feedback.split import prompt_opening
from feedback.texts import prompt_json

VERSION = "imported"
_BATCH = 200
_TELL = 100
_MAX_LINE = 4 * 1024 * 1024
_MAX_LIST = 256 * 1024 * 1024
Line = tuple[int, object]
"""Its number, counted from 1, and the value or the ValueError that says why there is none."""
Outcome = Literal["imported", "known", "erased"]


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


def read_lines(path: Path) -> Iterator[Line]:
    """Lines of a JSONL or Parquet file, or records of a JSON list. Raises InstructLoopError."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InstructLoopError(f"{path} cannot be read: {error.strerror}") from None
    if start == b"PAR1":
        return _parquet_rows(path)
    if start.lstrip().startswith(b"["):
        return _list_items(path)
    return _json_lines(path)


async def import_lines(
    work: Import,
    lines: Iterable[Line],
    what: What,
    *,
    make_room: Callable[[], Awaitable[None]],
    progress: Callable[[int], None],
) -> Summary:
    """Take in what can be understood; bad lines are told by number and change nothing.

    `make_room` is called between batches: ingest has to keep up. Raises Unavailable.
    """
    summary = Summary()
    with redis_errors():
        for count, (number, value) in enumerate(lines, start=1):
            try:
                if isinstance(value, ValueError):
                    raise value
                summary.counts[await _take(work, what, parse(what, value))] += 1
            except (ValueError, InstructLoopError) as error:
                if isinstance(error, InstructLoopError) and error.status >= 500:
                    raise
                summary.counts["bad"] += 1
                if len(summary.bad) < _TELL:
                    summary.bad.append((number, str(error)))
            if count % _BATCH == 0:
                await make_room()
                progress(count)
        await make_room()
    return summary


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
        return await _add_answer(work, item, name, user, item.answers[0] if item.answers else None)
    if what == "demonstrations":
        return await _add_demonstration(work, item, who, user if item.user else "")
    for answer in item.answers:
        await _add_answer(work, item, name, user, answer)
    return await _add_comparison(work, item, who, user)


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
        return bool(await redis.exists(keys.completion(token_of(item.known_as))))
    return bool(await redis.exists(keys.feedback(item.known_as)))


async def _add_answer(
    work: Import, item: Item, name: str, user: str, answer: str | None
) -> Outcome:
    """A sealed entry, as the gateway makes them."""
    completion_id = _completion_id(work, item, user, answer)
    token = token_of(completion_id)
    if await work.redis.exists(keys.completion(token)):
        return "known"
    said = {"text": answer, "finish_reason": "stop", "tokens": None, "tool_calls": None}
    entry: dict[str, Any] = {
        "token": token,
        "id": completion_id,
        "tenant": work.tenant,
        "key_id": IMPORT_KEY_ID,
        "user": name,
        "prompt_tag": _tag(work, item),
        "messages": item.prompt,
        "choices": [] if answer is None else [said],
        "policy_versions": [VERSION],
        "created_at": time.time() if item.created_at is None else item.created_at,
    }
    sealed = work.keyring.seal(orjson.dumps(entry))
    await work.redis.xadd(keys.inbox(), {"sealed": sealed})
    return "imported"


async def _add_comparison(work: Import, item: Item, who: Speaker, user: str) -> Outcome:
    refs = [
        [OutputRef(completion_id=_completion_id(work, item, user, answer))]
        for answer in item.answers
    ]
    said = intake.ranking(RankingRequest(ranking=refs), who, keyring=work.keyring, now=time.time())
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
    said = intake.demonstration(body, who, keyring=work.keyring, sealed=sealed, now=time.time())
    subject = "\x00".join((VERSION, who.rater, prompt_json(item.prompt), body.text))
    name = "fb-" + work.keyring.hashed(work.tenant, "feedback", subject)
    if await work.redis.exists(keys.feedback(name)):
        return "known"
    said = said.model_copy(update={"id": name, "user": user})
    await store.record(work.redis, said, reply="{}")
    return "imported"


def _completion_id(work: Import, item: Item, user: str, answer: str | None) -> str:
    content = json.dumps([work.tenant, user, item.prompt, answer], sort_keys=True)
    token = content_token(
        work.keyring.key("mac"),
        tenant=work.tenant,
        key_id=IMPORT_KEY_ID,
        seed=hashlib.sha256(content.encode()).digest(),
        tag=_tag(work, item),
    )
    return f"import-{token}"


def _tag(work: Import, item: Item) -> str:
    return prompt_tag(work.keyring.key("mac"), work.tenant, prompt_json(item.prompt).encode())


# --- files ----------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            if len(line) == _MAX_LINE and not line.endswith(b"\n"):
                while rest := file.readline(_MAX_LINE):
                    if rest.endswith(b"\n"):
                        break
                yield number, ValueError(f"it is longer than {_MAX_LINE} bytes")
            elif line.strip():
                yield number, _parsed(line)


def _parsed(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return ValueError(f"it is not JSON: {error}")


def _list_items(path: Path) -> Iterator[Line]:
    if path.stat().st_size > _MAX_LIST:
        raise InstructLoopError(f"{path} is one list of over {_MAX_LIST} bytes: give JSON lines")
    read = _parsed(path.read_bytes())
    if isinstance(read, ValueError):
        raise InstructLoopError(f"{path} is not JSON: one object on each line, or one list")
    assert isinstance(read, list)
    yield from enumerate(read, start=1)


def _parquet_rows(path: Path) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=_BATCH)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except pa.ArrowInvalid as error:
        raise InstructLoopError(f"{path} is not a Parquet file: {error}") from None
