"""Writes the fixture of the schema that this checkout has: `python -m tests.upgrade.write`.

A release that changes the schema runs it on the checkout of the release before, unless its fixture
is there already: docs/install.md says how.
"""

import asyncio
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from core.redis_client import connect
from core.schema import SCHEMA
from tests.conftest import RedisServer
from tests.upgrade import golden
from tests.upgrade.installation import answers, fill, settings_of

_NOT_OURS = ("redis", "base", "logs", "engine.sock")


async def main(out: Path) -> None:
    """A Redis and a state folder of their own, filled, read and written down."""
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        state = Path(folder) / "state"
        server = RedisServer(Path(folder) / "server")
        server.state_dir.mkdir()
        server.start()
        try:
            async with connect(server.url) as redis:
                settings = settings_of(state, server.url)
                told = await fill(redis, settings)
                about = {"schema": SCHEMA, "release": version("instructloop"), "now": time.time()}
                about |= told
                said = await answers(redis, settings, about)
                written = golden.Golden(about, said)
                written.keys = await golden.keys_of(redis)
        finally:
            server.kill()
        written.files = list(golden.files_of(state, *_NOT_OURS))
    golden.write(out, written)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else golden.fixture(SCHEMA)))
