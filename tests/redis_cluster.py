"""A real Redis Cluster on loopback ports: masters that share the slots, and a replica of each."""

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from core.redis_finders import SLOT
from tests.redis_fleet import PASSWORD, SERVER, Node, folder_of, until

_BUS = 10_000  # how far a node's second port is from its first
_SLOTS = 16_384
_CLUSTER = """\
cluster-enabled yes
cluster-node-timeout 1000
cluster-require-full-coverage no
"""


@dataclass
class Cluster:
    """`nodes` are masters, then their replicas in the same order, as they were at first."""

    nodes: list[Node]

    @property
    def url(self) -> str:
        """Ours, with every node as one to ask."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://:{PASSWORD}@{hosts}"

    @property
    def owner(self) -> Node | None:
        """The living master that says that our slot is its own."""
        return next((node for node in self.nodes if _owns(node)), None)

    @property
    def masters(self) -> list[Node]:
        """The living ones that say that they are."""
        return [node for node in self.nodes if node.info.get("role") == "master"]

    @property
    def replicas(self) -> list[Node]:
        """Those that follow the owner and have caught up."""
        info = self.owner.info if self.owner else {}
        online = [said["port"] for said in _replicas(info) if said["state"] == "online"]
        return [node for node in self.nodes if node.port in online]

    def is_well(self) -> bool:
        """Whether every node says so, and knows all others."""
        said = [node.asked("CLUSTER", "INFO") or b"" for node in self.nodes]
        return all(b"cluster_state:ok" in text for text in said)

    def move_slot(self, to: Node) -> Iterator[int]:
        """Give our slot to another master as `redis-cli --cluster reshard` does: a step at a time.

        Yields how many keys have left; ends when every node has been told who the owner is.
        """
        source = self.owner
        to.asked("CLUSTER", "SETSLOT", SLOT, "IMPORTING", id_of(source))
        source.asked("CLUSTER", "SETSLOT", SLOT, "MIGRATING", id_of(to))
        moved = 0
        yield moved
        while keys := source.asked("CLUSTER", "GETKEYSINSLOT", SLOT, 40):
            place = ("127.0.0.1", to.port, "", 0, 5000)
            source.asked("MIGRATE", *place, "AUTH", PASSWORD, "KEYS", *keys)
            moved += len(keys)
            yield moved
        for node in (to, source):
            node.asked("CLUSTER", "SETSLOT", SLOT, "NODE", id_of(to))


@contextmanager
def redis_cluster(*, masters: int = 3, replicas: bool = True, more: str = "") -> Iterator[Cluster]:
    """Servers of their own for a test, ready when it begins; `more` goes into their files."""
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        count = masters * (2 if replicas else 1)
        ports = _ports(count)
        text = SERVER + _CLUSTER + more
        nodes = [Node(folder_of(name, port), port, text) for port in ports]
        for node in nodes:
            _introduce(node, nodes, masters)
        cluster = Cluster(nodes)
        try:
            for node in nodes:
                node.start()
            until(cluster.is_well, what="the Cluster is well")
            if replicas:
                until(lambda: len(cluster.replicas) == 1, what="the owner has its replica")
            yield cluster
        finally:
            for node in nodes:
                node.kill()


def id_of(node: Node) -> str:
    """A Cluster's name for a node."""
    return f"{node.port:040x}"


def _introduce(node: Node, nodes: list[Node], masters: int) -> None:
    """Write what it would know of the others if they had met: that takes them seconds."""
    lines = []
    for number, other in enumerate(nodes):
        master = "-" if number < masters else id_of(nodes[number % masters])
        role = "master" if number < masters else "slave"
        if number < masters:
            first, after = (_SLOTS * n // masters for n in (number, number + 1))
            slots = f" {first}-{after - 1}"
        else:
            slots = ""
        place = f"127.0.0.1:{other.port}@{other.port + _BUS}"
        flags = f"myself,{role}" if other is node else role
        epoch = number % masters + 1
        lines.append(f"{id_of(other)} {place} {flags} {master} 0 0 {epoch} connected{slots}")
    lines.append(f"vars currentEpoch {masters} lastVoteEpoch 0\n")
    (node.folder / "nodes.conf").write_text("\n".join(lines))


def _owns(node: Node) -> bool:
    said = (node.asked("CLUSTER", "NODES") or b"").decode()
    mine = next((line.split() for line in said.splitlines() if "myself" in line), None)
    return mine is not None and "master" in mine[2] and any(map(_has_ours, mine[8:]))


def _has_ours(slots: str) -> bool:
    """`5`, `5-9`, or `[5->-...` of one on its way, which is named as the owner's, too."""
    if slots.startswith("["):
        return False
    first, _, last = slots.partition("-")
    return int(first) <= SLOT <= int(last or first)


def _replicas(info: dict) -> list[dict]:
    return [said for name, said in info.items() if name.startswith("slave") and type(said) is dict]


def _ports(count: int) -> list[int]:
    """Free ones whose second ports are free, too."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12_000, 32_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + _BUS))
            found += [port] if port not in found else []
    return found
