"""What Redis holds against what was acknowledged: lost, doubled, wrong, miscounted.

`reconciled` is pure; `held` reads Redis: the records themselves, found by their keys and not by an
index, the index, and the totals.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from core import keys
from core.keyring import Keyring
from core.redis_client import Redis
from deploy.bench.feedback_pieces import Said, held_as
from feedback import store

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Held:
    """What is in Redis."""

    said: Mapping[str, Said]
    """By feedback id."""
    indexed: frozenset[str]
    counts: Mapping[str, int]
    """Totals by name: `ratings`, `signals`."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The comparison. All but the first two are 0 in a service that keeps its word."""

    acknowledged: int
    """Replies with 2xx."""
    records: int
    """Different things that they were about: a second word replaces the first."""
    lost: int
    """Acknowledged, and no record or not in the index."""
    doubled: int
    """Records or index entries that nobody was told of, and counts beyond the records."""
    wrong: int
    """Records that do not say what was acknowledged last."""
    miscounted: int
    """How far the totals are from the records, either way."""

    @property
    def is_sound(self) -> bool:
        """Nothing lost, doubled, wrong or miscounted."""
        return not (self.lost or self.doubled or self.wrong or self.miscounted)


def reconciled(
    acknowledged: Mapping[str, Said], held: Held, *, num_acknowledged: int
) -> Reconciled:
    """Compare; `acknowledged` is the last acknowledged word by feedback id."""
    expected = Counter(_count_of(said) for said in acknowledged.values())
    names = expected.keys() | held.counts.keys()
    over = {name: held.counts.get(name, 0) - expected[name] for name in names}
    unknown = (held.said.keys() | held.indexed) - acknowledged.keys()
    return Reconciled(
        acknowledged=num_acknowledged,
        records=len(acknowledged),
        lost=sum(i not in held.said or i not in held.indexed for i in acknowledged),
        doubled=len(unknown) + sum(max(0, more) for more in over.values()),
        wrong=sum(i in held.said and held.said[i] != said for i, said in acknowledged.items()),
        miscounted=sum(map(abs, over.values())),
    )


async def held(redis: Redis, keyring: Keyring) -> Held:
    """Everything that Redis holds of feedback. Raises Unavailable."""
    prefix = keys.feedback("")
    names = [name async for name in redis.scan_iter(match=keys.feedback("*"), count=_BATCH)]
    ids = [name.decode().removeprefix(prefix) for name in names]
    records = await store.get_many(redis, ids)
    totals = {k.decode(): int(v) for k, v in (await redis.hgetall(keys.counts())).items()}
    indexed = await redis.zrange(keys.feedback_index(), 0, -1)
    return Held(
        said={record.id: held_as(record, keyring) for record in records},
        indexed=frozenset(i.decode() for i in indexed),
        counts={name: number for name, number in totals.items() if number},
    )


async def bytes_per_record(redis: Redis, *, sample: int = 500) -> dict[str, float]:
    """Bytes of Redis memory for one piece of feedback, by what they are for.

    `idempotency` goes after a day; the rest stays. What is about one completion shares a set, so
    `index` is that of feedback which is the only one about its completion.
    """
    total = await redis.zcard(keys.feedback_index())
    ids = [i.decode() for i in await redis.zrange(keys.feedback_index(), -sample, -1)]
    records = await store.get_many(redis, ids)
    sets = [keys.feedback_of(record.outputs[0].token) for record in records]
    alone = [name for name in sets if await redis.scard(name) == 1]
    index = (await redis.memory_usage(keys.feedback_index(), samples=0) or 0) / max(1, total)
    once = []
    async for name in redis.scan_iter(match=keys.idempotency("*"), count=_BATCH):
        once.append(name)
        if len(once) >= sample:
            break
    return {
        "record": await _mean_bytes(redis, [keys.feedback(i) for i in ids]),
        "index": index + await _mean_bytes(redis, alone),
        "idempotency": await _mean_bytes(redis, once),
    }


async def _mean_bytes(redis: Redis, names: "list[str] | list[bytes]") -> float:
    sizes = [await redis.memory_usage(name, samples=0) or 0 for name in names]
    return sum(sizes) / max(1, len(sizes))


def _count_of(said: Said) -> str:
    return "signals" if "signal" in said else "ratings"
