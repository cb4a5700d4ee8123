"""An installation to back up: a state folder with a Redis on it, and what to compare of two."""

import hashlib
import os
import time
from pathlib import Path

from core import audit_log, keys, registry
from core.keyring import Keyring
from core.redis_client import connect
from core.schema import SCHEMA
from core.settings import Settings
from deploy.backup import make_backup
from learning.rounds.folders import Folders
from learning.rounds.publish import place_version
from tests.conftest import RedisServer
from tests.deploy.backup_child import quiet
from tests.feedback.factory import api_key, entry, put
from tests.feedback.test_snapshot import World
from tests.learning.test_publish import fields, model_folder

ADMIN = "il-admin-secret"


class Installation:
    """A state folder with a Redis on it, and somebody in both."""

    def __init__(self, state_dir: Path) -> None:
        self.settings = Settings(state_dir=state_dir, log={"pii_second_tier": False})
        self.keyring = Keyring(state_dir / "secrets")
        self.server = RedisServer(state_dir, self.keyring.token("redis.password"))

    async def fill(self) -> dict[str, str]:
        state = self.settings.state_dir
        folders, base = Folders.of(state), model_folder(state / "base")
        async with connect(self.server.url) as redis:
            await redis.set(keys.schema(), SCHEMA)
            await redis.hset(keys.api_keys(), "0a0b0c0d", api_key().model_dump_json())
            world = World(redis, self.keyring, self.settings)
            at = time.time() - 60
            ann = await world.ask("Who is ann?", "Me.", "You.", at=at)
            bob = await world.ask("Name a lake.", "Como", "Garda", user="bob", at=at)
            await world.rank("r1", [(ann, 0)], [(ann, 1)], at=at)
            await world.rate("bob", bob, 0, at=at, thumb="up")
            card = place_version(
                folders,
                self.keyring,
                model=base,
                fields=fields("v0000") | {"parent": None},
                owner=1,
                trained_on={},
            )
            token = await registry.acquire_fence(redis)
            await registry.publish(redis, card, fencing_token=token)
            await registry.promote(redis, "v0000", who="a test", why="to see")
            await audit_log.mirror(redis, self.keyring, state)
            await put(redis, self.keyring, entry(self.keyring, prompt="late?"))
            rm = state / "reward_models" / "rm0001"
            rm.mkdir(parents=True)
            (rm / "card.json").write_text("{}")
            for name in ("logs", "runs/r1/policy/checkpoint", "policies/v0009"):
                (state / name).mkdir(parents=True)
                (state / name / "x").write_text("not in it")
            with open(os.open(state / "admin.key", os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
                file.write(ADMIN)
        return {"ann": ann, "bob": bob}

    async def back_up(self, out: Path):
        async with connect(self.server.url) as redis:
            return await make_backup(redis, self.settings, out, quiet)


async def dumps(url: str) -> dict[bytes, object]:
    """Every key with its value as Redis itself writes it; what has no order without one."""
    async with connect(url) as redis:
        read = {b"set": redis.smembers, b"hash": redis.hgetall}
        names = [name async for name in redis.scan_iter(count=1000)]
        return {name: await read.get(await redis.type(name), redis.dump)(name) for name in names}


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
