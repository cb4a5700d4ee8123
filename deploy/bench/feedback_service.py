"""A gateway with its own Redis that a measurement may kill with -9 and start again.

Redis syncs every write, as in production; the gateway is one worker on a port that stays the same.
Completions come from an engine that answers at once. Knows processes; knows no loads.
"""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core import ids, keys
from core.errors import StartError
from core.keyring import Keyring
from core.process import wrapped
from core.records import ApiKey, Choice, Completion, KeyLimits
from core.redis_client import connect, local_redis_url
from deploy.bench.targets import GATEWAY, Target, end_process, free_port, listening, prepare
from deploy.redis_server import redis_command

_PASSWORD = "bench"
_PROMPT_TAG = "0011223344556677"
_NO_LIMITS = KeyLimits(**dict.fromkeys(KeyLimits.model_fields, 0))
"""What a killed gateway had leased of a limit comes back after seconds: not what is measured."""
_ID_PREFIX = "chatcmpl-"


@dataclass(slots=True)
class FeedbackService:
    """The two processes."""

    folder: Path
    port: int
    engine: Target
    key: ApiKey = field(init=False)
    secret: str = field(init=False, repr=False)
    _redis: "subprocess.Popen[bytes]" = field(init=False)
    _gateway: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def redis_url(self) -> str:
        """Where Redis listens."""
        return local_redis_url(self.folder, _PASSWORD)

    @property
    def gateway(self) -> Target:
        """The gateway, as it runs now."""
        return Target(GATEWAY, f"127.0.0.1:{self.port}", self._gateway.pid)

    @property
    def redis(self) -> Target:
        """Redis, as it runs now."""
        return Target("redis", self.redis_url, self._redis.pid)

    @property
    def keyring(self) -> Keyring:
        """The secrets of this service."""
        return Keyring(self.folder / "secrets")

    def start(self) -> None:
        """Start both. Raises StartError."""
        self.start_redis()
        ready = prepare(
            self.redis_url,
            f"http://{self.engine.address}",
            scopes=("complete", "feedback"),
            limits=_NO_LIMITS,
        )
        self.key, self.secret = asyncio.run(ready)
        self.start_gateway()
        listening(GATEWAY, self.port, self._gateway)

    def stop(self) -> None:
        """End what runs."""
        for name in ("_gateway", "_redis"):
            if (process := getattr(self, name, None)) is not None:
                end_process(process)

    def start_redis(self) -> None:
        """Start Redis, without waiting. From the thread that lives as long as it should."""
        with (self.folder / "redis.log").open("ab") as log:
            self._redis = subprocess.Popen(
                wrapped(redis_command(self.folder, _PASSWORD)), stdout=log, stdin=subprocess.DEVNULL
            )

    def start_gateway(self) -> None:
        """Start the gateway, without waiting. From the thread that lives as long as it should."""
        role = ["gateway", str(self.folder), self.redis_url, str(self.port)]
        with (self.folder / "gateway.log").open("ab") as log:
            self._gateway = subprocess.Popen(
                wrapped([sys.executable, "-m", "deploy.bench.child", *role]),
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def kill_redis(self) -> None:
        """kill -9, and start it again."""
        self._redis.kill()
        self._redis.wait()
        self.start_redis()

    def kill_gateway(self) -> None:
        """kill -9, and start it again."""
        self._gateway.kill()
        self._gateway.wait()
        self.start_gateway()

    def mint(self) -> str:
        """The id of an answer that the log does not have: what a reply's id looks like."""
        return _ID_PREFIX + ids.new_token(
            self.keyring.key("mac"),
            tenant=self.key.tenant,
            key_id=self.key.id,
            choices=1,
            stored=True,
            tag=_PROMPT_TAG,
        )

    async def log_completions(self, count: int) -> list[str]:
        """Put so many answers into the log, as ingest does; returns their ids."""
        names = [self.mint() for _ in range(count)]
        async with connect(self.redis_url) as redis:
            for name in names:
                record = self._logged(name)
                text = record.model_dump_json(exclude_defaults=True)
                await redis.set(keys.completion(record.token), text)
        return names

    def _logged(self, name: str) -> Completion:
        question = "What is the capital of France, and what is it known for?"
        answer = (
            "The capital of France is Paris. It lies on the Seine and is known for its museums."
        )
        return Completion(
            token=ids.token_of(name),
            id=name,
            tenant=self.key.tenant,
            key_id=self.key.id,
            user=self.keyring.hashed(self.key.tenant, "user", uuid.uuid4().hex),
            prompt_tag=_PROMPT_TAG,
            messages=[{"role": "user", "content": question}],
            choices=(Choice(text=answer, finish_reason="stop", tokens=20),),
            policy_versions=("v0000",),
            created_at=1_790_000_000.0,
            sampling={"max_tokens": 32, "n": 1, "prompt_tokens": 31, "completion_tokens": 20},
            split="train",
            counted=True,
        )


@contextmanager
def feedback_service(folder: Path, engine: Target) -> Iterator[FeedbackService]:
    """The service for the length of a `with` block. Raises StartError."""
    folder.mkdir()
    service = FeedbackService(folder, free_port(), engine)
    try:
        service.start()
        yield service
    except StartError as error:
        log = folder / "gateway.log"
        tail = log.read_text().splitlines()[-3:] if log.exists() else []
        raise StartError(" ".join([error.message, *tail])) from None
    finally:
        service.stop()
