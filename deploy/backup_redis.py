"""All of a Redis at one moment, through a connection: as a replica gets it, without becoming one.

Redis forks and sends what it holds at that instant (an RDB file, with a checksum of its own), while
it goes on serving; nothing is left on its disk. An append-only file may begin with such a file, so
this is also what our own Redis starts from after a restore. Knows nothing of what is in it.
"""

import asyncio
from collections.abc import Callable
from typing import Any, BinaryIO

from core.errors import InstructLoopError, Unavailable
from core.redis_client import Redis, redis_errors
from deploy.backup_files import cannot_write

_MAGIC = b"REDIS"
_MARK_BYTES = 40
_CHUNK = 1 << 18
_SILENCE_SECONDS = 60.0
_KNOWS_RDB_ONLY = 7


async def save_rdb(redis: Redis, file: BinaryIO, told: Callable[[int], None]) -> int:
    """Write the RDB file; how many bytes. `told` hears of every piece.

    Raises Unavailable when it breaks off, InstructLoopError when this Redis gives none.
    """
    with redis_errors():
        release = str((await redis.info("server"))["redis_version"])
        pool = redis.connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)
        try:
            await connection.connect()
            wishes = [("capa", "eof")]
            if int(release.split(".")[0]) >= _KNOWS_RDB_ONLY:
                wishes.append(("rdb-only", "1"))
            for wish in wishes:
                await connection.send_command("REPLCONF", *wish)
                await connection.read_response()
            await connection.send_command("SYNC")
            return await _receive(connection._reader, file, told)
        finally:
            await connection.disconnect(nowait=True)


async def _receive(reader: Any, file: BinaryIO, told: Callable[[int], None]) -> int:
    line = b"\n"
    while line == b"\n":  # it says that it lives while it prepares
        line = await _in_time(reader.readline())
    if line.startswith(b"-"):
        raise InstructLoopError(
            f"this Redis gives no copy of itself ({line[1:].decode().strip()}): allow SYNC and "
            "REPLCONF to this user, or use the backup of whoever runs it"
        )
    if not line.startswith(b"$"):
        raise Unavailable("Redis broke off before it sent its copy; try again")
    if line.startswith(b"$EOF:"):
        return await _until_mark(reader, line[5 : 5 + _MARK_BYTES], file, told)
    return await _so_many(reader, int(line[1:]), file, told)


async def _until_mark(reader: Any, mark: bytes, file: BinaryIO, told: Callable[[int], None]) -> int:
    """A copy whose length nobody knows ends with the mark that was announced."""
    held, written = b"", 0
    while not held.endswith(mark):
        ready = held[:-_MARK_BYTES]
        written += _write(file, ready, told, first=not written)
        held = held[len(ready) :] + await _piece(reader, _CHUNK)
    return written + _write(file, held[:-_MARK_BYTES], told, first=not written)


async def _so_many(reader: Any, size: int, file: BinaryIO, told: Callable[[int], None]) -> int:
    written = 0
    while written < size:
        piece = await _piece(reader, min(_CHUNK, size - written))
        written += _write(file, piece, told, first=not written)
    return written


def _write(file: BinaryIO, piece: bytes, told: Callable[[int], None], *, first: bool) -> int:
    if first and piece and not _MAGIC.startswith(piece[: len(_MAGIC)]):
        raise InstructLoopError("what Redis sent is no copy of it: is there a proxy in between?")
    try:
        file.write(piece)
        file.flush()
    except OSError as error:  # it is the disk's, not that of a connection
        raise cannot_write("the copy of Redis", error) from None
    told(len(piece))
    return len(piece)


async def _piece(reader: Any, most: int) -> bytes:
    piece: bytes = await _in_time(reader.read(most))
    if not piece:
        raise Unavailable("Redis broke off in the middle of its copy; try again")
    return piece


async def _in_time(reading: Any) -> bytes:
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            said: bytes = await reading
            return said
    except TimeoutError:
        raise Unavailable("Redis stopped sending its copy; try again") from None
