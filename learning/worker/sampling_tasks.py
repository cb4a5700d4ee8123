"""The stock of labeling tasks: answers are sampled from the engines that serve, and offered.

A few prompts each time, one request after the other, behind every client's: these wait at the
lowest priority. Nothing is sampled while a stage of learning computes. What an engine wrote
goes through the PII filter before it is kept. Which prompts, and what a task is, says
feedback/labeling_supply.py; when, says `sampling_due`.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import orjson

from core import keys, lease
from core.keyring import ENGINE_DATA, Keyring
from core.records import Completion, Replica
from core.redis_client import Redis, redis_errors
from core.settings import Settings
from feedback import labeling, store
from feedback import labeling_supply as supply
from feedback.labeling_supply import Sampled
from feedback.pii.worker import PiiFailed
from feedback.sealed_texts import PiiFilter
from feedback.split import prompt_opening
from feedback.texts import texts_of
from learning.reward_model.labeling_worth import read_disagreement
from learning.rounds.work import Work
from learning.worker.labeling_stock import missing, next_ones, set_aside

PRIORITY = 100
"""Behind all clients' requests, which have 0: a lower number goes first."""
TEMPERATURES = (1.0, 0.7, 1.3)
"""In turns, because one version at one temperature often says the same."""
_AT_ONCE = 4
"""Prompts each time: the engine never answers more than one of our requests, of a few choices."""
_LOOK_AT = 400
_MOST_TOKENS = 512
_REQUEST_SECONDS = 120.0
_HOLD_MILLISECONDS = 600_000
_REST_MILLISECONDS, _IDLE_MILLISECONDS = 5_000, 60_000
_UNIX = "unix:"
_MODEL = "instructloop"  # as the agent names what its engine serves

log = logging.getLogger(__name__)


async def sampling_due(redis: Redis, settings: Settings) -> bool:
    """Whether the stock is low, somebody is there to label, and the machine has nothing better."""
    feedback = settings.feedback
    if not feedback.tasks_open or await redis.exists(keys.labeling_sampling()):
        return False
    return not await lease.is_held(redis) and bool(await missing(redis, settings))


async def fill_stock(work: Work, pii: PiiFilter) -> int:
    """Open a few tasks; how many. 0 at once where another worker is at it. Raises Unavailable."""
    redis = work.redis
    with redis_errors():
        hold = {"nx": True, "px": _HOLD_MILLISECONDS}
        if not await redis.set(keys.labeling_sampling(), "1", **hold):
            return 0
    opened = 0
    try:
        opened = await _open_some(work, pii)
    finally:
        with redis_errors():
            rest = _REST_MILLISECONDS if opened else _IDLE_MILLISECONDS
            await redis.set(keys.labeling_sampling(), "1", px=rest)
    return opened


async def _open_some(work: Work, pii: PiiFilter) -> int:
    engines = await _ready_engines(work.redis)
    lacking = await missing(work.redis, work.settings)
    if not engines or not lacking:
        return 0
    chosen, others = await _chosen(work.redis, work.keyring, work.settings, tenants=set(lacking))
    opened = 0
    for candidate in next_ones(chosen, lacking, most=_AT_ONCE):
        if work.stopping() or await lease.is_held(work.redis):
            break
        about = candidate.completion
        if await _open_one(work, pii, about, others, engines):
            opened += 1
        else:
            await set_aside(work.redis, _task_id(work.keyring, about))
    return opened


async def _open_one(
    work: Work,
    pii: PiiFilter,
    about: Completion,
    others: Sequence[Completion],
    engines: Sequence[Replica],
) -> bool:
    """One prompt becomes a task; False where there are not enough different answers to it."""
    settings = work.settings.feedback
    count = settings.task_answers
    answers = supply.logged_answers(about, others)
    fresh = await sampled(about, engines, work.keyring, count=count, max_tokens=_max_tokens(about))
    try:
        clear = await asyncio.to_thread(
            _without_pii, about, fresh, pii, work.settings.log.pii_seconds
        )
    except PiiFailed as failed:
        log.warning("sampled answers could not be cleared: %s", failed.reason)
        return False
    answers = supply.pick(supply.distinct([*answers, *clear]), count)
    if len(answers) < labeling.MIN_OUTPUTS:
        return False
    task = supply.make_task(
        about,
        answers,
        name=_namer(work.keyring, about.tenant),
        settings=settings,
        now=time.time(),
    )
    with redis_errors():
        if not await store.is_logged(work.redis, about.token):
            return False  # erased while the engine answered
    await labeling.open_tasks(work.redis, [task])
    return True


