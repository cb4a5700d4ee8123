"""Every log of a whole service: lines with fields and ids, and nothing that anybody wrote.

A real service (Redis, gateway, worker, beat) before an engine double, at `debug` and with a line
for each request, so that it says as much as it ever can.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from core.settings import PREFIX
from deploy.demo.service import free_port
from tests.conftest import eventually
from tests.serving.engine_double import EngineDouble

pytestmark = pytest.mark.timeout(120)
MARK = "zebra-marker"
CHAT = {
    "model": "instructloop",
    "messages": [{"role": "user", "content": f"{MARK}-prompt ann.{MARK}@example.org"}],
    "user": f"{MARK}-user",
    "metadata": {"tag": f"{MARK}-tag"},
}


@asynccontextmanager
async def service(folder: Path, engine_url: str):
    """`instructloop up` in front of an engine; gives its port and state folder."""
    state, port = folder / "s", free_port()
    told = {"LOG_LEVEL": "debug", "GATEWAY__ACCESS_LOG": "true", "LOG_FORMAT": "auto"}
    with (folder / "stdout").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy", "up", "--engine-url", engine_url]
            + ["--port", str(port), "--state-dir", str(state)],
            env=os.environ | {PREFIX + name: value for name, value in told.items()},
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            await eventually(lambda: _ready(http, process, folder), seconds=60, every=0.1)
            key = (state / "admin.key").read_text().strip()
            http.headers["Authorization"] = f"Bearer {key}"
            yield http, state, key
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)


async def _ready(http: aiohttp.ClientSession, process: subprocess.Popen, folder: Path) -> bool:
    assert process.poll() is None, (folder / "stdout").read_text()
    try:
        return (await http.get("/readyz")).status == 200
    except aiohttp.ClientError:
        return False


async def _post(http: aiohttp.ClientSession, path: str, body, **options) -> tuple[int, dict]:
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    async with http.post(path, **sent, **options) as reply:
        return reply.status, json.loads(await reply.read() or b"{}")


async def _use(http: aiohttp.ClientSession) -> None:
    """What goes well, and what clients do wrong."""
    status, said = await _post(http, "/v1/chat/completions", CHAT)
    assert status == 200
    feedback = {
        "completion_id": said["id"],
        "rating": 6,
        "comment": f"{MARK}-comment",
        "rater": f"{MARK}-rater",
    }
    assert (await _post(http, "/v1/feedback", feedback))[0] == 201
    text = {"prompt": f"{MARK}-question", "text": f"{MARK}-answer", "rater": f"{MARK}-rater"}
    assert (await _post(http, "/v1/demonstrations", text))[0] == 201
    for path, body in (
        ("/v1/chat/completions", f'{{"messages": "{MARK}-broken'.encode()),
        ("/v1/chat/completions", {**CHAT, f"{MARK}-field": 1}),
        ("/v1/chat/completions", {**CHAT, "model": f"instructloop@{MARK}"}),
        ("/v1/feedback", {**feedback, "rating": f"{MARK}-rating"}),
        ("/v1/feedback", b"\xff" + MARK.encode()),
        (f"/v1/{MARK}-path", {}),
    ):
        assert 400 <= (await _post(http, path, body))[0] < 500
    assert (await http.get(f"/v1/users/{MARK}-user/data?q={MARK}-query")).status == 200
    wrong = {"Authorization": f"Bearer il-{MARK}-{MARK}-key"}
    assert (await _post(http, "/v1/chat/completions", CHAT, headers=wrong))[0] == 401


def _lines(state: Path, name: str) -> list[dict]:
    return [json.loads(raw) for raw in (state / "logs" / f"{name}.log").read_text().splitlines()]


async def test_no_log_of_the_service_holds_what_people_or_clients_wrote():
    double = EngineDouble()
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        folder = Path(name)
        async with double.listening() as url, service(folder, url) as (http, state, key):
            await _use(http)
            await eventually(lambda: _ingested(http), seconds=60, every=0.2)
            double.cut_after, double.status = 0, 500
            assert (await _post(http, "/v1/chat/completions", CHAT))[0] >= 500
        written = {path.name: path.read_text() for path in (state / "logs").iterdir()}
        written["stdout"] = (folder / "stdout").read_text()
        assert {"gateway.log", "worker.log", "beat.log", "up.log", "redis.log"} <= written.keys()
        for name, text in written.items():
            assert MARK not in text, name
            assert key not in text, name
            assert (state / "secrets" / "redis.password").read_text().strip() not in text, name
        for process in ("gateway", "worker", "beat", "up"):
            said = _lines(state, process)
            assert said, process
            assert {one["process"] for one in said} == {process}
            assert all(one["time"] and one["message"] and one["level"] for one in said)
        _check_access(_lines(state, "gateway"))


async def _ingested(http: aiohttp.ClientSession) -> bool:
    async with http.get("/metrics") as reply:
        text = await reply.text()
    return "instructloop_prompts_total{" in text


def _check_access(lines: list[dict]) -> None:
    """One line for each request, by its route, with an id and the key's id."""
    requests = [one for one in lines if one["message"] == "request"]
    posted = [one for one in requests if one["route"] == "/v1/chat/completions"]
    assert [one["status"] for one in posted][:4] == [200, 400, 400, 404]
    assert posted[0]["key_id"]
    assert posted[0]["seconds"] > 0
    assert len({one["request_id"] for one in requests}) == len(requests)
    assert {one["route"] for one in requests} >= {"none", "/v1/users/{user:path}/data"}
