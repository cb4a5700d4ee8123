"""The way of a finished completion into the inbox: sealed, in order, exactly once.

`append` seals an entry and gives a future that is done when the entry is durable; the reply's last
bytes wait for it. Entries that come while a batch is on its way go together in the next one. An
entry that Redis has not taken within 250 ms goes to the spool (serving/spool.py), and so do all
after it, until Redis has taken everything that waits there. Each entry has a number; one script
appends only numbers that are not in yet, so a batch whose answer was lost is never doubled.

Knows keyring, Redis and a file, nothing of requests. feedback/ingest.py reads what is written.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from core import keys, metrics
from core.errors import Unavailable
from core.keyring import Keyring
from core.redis_client import Line, Redis, redis_errors, script
from core.room import Room
from serving.background import cancel_all
from serving.spool import Entry, SpoolFull, new_spool, orphans

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.25
_BATCH_ENTRIES = 128
_REPLAY_BYTES = 1 << 20
_REPLAY_PATIENCE_SECONDS = 5.0
_REPLAY_PAUSE_SECONDS = 0.25
_QUICK_SECONDS = PATIENCE_SECONDS / 4  # Redis is well again when it takes a batch in this time
_MARK_SECONDS = 30 * 86_400
Script = Callable[[str, list[str], list[str | bytes | int | float]], Awaitable[Any]]


@dataclass(slots=True)
class _Waiting:
    entry: Entry
    since: float
    durable: asyncio.Future[None]


class Inbox:
    """The writing end of the inbox of one gateway process."""

    def __init__(
        self,
        *,
        redis: Redis,
        keyring: Keyring,
        folder: Path,
        max_entries: int,
        spool_max_bytes: int,
        room: Room | None = None,
        one_disk: bool = False,
    ) -> None:
        """With `one_disk` Redis writes to the disk of `room`, as the spool does."""
        self._room = room
        self._one_disk = one_disk
        self._redis = redis
        self._line = Line(redis)
        self._keyring = keyring
        self._max_entries = max_entries
        self._orphans = orphans(folder)
        self._spool = new_spool(folder, spool_max_bytes)
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._next_number = 0
        self._closing = False
        self._writing = False
        self._length = 0
        # what a dead process left goes in first
        self.direct = not self._orphans
        """Whether entries go to Redis at once, not to the spool."""

    @property
    def _full(self) -> bool:
        return self._room is not None and self._room.lacking("logging") is not None

    @property
    def backlog(self) -> int:
        """Entries in the inbox when it was last seen."""
        return self._length

    @property
    def spooled_bytes(self) -> int:
        """How much waits for Redis in files."""
        return sum(s.unread_bytes for s in (*self._orphans, self._spool))

    @property
    def is_full(self) -> bool:
        """Whether what comes now is dropped, because the disk that Redis shares is full."""
        return self._one_disk and self._full

    def append(self, entry: dict[str, Any]) -> asyncio.Future[None]:
        """Seal an entry and queue it; the future is done once it is durable, or was dropped."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.is_full:
            metrics.LOGS_DROPPED.labels("disk_full").inc()
            durable.set_result(None)
            return durable
        try:
            sealed = self._keyring.seal(orjson.dumps(entry))
        except OSError as error:  # the key of a new day cannot be written
            log.error("a completion cannot be sealed: %s", error)
            metrics.LOGS_DROPPED.labels("seal_failed").inc()
            durable.set_result(None)
            return durable
        numbered = Entry(self._next_number, sealed)
        self._next_number += 1
        self._queue.append(_Waiting(numbered, time.monotonic(), durable))
        self._wake.set()
        return durable

    async def run(self) -> None:
        """Write until `close`, and replay the spool beside it."""
        replay = asyncio.create_task(self._replay())
        try:
            while not (self._closing and not self._queue):
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    await self._write_batch()
        finally:
            await cancel_all([replay])

    async def close(self, writer: "asyncio.Task[None]") -> None:
        """Make everything durable and stop `writer`, the task of `run`."""
        self._closing = True
        self._wake.set()
        await writer
        await self._line.close()
        for spool in (*self._orphans, self._spool):
            spool.close()

    async def _write_batch(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(_BATCH_ENTRIES, len(self._queue)))]
        if not (self.direct and await self._to_redis(batch)):
            self.direct = False
            await self._to_spool([waiting.entry for waiting in batch])
        for waiting in batch:
            if not waiting.durable.done():
                waiting.durable.set_result(None)

    async def _to_redis(self, batch: Sequence[_Waiting]) -> bool:
        """Whether Redis took all of the batch in time."""
        entries = [waiting.entry for waiting in batch]
        try:
            async with asyncio.timeout_at(_deadline(batch[0].since)):
                done = await self._deliver(self._line.script, self._spool.writer, entries)
        except (Unavailable, TimeoutError) as error:
            log.warning("completions go to the spool: %s", str(error) or "Redis is slow")
            return False
        except Exception:  # replies wait for this task: whatever Redis says, they go on
            log.exception("completions go to the spool")
            return False
        return done == len(entries)

    async def _deliver(self, run: Script, writer: str, entries: Sequence[Entry]) -> int:
        """How many from the front are in the inbox now. Raises Unavailable."""
        pairs: list[str | bytes | int | float] = []
        for entry in entries:
            pairs += (entry.number, entry.sealed)
        with redis_errors():
            done, self._length = await run(
                "append_inbox",
                [keys.inbox(), keys.inbox_writer(writer)],
                [self._max_entries, _MARK_SECONDS, *pairs],
            )
        metrics.LOG_BACKLOG.set(self._length)
        return int(done)

    async def _to_spool(self, entries: Sequence[Entry]) -> None:
        """Keep entries in the file; what does not fit is dropped, and counted."""
        if self._full:
            metrics.LOGS_DROPPED.labels("disk_full").inc(len(entries))
            return
        self._writing = True
        try:
            await asyncio.to_thread(self._spool.write, entries)
        except SpoolFull:
            metrics.LOGS_DROPPED.labels("spool_full").inc(len(entries))
        except OSError as error:
            log.error("the spool cannot be written: %s", error)
            metrics.LOGS_DROPPED.labels("spool_failed").inc(len(entries))
        finally:
            self._writing = False

    async def _replay(self) -> None:
        """Bring what waits in files into the inbox, oldest first, until cancelled."""
        while True:
            moved = False
            if not self.direct:
                try:
                    async with asyncio.timeout(_REPLAY_PATIENCE_SECONDS):
                        moved = await self._replay_some()
                except (Unavailable, TimeoutError):
                    pass
                except Exception:  # this task has to outlive whatever Redis says
                    log.exception("the spool cannot be replayed")
            if not moved:
                await asyncio.sleep(_REPLAY_PAUSE_SECONDS)

    async def _replay_some(self) -> bool:
        """Deliver the next batch of the oldest spool; whether anything moved."""
        spool = self._orphans[0] if self._orphans else self._spool
        entries = spool.read(_REPLAY_BYTES)
        began = time.monotonic()
        done = await self._deliver(partial(script, self._redis), spool.writer, entries)
        quick = time.monotonic() - began < _QUICK_SECONDS
        spool.advance(entries[:done])
        if spool.drained and self._orphans:
            self._orphans.pop(0).close()
        elif spool.drained and not self._writing:
            spool.empty()
            self.direct = quick
        return bool(done)


def _deadline(since: float) -> float:
    """When patience with Redis ends, on the clock of the running loop."""
    loop = asyncio.get_running_loop()
    return loop.time() + max(0.0, PATIENCE_SECONDS - (time.monotonic() - since))
