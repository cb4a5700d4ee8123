"""Start and stop a vLLM server that only we can talk to.

The engine is vLLM's own OpenAI server on a Unix socket, or on a port where gateways are on other
machines, behind core/engine/guard.py, with core/engine/worker.py in its worker. It dies with the
process that started it, leaves no core dump, reports no usage, logs no request and knows no secret
of ours but its two tokens. It knows nothing of versions beyond a name; core/engine/client.py is how
to talk to it.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

from core.engine.address import Address, check_free
from core.engine.client import EngineClient
from core.engine.guard import ON_TCP, POLICY_VERSION, TOKENS_FILE, tokens_file, write_tokens
from core.errors import StartError
from core.process import wrapped

_SOCKET_PATH_BYTES = 107  # the kernel's limit for the address of a Unix socket
_RPC_NAME_BYTES = 37  # a slash and a UUID
_POLL_SECONDS = 0.2
_LOG_TAIL_BYTES = 2000
_CPU_BATCHED_TOKENS = 4096
# variables of the starting process that would open, slow or silence the engine
_NOT_FOR_THE_ENGINE = (
    "VLLM_API_KEY",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    "VLLM_ENABLE_RESPONSES_API_STORE",  # it would keep every response, for ever
    "VLLM_PORT",
    "FORWARDED_ALLOW_IPS",  # with it a header could say where a connection comes from
    "PROMETHEUS_MULTIPROC_DIR",  # the engine has metrics of its own
)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: what it serves, where, for whom, and how much it may take.

    With `listen` it is on that port, and `socket` only says where its files lie.
    `logprobs` says whether reported log-probabilities are of the distribution that was sampled
    from ("processed": after temperature and top-p, as PPO needs them) or of the bare model ("raw").
    `tool_parser` is vLLM's name for the form in which the model writes tool calls, which depends on
    the model; without one (None) a request with tools has to name or require a call. "hermes" is
    the commonest form among open models: JSON between `<tool_call>` tags.
    """

    model: Path
    socket: Path
    served_name: str
    policy_version: str
    data_token: str
    control_token: str
    log: Path
    max_model_len: int = 2048
    max_num_seqs: int = 32
    kv_cache_gib: int = 1
    threads: int = 1
    shutdown_seconds: int = 20
    logprobs: Literal["processed", "raw"] = "processed"
    tool_parser: str | None = "hermes"
    listen: Address | None = None
    more_data_tokens: tuple[str, ...] = ()
    """What opens the same as `data_token`: its neighbours while it is being exchanged."""
    traces_url: str | None = None
    """Where vLLM sends its spans, which continue those of the gateway; None for nowhere."""

    @property
    def tokens_file(self) -> Path:
        """Where the guard finds its tokens; they are on no command line."""
        return tokens_file(self.socket)


def start_engine(spec: EngineSpec, *, idle_priority: bool = False) -> subprocess.Popen[bytes]:
    """Start vLLM and return at once; `wait_until_ready` says when it answers.

    The engine is killed when the thread that called this ends, so call it from one that lives as
    long as the engine should. Raises StartError for what can be known to be wrong before.
    """
    _check(spec)
    spec.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_remains(spec)
    data = (spec.data_token, *spec.more_data_tokens)
    write_tokens(spec.tokens_file, data=data, control=spec.control_token)
    with _open_log(spec.log) as log:
        return subprocess.Popen(
            wrapped(command(spec), idle_priority=idle_priority),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(spec),
            start_new_session=True,  # Ctrl-C is the supervisor's to handle
        )


async def wait_until_ready(
    client: EngineClient,
    process: subprocess.Popen[bytes],
    *,
    timeout: float,
    log: Path | None = None,
    on_wait: Callable[[float], None] | None = None,
) -> float:
    """Return the seconds it took until the engine answered /health.

    `on_wait` is called with the seconds waited so far. Raises StartError when the process ends
    first or the time is up; with `log`, the message carries the log's last lines.
    """
    began = time.monotonic()
    while not await client.health():
        waited = time.monotonic() - began
        if process.poll() is not None:
            raise StartError(
                f"The engine ended with exit code {process.returncode} after {waited:.0f} s, "
                f"before it was ready. {_log_tail(log)}"
            )
        if waited > timeout:
            raise StartError(f"The engine is not ready after {timeout:.0f} s. {_log_tail(log)}")
        if on_wait is not None:
            on_wait(waited)
        await asyncio.sleep(_POLL_SECONDS)
    return time.monotonic() - began


def stop_engine(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """End an engine: requests in flight may finish within the grace, then it is killed.

    Blocks; take the engine out of rotation first, because it refuses new requests from now on.
    """
    if process.poll() is not None:
        return
    process.terminate()
    deadline = time.monotonic() + grace_seconds
    # not reaped yet, so that its process group cannot become somebody else's
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, process.pid, ended) is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    os.killpg(process.pid, signal.SIGKILL)  # the server, and whatever it left behind
    process.wait()


