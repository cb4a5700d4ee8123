"""What an engine agent knows between two looks. Holds no rules: serving/agent.py has them."""

import asyncio
import secrets
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import Literal

from core.engine.address import Address, read_listen
from core.engine.client import EngineClient
from core.engine.progress import Progress
from core.keyring import Keyring
from core.policy_copies import Copies
from core.redis_client import Redis
from core.settings import Settings

State = Literal["starting", "ready", "swapping", "failed", "draining"]
MAX_ATTEMPTS = 3
"""So often an engine may fail with a version before this replica gives it up."""


@dataclass(slots=True)
class Agent:
    """One engine and the agent that owns it. Times are on the monotonic clock unless said."""

    name: str
    settings: Settings
    keyring: Keyring
    redis: Redis
    socket: Path
    """Where the engine listens, unless the settings give it a port; its files lie beside it."""
    wanted: str | None = None
    """What it should serve, as of the last look."""
    serving: str = ""
    """The version in the engine; empty while none is proven."""
    checksums: dict[str, str] = field(default_factory=dict)
    """Of the parameters of what it serves, as they were right after loading."""
    state: State = "starting"
    detail: str = ""
    probed_at: float | None = None
    """In seconds since 1970: when it last proved to hold its version."""
    process: "subprocess.Popen[bytes] | None" = None
    client: EngineClient | None = None
    failures: int = 0
    """Starts that failed, one after the other."""
    attempts: dict[str, int] = field(default_factory=dict)
    """How often the engine failed with a version, since another was wanted last."""
    unfetched: dict[str, int] = field(default_factory=dict)
    """Versions that could not be brought to this machine, and how often in a row."""
    not_before: float = 0.0
    """When to try the next swap."""
    refused: set[str] = field(default_factory=set)
    """Bad versions: never loaded again."""
    condemned: dict[str, str] = field(default_factory=dict)
    """Those of them that Redis does not know of yet, and why."""
    progress: Progress = field(default_factory=Progress)
    progress_at: float = 0.0
    """When to look for progress again."""
    attestation: "asyncio.Task[str] | None" = None
    attest_at: float = 0.0
    """When to prove again what it serves."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    superseded: str = ""
    """Who else speaks for this name now."""
    rival: tuple[str, bytes] | None = None
    """Who signed for this name at the last look, if not this agent, and what was said of it."""
    silent: frozenset[str] = frozenset()
    """Other replicas of whom nothing was heard at the last look."""
    control_token: str = field(default_factory=secrets.token_urlsafe)
    """Opens the engine's control routes; nobody else has to know it."""
    machine: str = field(default_factory=gethostname)
    """As it was called at the start: a name that changes makes no other agent of it."""
    word: str = field(default_factory=lambda: secrets.token_hex(8))
    """What tells this agent from those before it."""
    copies: Copies = field(init=False)
    """Of versions, on this machine."""

    def __post_init__(self) -> None:
        self.copies = Copies(self.settings.state_dir / "policies")

    @property
    def listen(self) -> Address | None:
        """The engine's port; None where it listens on a socket."""
        listen = self.settings.engine.listen
        return None if listen is None else read_listen(listen)

    @property
    def url(self) -> str:
        """Where gateways reach the engine."""
        if self.listen is None:
            return f"unix:{self.socket}"
        return self.settings.engine.advertise or self.listen.url(self.machine)

    @property
    def place(self) -> str:
        """Of this agent: who starts there next is its successor."""
        return f"{self.machine} {self.url}"

    @property
    def holder(self) -> str:
        """As it signs the replica's name."""
        return f"{self.place} {self.word}"

    def may_try(self, version: str, *, now: float) -> bool:
        """Whether to swap to a version now."""
        given_up = version in self.refused or self.attempts.get(version, 0) >= MAX_ATTEMPTS
        return not given_up and now >= self.not_before

    def failed_with(self, version: str) -> bool:
        """The engine failed with this version; whether that makes the replica give it up."""
        self.attempts[version] = self.attempts.get(version, 0) + 1
        return self.attempts[version] % MAX_ATTEMPTS == 0
