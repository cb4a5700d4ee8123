"""Where an engine listens, and where others reach it: names and numbers.

`HOST:PORT` for TCP; without one an engine listens on a Unix socket. The only thing it opens is a
listener of a moment, to learn whether a port is free.
"""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from core.errors import StartError

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that stand for all of a machine's, and the one at which it reaches itself."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host, without the brackets of IPv6, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def own_url(self) -> str:
        """How this machine reaches it."""
        return f"http://{Address(_ANY.get(self.host, self.host), self.port)}"

    def url(self, machine: str) -> str:
        """How others reach it, where nobody says how: by the host, or by the machine's name."""
        return f"http://{Address(machine if self.host in _ANY else self.host, self.port)}"


def read_listen(text: str) -> Address:
    """An address from `HOST:PORT`; IPv6 in brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not colon or not bare or (":" in bare) != bracketed or any(c in bare for c in "/@ []"):
        raise ValueError("HOST:PORT is needed, such as 0.0.0.0:8100 or [::]:8100")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"the port is a number from 1 to 65535, not {port!r}")
    return Address(bare, int(port))


def read_advertised(text: str) -> str:
    """The URL at which gateways reach an engine, checked. Raises ValueError."""
    advice = "http://HOST:PORT is needed, such as http://10.1.2.3:8100"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(advice) from None
    bare = not (parts.path.rstrip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme != "http" or not host or not port or not bare:
        raise ValueError(advice)
    if host in _ANY:
        raise ValueError(f"{host} is no address of one machine: {advice}")
    return text.rstrip("/")


def check_free(address: Address) -> None:
    """Raises StartError when nobody can listen there now."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        with socket.socket(family, kind, protocol) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(place)
    except OSError as error:
        raise StartError(
            f"the engine cannot listen on {address} ({error.strerror}): "
            "choose another address with INSTRUCTLOOP_ENGINE__LISTEN"
        ) from None


def is_of_this_machine(client: object, server: object) -> bool:
    """Whether a connection came from the machine that it reached: (host, port) of its two ends."""
    here, there = _host(server), _host(client)
    return there is not None and (there.is_loopback or there == here)


def _host(end: object) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    if not isinstance(end, list | tuple) or not end:
        return None
    try:
        found = ipaddress.ip_address(str(end[0]).split("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
