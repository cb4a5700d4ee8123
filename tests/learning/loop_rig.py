"""A loop to play with: own Redis, real worker and beat processes, stages that take a second.

The stages are those of tests/learning/stages, started by the same runner as the real ones.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from core import keys, registry
from core.keyring import Keyring
from core.records import Answer, Choice, Completion
from core.redis_client import Redis
from core.settings import Settings
from feedback.labeling import answer_task, next_task
from learning.rounds.folders import Folders
from learning.rounds.publish import publish_base
from tests.conftest import RedisServer

LAUNCHER = "{python} -m tests.learning.stages.play {module} {folder}"
JUROR = "6a" * 16
"""A rater as records have one: a keyed hash."""
USERS = 8
WAIT = 40.0
"""Nothing here takes longer, but on a machine that others keep busy."""


@dataclass
class Rig:
    """One state folder with its processes."""

    state_dir: Path
    server: RedisServer
    learning: dict = field(default_factory=dict)
    promotion: str = "auto"
    processes: list = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        gate = {"min_users": 5, "bootstrap_samples": 500, "require_votes": False}
        learning = {"launcher": LAUNCHER, "gate": gate, **self.learning}
        return Settings(state_dir=self.state_dir, promotion=self.promotion, learning=learning)

    @property
    def folders(self) -> Folders:
        return Folders.of(self.state_dir)

    def start(self, role: str) -> subprocess.Popen:
        """A `worker` or a `beat`, as the command line starts them."""
        options = self.settings.model_dump_json(exclude_defaults=True)
        code = (
            "import json, sys; from core.settings import Settings;"
            f"from learning.worker.tasks import run_{role};"
            f"run_{role}(Settings(**json.loads(sys.argv[1])))"
        )
        with (self.state_dir / f"{role}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "INSTRUCTLOOP_API_KEY": "secret", "VLLM_API_KEY": "secret"},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def stop_all(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def script(self, **stages: dict) -> None:
        """Steer the stages: see tests/learning/stages/play.py."""
        (self.state_dir / "script.json").write_text(json.dumps(stages))

    def starts(self, run_id: str, stage: str) -> list[dict]:
        path = self.folders.stage(run_id, stage) / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self, run_id: str, stage: str) -> str:
        return self.folders.log(run_id, stage).read_text()

    def said(self, role: str) -> str:
        return (self.state_dir / f"{role}.log").read_text()


async def furnish(rig: Rig, redis: Redis) -> None:
    """The first policy, and prompts of several users that evaluation may use."""
    base = rig.state_dir / "base"
    base.mkdir()
    save_file({"layer.weight": np.ones((3, 5), np.float32)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    await publish_base(redis, rig.settings, base)
    prompts = []
    for number in range(2 * USERS):
        token = f"token-{number:02d}".ljust(52, "x")
        prompt = completion(token, user=f"user-{number % USERS}", text=f"prompt {number} " * 20)
        await redis.set(keys.completion(token), prompt.model_dump_json())
        await redis.zadd(keys.prompts(), {token: registry.milliseconds()})
        await redis.sadd(keys.users(), prompt.user)
        prompts.append({"prompt_id": token, "user": prompt.user})
    (rig.state_dir / "prompts.json").write_text(json.dumps(prompts))


def completion(token: str, *, user: str, text: str) -> Completion:
    return Completion(
        token=token,
        id=f"chatcmpl-{token}",
        tenant="default",
        key_id="00000000",
        user=user,
        prompt_tag="0" * 16,
        messages=[{"role": "user", "content": text}],
        choices=(Choice(text="an answer", finish_reason="stop"),),
        policy_versions=("v0000",),
        created_at=time.time(),
        split="validation",
        counted=True,
    )


async def vote_on_all(redis: Redis, settings: Settings) -> int:
    """A held-out rater who likes `well said`; returns how many tasks there were."""
    count = 0
    while task := await next_task(
        redis, tenant="default", rater=JUROR, heldout=True, settings=settings.feedback
    ):
        good = tuple(o.output_id for o in task.outputs if "well" in o.text)
        rest = tuple(o.output_id for o in task.outputs if "well" not in o.text)
        answer = Answer(
            rater=JUROR,
            heldout_rater=True,
            ranking=tuple(tie for tie in (good, rest) if tie),
            answered_at=time.time(),
        )
        await answer_task(
            redis,
            task_id=task.id,
            tenant="default",
            answer=answer,
            reply="{}",
            same=lambda a, b: a.ranking == b.ranking,
        )
        count += 1
    return count


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().replace(") ", " ")
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def make_rig(state_dir: Path, **learning: object) -> Rig:
    """A rig whose Redis runs as `up` starts it: on a socket, with the password of the keyring."""
    password = Keyring(state_dir / "secrets").token("redis.password")
    server = RedisServer(state_dir, password=password)
    server.start()
    return Rig(state_dir, server, learning=dict(learning))
