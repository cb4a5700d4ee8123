import json
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.engine import launch
from core.engine.address import Address
from core.engine.client import EngineClient
from core.engine.guard import ON_TCP
from core.engine.launch import EngineSpec, command, environment, start_engine, stop_engine
from core.errors import StartError


@pytest.fixture
def spec(tmp_path) -> EngineSpec:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return EngineSpec(
        model=model,
        socket=tmp_path / "run" / "e.sock",
        served_name="instructloop",
        policy_version="v0007",
        data_token="data-secret",
        control_token="control-secret",
        log=tmp_path / "e.log",
    )


def test_no_secret_is_on_the_command_line_or_in_the_environment(spec):
    seen = " ".join(command(spec)) + json.dumps(environment(spec))
    assert "data-secret" not in seen
    assert "control-secret" not in seen


def test_the_engine_inherits_no_secret_of_ours_and_no_switch_that_opens_or_logs(spec, monkeypatch):
    monkeypatch.setenv("INSTRUCTLOOP_REDIS_URL", "redis://:password@example/0")
    monkeypatch.setenv("VLLM_API_KEY", "key")
    monkeypatch.setenv("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "1")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
    given = environment(spec)
    assert "VLLM_ENABLE_RESPONSES_API_STORE" not in given
    assert "INSTRUCTLOOP_REDIS_URL" not in given
    assert "VLLM_API_KEY" not in given
    assert "VLLM_DEBUG_LOG_API_SERVER_RESPONSE" not in given
    assert given["LD_LIBRARY_PATH"] == "/opt/lib"
    assert given["INSTRUCTLOOP_POLICY_VERSION"] == "v0007"


def test_a_gpu_build_gets_neither_the_cpu_variables_nor_eager_mode(spec, monkeypatch):
    monkeypatch.setattr(launch, "is_cpu_build", lambda: True)
    assert "--enforce-eager" in command(spec)
    assert environment(spec)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    monkeypatch.setattr(launch, "is_cpu_build", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "--enforce-eager" not in command(spec)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment(spec)
    assert "OMP_NUM_THREADS" not in environment(spec)


def test_tools_are_parsed_in_the_form_that_the_spec_says_or_not_at_all(spec):
    flags = command(spec)
    assert flags[flags.index("--tool-call-parser") + 1] == "hermes"
    assert "--enable-auto-tool-choice" in flags
    assert "--enable-auto-tool-choice" not in command(replace(spec, tool_parser=None))


def test_rpc_sockets_lie_beside_the_engine_s_unless_the_path_is_too_long(spec):
    short = replace(spec, socket=Path("/tmp/run/e.sock"))
    assert environment(short)["VLLM_RPC_BASE_PATH"] == "/tmp/run/e.sock.rpc"
    long = replace(spec, socket=Path("/tmp") / ("x" * 90) / "e.sock")
    assert len(environment(long)["VLLM_RPC_BASE_PATH"]) < 60


def test_on_a_port_it_has_no_socket_and_the_guard_is_told(spec, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert ON_TCP not in environment(spec)
    assert command(spec)[5:9:2] == ["--served-model-name", "--uds"]
    away = replace(spec, listen=Address("0.0.0.0", 8100), socket=Path("/" + "x" * 200 + "/e.sock"))
    flags = command(away)
    assert "--uds" not in flags
    assert flags[flags.index("--host") + 1] == "0.0.0.0"
    assert flags[flags.index("--port") + 1] == "8100"
    assert environment(away)[ON_TCP] == "1"
    assert "FORWARDED_ALLOW_IPS" not in environment(away)
    assert "x" * 200 not in environment(away)["VLLM_RPC_BASE_PATH"]


def test_a_port_in_use_is_refused_before_anything_is_written(spec):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartError, match="INSTRUCTLOOP_ENGINE__LISTEN"):
            start_engine(replace(spec, listen=address))
    assert not spec.log.exists()


def test_what_cannot_start_is_refused_before_anything_is_written(spec, tmp_path):
    for wrong in (
        replace(spec, model=tmp_path / "nowhere"),
        replace(spec, socket=tmp_path / ("x" * 120) / "e.sock"),
        replace(spec, data_token=""),
        replace(spec, data_token="same", control_token="same"),
    ):
        with pytest.raises(StartError):
            start_engine(wrong)
    assert not spec.socket.parent.exists()
    assert not spec.log.exists()


@pytest.fixture
def stand_in(monkeypatch):
    """Runs a script in vLLM's place."""

    def use(script: str) -> None:
        monkeypatch.setattr(launch, "command", lambda _: [sys.executable, "-c", script])

    return use


def test_tokens_and_log_are_private_and_the_remains_of_a_killed_engine_are_cleared(spec, stand_in):
    stand_in("print('hello from the engine')")
    spec.socket.parent.mkdir()
    spec.socket.write_text("left over")
    rpc = Path(f"{spec.socket}.rpc")
    rpc.mkdir()
    (rpc / "left-over").touch()
    process = start_engine(spec)
    assert process.wait(20) == 0
    assert not spec.socket.exists()
    assert list(rpc.iterdir()) == []
    assert json.loads(spec.tokens_file.read_text()) == {
        "data": ["data-secret"],
        "control": "control-secret",
    }
    assert spec.log.read_text() == "hello from the engine\n"
    for private in (spec.tokens_file, spec.log):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600


async def test_an_engine_that_ends_before_it_is_ready_is_reported_with_its_last_words(
    spec, stand_in
):
    stand_in("import sys; sys.exit('no such model')")
    process = start_engine(spec)
    tokens = {"data_token": spec.data_token, "control_token": spec.control_token}
    async with EngineClient(socket=spec.socket, **tokens) as client:
        with pytest.raises(StartError, match="(?s)exit code 1.*no such model") as caught:
            await launch.wait_until_ready(client, process, timeout=20, log=spec.log)
    assert "before it was ready" in caught.value.message


async def test_an_engine_that_is_not_ready_in_time_is_reported(spec, stand_in):
    stand_in("import time; time.sleep(60)")
    process = start_engine(spec)
    waits: list[float] = []
    tokens = {"data_token": spec.data_token, "control_token": spec.control_token}
    async with EngineClient(socket=spec.socket, **tokens) as client:
        with pytest.raises(StartError, match="not ready after 0 s"):
            await launch.wait_until_ready(client, process, timeout=0.3, on_wait=waits.append)
    stop_engine(process, 0)
    assert waits
    assert waits == sorted(waits)


IGNORES_SIGTERM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_stopping_kills_what_does_not_end_by_itself_and_its_children(spec, stand_in):
    stand_in(IGNORES_SIGTERM)
    process = start_engine(spec)
    while not spec.log.read_text().endswith("\n"):
        assert process.poll() is None
        time.sleep(0.01)
    child = int(spec.log.read_text())
    stop_engine(process, 0.3)
    assert process.returncode == -9
    assert gone(child)


def test_stopping_an_engine_that_has_ended_does_nothing(spec, stand_in):
    stand_in("pass")
    process = start_engine(spec)
    process.wait(20)
    stop_engine(process, 10)
    assert process.returncode == 0


def gone(pid: int) -> bool:
    """Whether a process that was killed is gone, or a zombie of somebody else's."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        stat_file = Path(f"/proc/{pid}/stat")
        try:
            if stat_file.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_the_installed_vllm_knows_every_flag_that_the_command_uses(spec):
    """Against vLLM's own parser, which refuses what it does not know."""
    script = (
        "import sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "args = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])\n"
        "print(args.uds, args.middleware, args.generation_config)\n"
    )
    flags = command(spec)[3:]
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(spec.socket), "['core.engine.guard.EngineGuard']", "vllm"]
