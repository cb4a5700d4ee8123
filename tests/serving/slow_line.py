"""A line to Redis that is slow, or holds what is sent: to a socket here, from there."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class SlowLine:
    """Passes bytes both ways; each command waits first."""

    seconds: float = 0.0
    """How much longer each command takes."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing passes while it is not set."""
    commands: int = 0
    """How many were passed on (what is sent at once is one)."""
    scripts: int = 0

    @asynccontextmanager
    async def between(self, here: Path, there: Path):
        """Listen on `here` for clients of the Redis at `there`."""
        lines: set[asyncio.Task] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            lines.add(asyncio.current_task())
            try:
                back, forth = await asyncio.open_unix_connection(str(there))
                answers = asyncio.create_task(_copy(back, writer))
                await self._commands(reader, forth)
                answers.cancel()
            except (OSError, asyncio.CancelledError):  # the test is over
                writer.close()

        self.open.set()
        here.parent.mkdir(parents=True, exist_ok=True)
        server = await asyncio.start_unix_server(serve, str(here))
        try:
            yield self
        finally:
            server.close()
            self.open.set()
            for line in lines:
                line.cancel()

    async def _commands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            await asyncio.sleep(self.seconds)
            await self.open.wait()
            self.commands += 1
            self.scripts += data.count(b"EVALSHA")
            writer.write(data)
            await writer.drain()
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
