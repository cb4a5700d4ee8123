"""The service that a demonstration turns: its settings, its start and stop, and its keys.

`instructloop up`, as anybody would start it, on a state folder and a port of its own. Knows
nothing of prompts, raters or phases; deploy/demo/run.py runs the phases against it.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx

from core.auth import create_key
from core.errors import StartError
from core.redis_client import connect, redis_url
from core.setting_groups import LogSettings
from core.settings import PREFIX, Settings
from deploy.simulate.judges import Judge
from deploy.simulate.raters import rater_names

READY_SECONDS = 300
HELDOUT_RATERS = 4
SPLIT = LogSettings(validation_share=0.25, test_share=0.0, split_by_prompt_under_users=0)
"""The test prompts of the demonstration are never logged, so nobody needs a share for them."""


def demo_environment(
    taste: Judge, *, seed: int, state: Path, redis_url: str | None
) -> dict[str, str]:
    """Settings of the demonstration: a round only when asked, promotion by the gate alone."""
    ours = {
        "STATE_DIR": str(state),
        "SECRETS_DIR": str(state / "secrets"),
        "PROFILE": "cpu-small",
        "PROMOTION": "auto",
        "FEEDBACK__HELDOUT_RATERS": json.dumps(["heldout-*"]),
        "LOG__VALIDATION_SHARE": str(SPLIT.validation_share),
        "LOG__TEST_SHARE": str(SPLIT.test_share),
        "LOG__SPLIT_BY_PROMPT_UNDER_USERS": str(SPLIT.split_by_prompt_under_users),
        "LEARNING__SEED": str(seed),
        "LEARNING__MIN_NEW_COMPARISONS": "1000000000",
        "LEARNING__INTERVAL_SECONDS": "1000000000",
        "LEARNING__POLICY__MAX_NEW_TOKENS": str(taste.max_tokens),
        "LEARNING__EVALUATION__MAX_NEW_TOKENS": str(taste.max_tokens),
    }
    if redis_url:
        ours["REDIS_URL"] = redis_url
    inherited = {k: v for k, v in os.environ.items() if k not in {PREFIX + name for name in ours}}
    return inherited | {PREFIX + name: value for name, value in ours.items()}


def fix_user_hashes(state: Path, seed: int) -> None:
    """Users are split by a keyed hash; a key made from the seed makes the split repeatable."""
    secrets = state / "secrets"
    secrets.mkdir(parents=True, mode=0o700)
    with open(os.open(secrets / "user.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(hashlib.sha256(f"demonstration {seed}".encode()).digest())


@contextlib.contextmanager
def running_service(
    environment: Mapping[str, str], port: int, state: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """`instructloop up`, stopped at the end as Ctrl-C would."""
    with (state / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy", "up", "--port", str(port)],
            env=dict(environment),
            cwd=state,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def wait_until_ready(url: str, service: "subprocess.Popen[bytes]") -> None:
    """Until the service answers. Raises StartError when it ends before, or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            if service.poll() is not None:
                raise StartError("the service did not start: see up.log in its state folder")
            if time.monotonic() > deadline:
                raise StartError(f"the service was not ready after {READY_SECONDS} s")
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def service_client(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key, for as many requests at a time as the phases make."""
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=300, limits=limits
    ) as client:
        yield client


async def label_keys(state: Path) -> dict[str, str]:
    """A key for each held-out rater, as ops would hand them out: names to secrets."""
    settings = Settings(state_dir=state)
    async with connect(os.environ.get(PREFIX + "REDIS_URL") or redis_url(settings)) as redis:
        return {
            name: (await create_key(redis, name=name, tenant="default", scopes=("label",)))[1]
            for name in rater_names(0, HELDOUT_RATERS)[1]
        }


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
