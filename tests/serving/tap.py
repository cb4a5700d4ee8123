"""A tap on the line between gateway and engine: passes bytes both ways and keeps them."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httptools


@dataclass
class Tap:
    """What engines sent, reply by reply, without HTTP's framing."""

    bodies: list[bytes] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    @asynccontextmanager
    async def on(self, engine: Path, socket: Path):
        """Listen on `socket` for the gateway, and pass on to `engine`."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(str(engine))
            there = asyncio.create_task(self._copy(reader, upstream_writer, None))
            await self._copy(upstream_reader, writer, httptools.HttpResponseParser(_Bodies(self)))
            there.cancel()

        server = await asyncio.start_unix_server(serve, str(socket))
        try:
            yield f"unix:{socket}"
        finally:
            server.close()

    async def _copy(self, reader, writer, parser) -> None:
        try:
            while data := await reader.read(1 << 16):
                if parser is None:
                    self.requests.append(data)
                else:
                    parser.feed_data(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


class _Bodies:
    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def on_message_begin(self) -> None:
        self.tap.bodies.append(b"")

    def on_body(self, data: bytes) -> None:
        self.tap.bodies[-1] += data