def command(spec: EngineSpec) -> list[str]:
    """The command line of vLLM's server; no secret is on it."""
    flags = [
        *("--model", str(spec.model)),
        *("--served-model-name", spec.served_name),
        *_where(spec),
        *("--middleware", "core.engine.guard.EngineGuard"),
        *("--worker-extension-cls", "core.engine.worker.SwapExtension"),
        *("--dtype", "bfloat16"),
        *("--max-model-len", str(spec.max_model_len)),
        *("--max-num-seqs", str(spec.max_num_seqs)),
        *("--kv-cache-memory-bytes", str(spec.kv_cache_gib << 30)),
        *("--scheduling-policy", "priority"),
        *("--shutdown-timeout", str(spec.shutdown_seconds)),
        *("--logprobs-mode", f"{spec.logprobs}_logprobs"),
        # a repository's generation_config.json must not change what a request asks for
        *("--generation-config", "vllm"),
        "--enable-scale-out",  # /inference/v1/generate: token ids in and out
        "--no-log-error-stack",  # on in dev mode; what it logs quotes the request
        "--disable-uvicorn-access-log",
        *("--uvicorn-log-level", "warning"),
    ]
    if spec.traces_url is not None:
        flags += ["--otlp-traces-endpoint", spec.traces_url]
    if spec.tool_parser is not None:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", spec.tool_parser]
        # else a call that was required may come without its name, or with any arguments
        flags += ["--tool-strict-level", "parameter"]
    if is_cpu_build():
        # the default block of 128 tokens would keep short prompts out of the prefix cache;
        # compiling costs 40 s of start and gains a tenth of throughput
        flags += ["--block-size", "32", "--enforce-eager"]
        # a prompt that is prefilled in parts and carries a seed ends the engine on a CPU, because
        # vLLM then turns back the random generator, which only CUDA's can do
        whole_prompt = max(_CPU_BATCHED_TOKENS, spec.max_model_len)
        flags += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(whole_prompt)]
        # replies in flight keep their caches when weights are exchanged
        flags += ["--scheduler-cls", "core.engine.prefix_cache.scheduler"]
    return [sys.executable, "-m", "core.engine.server", *flags]


def _where(spec: EngineSpec) -> list[str]:
    if spec.listen is None:
        return ["--uds", str(spec.socket)]
    return ["--host", spec.listen.host, "--port", str(spec.listen.port)]


def client_of(spec: EngineSpec) -> EngineClient:
    """A client of the engine on the machine that it runs on, with both tokens."""
    return EngineClient(
        socket=spec.socket if spec.listen is None else None,
        base_url="http://engine" if spec.listen is None else spec.listen.own_url,
        data_token=spec.data_token,
        control_token=spec.control_token,
    )


def environment(spec: EngineSpec) -> dict[str, str]:
    """This process's environment without our own secrets, and with what the engine needs."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("INSTRUCTLOOP_") and name not in _NOT_FOR_THE_ENGINE
    }
    ours = {
        TOKENS_FILE: str(spec.tokens_file),
        POLICY_VERSION: spec.policy_version,
        "VLLM_SERVER_DEV_MODE": "1",  # the control routes; the guard keeps others out
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOG_STATS_INTERVAL": "60",
        "VLLM_RPC_BASE_PATH": str(_rpc_folder(spec)),
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",  # as our other processes
        "OTEL_SERVICE_NAME": "instructloop-vllm",
    }
    if spec.listen is not None:
        ours[ON_TCP] = "1"
    on_cpu = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker inside the engine's process
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(spec.threads),
        # else the first request that asks for log-probabilities waits 20 s for a compiler
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_WAIT_POLICY": "passive",  # threads that spin starve whoever shares the cores
    }
    return inherited | ours | (on_cpu if is_cpu_build() else {})


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed is the one for CPUs."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def _check(spec: EngineSpec) -> None:
    if not (spec.model / "config.json").is_file():
        raise StartError(f"{spec.model} is no model folder: it has no config.json.")
    if spec.listen is None and len(os.fsencode(spec.socket)) > _SOCKET_PATH_BYTES:
        raise StartError(
            f"The socket's path {spec.socket} is longer than {_SOCKET_PATH_BYTES} bytes. "
            "Use a state folder with a shorter path."
        )
    if not spec.data_token or not spec.control_token or spec.data_token == spec.control_token:
        raise StartError("The engine needs two different tokens that are not empty.")
    if spec.listen is not None:
        check_free(spec.listen)


def _rpc_folder(spec: EngineSpec) -> Path:
    """Where vLLM's two processes meet: beside the socket if the path is short enough.

    An engine on a port may have a state folder that machines share, where no socket can be.
    """
    if spec.listen is not None:
        return Path(tempfile.gettempdir())
    beside = spec.socket.with_name(f"{spec.socket.name}.rpc")
    fits = len(os.fsencode(beside)) + _RPC_NAME_BYTES <= _SOCKET_PATH_BYTES
    return beside if fits else Path(tempfile.gettempdir())


def _remove_remains(spec: EngineSpec) -> None:
    """Clear away the sockets of an engine that was killed."""
    if spec.listen is not None:
        return
    spec.socket.unlink(missing_ok=True)
    beside = spec.socket.with_name(f"{spec.socket.name}.rpc")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(mode=0o700)


def _open_log(path: Path) -> TextIOWrapper:
    """Only its owner can read it."""
    return open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))


def _log_tail(log: Path | None) -> str:
    if log is None or not log.is_file():
        return "See its log."
    return (
        f"Its log {log} ends with:\n{log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors='replace')}"
    )
