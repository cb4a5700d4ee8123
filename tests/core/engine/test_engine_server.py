"""What is left of an engine whose server is killed: nothing, from its first moment on."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from deploy.document import ROOT
from tests.conftest import eventually

SERVER = """
import multiprocessing, sys, time

class LongImport:
    def __call__(self):
        pass
    def __reduce__(self):
        return time.sleep, (60,)

def main():
    child = multiprocessing.get_context("spawn").Process(target=LongImport())
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def vllm(tmp_path):
    """In vLLM's place: a server whose engine needs a minute until it runs its first line."""
    folder = tmp_path
    for name in ("vllm", "entrypoints", "launchers", "api_server"):
        folder = folder / name
        folder.mkdir()
        (folder / "__init__.py").touch()
    (folder / "entry.py").write_text(SERVER)
    return tmp_path


ORPHAN = """
import os, time
from core.engine.server import end_with_server
server = os.getpid()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    while os.getppid() == server:
        time.sleep(0.01)
    end_with_server()
time.sleep(60)
"""


async def test_an_engine_whose_dead_server_nobody_has_missed_yet_ends():
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHAN],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        engine = int(process.stdout.readline())

        def lives() -> bool:
            with suppress(OSError), open(f"/proc/{engine}/cmdline", "rb") as file:
                return b"end_with_server" in file.read()
            return False

        assert lives()
        process.kill()
        await eventually(lambda: not lives())  # the server is not waited for: it is a zombie
        assert process.returncode is None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


async def test_an_engine_that_is_still_importing_dies_with_its_server(vllm):
    process = subprocess.Popen(
        [sys.executable, "-m", "core.engine.server"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{vllm}:{ROOT}"},
        start_new_session=True,
    )
    try:
        engine = int(process.stdout.readline())
        command = f"/proc/{engine}/cmdline"

        def lives() -> bool:
            with suppress(OSError), open(command, "rb") as file:
                return b"spawn_main" in file.read()
            return False

        await eventually(lives)  # its command line is empty for a moment
        process.kill()
        process.wait()
        await eventually(lambda: not lives())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
