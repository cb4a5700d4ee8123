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

        assert lives()
        process.kill()
        process.wait()
        await eventually(lambda: not lives())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