async def sampled(
    about: Completion,
    engines: Sequence[Replica],
    keyring: Keyring,
    *,
    count: int,
    max_tokens: int,
) -> list[Sampled]:
    """Fresh answers, from each served version in turns; what an engine refuses is left out."""
    versions = {engine.version: engine for engine in engines}
    found: list[Sampled] = []
    for turn, temperature in enumerate(TEMPERATURES):
        engine = list(versions.values())[turn % len(versions)]
        asked = {
            "model": _MODEL,
            "n": -(-count // 2),
            "temperature": temperature,
            "max_tokens": max_tokens,
            "priority": PRIORITY,
            "cache_salt": keyring.hashed(about.tenant, "cache", engine.version),
        }
        try:
            found += await _ask(engine, about, asked, token=keyring.present(ENGINE_DATA).decode())
        except (aiohttp.ClientError, TimeoutError, LookupError, ValueError) as error:
            log.info("%s did not answer a labeling prompt: %r", engine.name, error)
    return found


async def _ask(
    engine: Replica, about: Completion, asked: dict[str, Any], *, token: str
) -> list[Sampled]:
    """One request. Raises aiohttp.ClientError, TimeoutError, LookupError, ValueError."""
    prompt = supply.question(about.messages)
    is_chat = "messages" in prompt
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    is_socket = engine.url.startswith(_UNIX)
    connector = aiohttp.UnixConnector(engine.url.removeprefix(_UNIX)) if is_socket else None
    async with (
        aiohttp.ClientSession(
            "http://engine" if is_socket else engine.url, connector=connector
        ) as session,
        session.post(
            path,
            data=orjson.dumps({**asked, **prompt}),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
        ) as response,
    ):
        response.raise_for_status()
        if "x-policy-versions" in response.headers:  # a swap crossed it
            return []
        version = response.headers.get("x-policy-version", engine.version)
        reply = orjson.loads(await response.read())
    return [
        Sampled(
            choice["message"]["content"] or "" if is_chat else choice["text"],
            version,
            str(choice["finish_reason"]),
        )
        for choice in reply["choices"]
    ]


def _without_pii(
    about: Completion, fresh: Sequence[Sampled], pii: PiiFilter, seconds: float
) -> list[Sampled]:
    """The answers filtered together with their prompt, as a completion's are. Raises PiiFailed."""
    if not fresh:
        return []
    texts = [*texts_of(about.messages), *(answer.text for answer in fresh)]
    clear = pii.filter_record(texts, deadline_seconds=seconds).texts[-len(fresh) :]
    return [
        Sampled(text, answer.policy, answer.finish_reason)
        for text, answer in zip(clear, fresh, strict=True)
    ]


async def _chosen(
    redis: Redis, keyring: Keyring, settings: Settings, *, tenants: set[str]
) -> tuple[list[supply.Candidate], list[Completion]]:
    """Prompts of the tenants worth a task, best first, and what else was logged of their users."""
    with redis_errors():
        newest = await redis.zrevrange(keys.prompts(), 0, _LOOK_AT - 1)
        counted = await store.completions(redis, [token.decode() for token in newest])
        users = sorted({completion.user for completion in counted.values()})
        names = [keys.user_completions(user) for user in users]
        logged = await redis.sunion(names) if names else set()
    tokens = sorted(raw.decode() for raw in logged)[: 4 * _LOOK_AT]
    everything = {**await store.completions(redis, tokens), **counted}

    def opening(completion: Completion) -> str:
        asked = prompt_opening(completion.messages, settings.log.duplicate_prefix_chars)
        return keyring.hashed(completion.tenant, "opening", asked)

    found = supply.candidates(
        counted.values(),
        Counter(opening(completion) for completion in everything.values()),
        opening=opening,
        known=await _known(redis, keyring, list(counted.values())),
        tenants=tenants,
        now=time.time(),
        disagreement=await read_disagreement(redis, sorted(counted)),
    )
    return found, list(everything.values())


async def _known(redis: Redis, keyring: Keyring, found: Sequence[Completion]) -> set[str]:
    """Tokens of what somebody has ranked, what is or was a task, and what just made none."""
    with redis_errors():
        async with redis.pipeline(transaction=False) as step:
            for completion in found:
                name = _task_id(keyring, completion)
                step.exists(keys.labeling_task(name), keys.labeling_set_aside(name))
                step.smembers(keys.feedback_of(completion.token))
            replies = await step.execute()
    is_task, said = replies[::2], replies[1::2]
    ids = sorted({raw.decode() for one in said for raw in one})
    rankings = {f.id for f in await store.get_many(redis, ids) if f.kind == "ranking"}
    return {
        completion.token
        for completion, taken, about in zip(found, is_task, said, strict=True)
        if taken or rankings & {raw.decode() for raw in about}
    }


async def _ready_engines(redis: Redis) -> list[Replica]:
    with redis_errors():
        names = sorted(name.decode() for name in await redis.smembers(keys.replicas()))
        raw = await redis.mget([keys.replica(name) for name in names]) if names else []
    heard = [Replica.model_validate_json(text) for text in raw if text]
    return [replica for replica in heard if replica.state == "ready"]


def _max_tokens(about: Completion) -> int:
    asked = about.sampling.get("max_tokens") or about.sampling.get("max_completion_tokens")
    return min(asked, _MOST_TOKENS) if isinstance(asked, int) and asked > 0 else _MOST_TOKENS


def _task_id(keyring: Keyring, about: Completion) -> str:
    return supply.task_name(about.token, _namer(keyring, about.tenant))


def _namer(keyring: Keyring, tenant: str) -> Callable[[str], str]:
    return lambda what: keyring.hashed(tenant, "labeling", what)
