"""Real Redis servers on loopback ports: a master, replicas that follow it, Sentinels that watch."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

from deploy.redis_server import find_redis_server

PASSWORD = "fleet"
SERVICE = "records"
SERVER = f"""\
bind 127.0.0.1
requirepass {PASSWORD}
masterauth {PASSWORD}
appendonly yes
appendfsync always
maxmemory-policy noeviction
save ""
repl-diskless-sync yes
repl-diskless-sync-delay 0
repl-ping-replica-period 1
"""
_SENTINEL = f"""\
bind 127.0.0.1
sentinel monitor {SERVICE} 127.0.0.1 {{master}} 2
sentinel auth-pass {SERVICE} {PASSWORD}
sentinel down-after-milliseconds {SERVICE} 500
sentinel failover-timeout {SERVICE} 4000
sentinel parallel-syncs {SERVICE} 2
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Node:
    """A server, or a Sentinel, with a folder of its own; it may be killed and started again."""

    folder: Path
    port: int
    text: str
    options: Sequence[str] = ()
    process: subprocess.Popen | None = field(default=None)

    def start(self) -> None:
        path = self.folder / "redis.conf"
        if not path.exists():  # a Sentinel writes into its own what it has learnt
            path.write_text(f"port {self.port}\ndir {self.folder}\n{self.text}")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [find_redis_server(), str(path), *self.options], stdout=log, stderr=log
            )
        until(lambda: self.asked("PING"), what=f"port {self.port} answers")

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def asked(self, *command: str | int):
        """What it says to a command; None when it does not answer."""
        password = None if "--sentinel" in self.options else PASSWORD
        try:
            with redis.Redis(port=self.port, password=password, socket_timeout=2) as client:
                return client.execute_command(*command)
        except (redis.ConnectionError, redis.TimeoutError):
            return None

    @property
    def info(self) -> dict:
        """`INFO replication`, empty when it does not answer."""
        return self.asked("INFO", "replication") or {}


@dataclass
class Fleet:
    """One master and its replicas; `nodes[0]` was the master at first."""

    nodes: list[Node]
    sentinels: list[Node]

    @property
    def url(self) -> str:
        """Ours, by the Sentinels, or that of the first node."""
        if not self.sentinels:
            return f"redis://:{PASSWORD}@127.0.0.1:{self.nodes[0].port}/0"
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels)
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0"

    @property
    def master(self) -> Node:
        """The living one that says it is the master; by the Sentinels, if there are some."""
        if not self.sentinels:
            return self.nodes[0]
        said = self.sentinels[0].asked("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(node for node in self.nodes if node.port == int(said[1]))

    def has_replicas(self, count: int) -> bool:
        """Whether so many have caught up with the master."""
        info = self.master.info
        states = [info.get(f"slave{n}", {}).get("state") for n in range(len(self.nodes))]
        return states.count("online") == count

    def fail_over(self) -> Node:
        """Let another be the master, with all alive; returns the one that was."""
        before = self.master

        def accepted() -> bool:
            try:
                return bool(self.sentinels[0].asked("SENTINEL FAILOVER", SERVICE))
            except redis.ResponseError:  # it does not know the replica well enough yet
                return False

        until(accepted, what="the failover begins")
        until(lambda: self.master is not before, what="there is a new master")
        return before

    def stop(self) -> None:
        for node in (*self.sentinels, *self.nodes):
            node.kill()


@contextmanager
def redis_fleet(*, replicas: int, sentinels: int = 0) -> Iterator[Fleet]:
    """Servers of their own for a test, ready when it begins."""
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        ports = free_ports(1 + replicas + sentinels)
        master = ports[0]
        follow = f"replicaof 127.0.0.1 {master}\n"
        servers = [
            Node(folder_of(name, port), port, SERVER + (follow if port != master else ""))
            for port in ports[: 1 + replicas]
        ]
        watching = [
            Node(folder_of(name, port), port, _SENTINEL.format(master=master), ["--sentinel"])
            for port in ports[1 + replicas :]
        ]
        fleet = Fleet(servers, [])
        try:
            for node in servers:
                node.start()
            until(lambda: fleet.has_replicas(replicas), what="the replicas follow")
            fleet.sentinels = watching
            for node in watching:
                node.start()
            for node in watching:
                until(
                    lambda node=node: _knows(node, replicas, sentinels),
                    what="the Sentinels know each other and the replicas",
                )
            yield fleet
        finally:
            Fleet(servers, watching).stop()


def _knows(sentinel: Node, replicas: int, sentinels: int) -> bool:
    with redis.Redis(port=sentinel.port, socket_timeout=2) as client:
        state = client.sentinel_masters()[SERVICE]
    return (state["num-other-sentinels"], state["num-slaves"]) == (sentinels - 1, replicas)


def folder_of(name: str, port: int) -> Path:
    """A new one, for one server."""
    folder = Path(name) / str(port)
    folder.mkdir()
    return folder


def until(condition, *, what: str, seconds: float = 20.0) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"within {seconds} s not: {what}"
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a server is there, and lets us in."""
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
