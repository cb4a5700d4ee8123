"""Which policy wrote which part of a reply: headers and marks on the way out of the engine.

The guard (core/engine/guard.py) wraps the `send` of every data reply in `ReplyMarks`. It knows
replies as ASGI messages and versions as names; it never parses what the engine wrote, and the
gateway passes on what it adds.

The rules, for a reply whose request was forwarded to vLLM when version A was current:

* `x-policy-version` is the version of the first token. A stream's status line is held until its
  first body chunk exists, because vLLM sends it before the first token; the version that is
  current then counts. All of a unary reply is sent at its end, so A counts.
* `x-policy-versions` is there only if a swap fell between forwarding and the moment the headers
  are sent, and lists the versions in order: such a reply is mixed.
* A stream that a swap crosses later carries the SSE comment `: policy-version B` at the first
  event boundary after the swap: also mixed.

The current version is switched while the engine is paused, so no token is written near the switch:
what was sampled before the pause passed here before the agent could say so, what comes after is
new. A client that reads slowly may get the mark a few tokens early or in vain, but always gets it.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

# ASGI messages are dicts whose values have no common type
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

_BOUNDARY = b"\n\n"  # ends an event; vLLM never writes carriage returns


class VersionHistory:
    """The versions this engine served, oldest first; the last is the current one."""

    def __init__(self, first: str) -> None:
        self._versions = [first]

    @property
    def current(self) -> str:
        return self._versions[-1]

    @property
    def position(self) -> int:
        """The place of the current version, to hand to `since` later."""
        return len(self._versions) - 1

    def switch(self, version: str) -> None:
        """Make `version` current; nothing happens if it is."""
        if version != self.current:
            self._versions.append(version)

    def since(self, position: int) -> list[str]:
        """The versions from `position` to the current one, both included."""
        return self._versions[position:]


class ReplyMarks:
    """The `send` of one reply, adding the headers and comments above."""

    def __init__(self, send: Send, history: VersionHistory) -> None:
        self._send = send
        self._history = history
        self._position = history.position
        self._start: Message | None = None
        self._is_stream = False
        self._tail = _BOUNDARY

    async def __call__(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start":
                self._start = message
                return
            case "http.response.body":
                await self.flush()
                if self._is_stream and (body := message.get("body")):
                    message["body"] = self._marked(body)
        await self._send(message)

    async def flush(self) -> None:
        """Send the status line, if it is still held."""
        if self._start is None:
            return
        start, self._start = self._start, None
        headers = list(start.get("headers", ()))
        self._is_stream = any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in headers
        )
        versions = self._history.since(self._position)
        self._position = self._history.position
        first = versions[-1] if self._is_stream else versions[0]
        headers.append((b"x-policy-version", first.encode()))
        if len(versions) > 1:
            headers.append((b"x-policy-versions", ",".join(versions).encode()))
        await self._send({**start, "headers": headers})

    def _marked(self, body: bytes) -> bytes:
        """The chunk, with a comment for every version that came since the last mark."""
        if self._position < self._history.position:
            at = self._next_boundary(body)
            if at is not None:
                versions = self._history.since(self._position + 1)
                marks = "".join(f": policy-version {version}\n\n" for version in versions)
                body = body[:at] + marks.encode() + body[at:]
                self._position = self._history.position
        self._tail = (self._tail + body)[-len(_BOUNDARY) :]
        return body

    def _next_boundary(self, body: bytes) -> int | None:
        """Where in the chunk an event ends: 0 if one ended with the last chunk, None if nowhere."""
        found = (self._tail + body).find(_BOUNDARY)
        return None if found < 0 else found + len(_BOUNDARY) - len(self._tail)
