"""How a gateway leaves a service that goes on: it says so before it closes its door.

Whoever spreads requests over gateways learns from `/readyz`, and only some time later, that one of
them is not ready any more. For so long (`gateway.leave_seconds`) it takes what still comes and
closes each connection with its reply, so that kept connections end between two requests. Then it
accepts no more, and what is in flight may finish. A second signal shortens the wait. Knows uvicorn
and the app's state; knows no route.
"""

import time
from types import FrameType
from typing import Any

import uvicorn

_CLOSE = (b"connection", b"close")


class LeavingServer(uvicorn.Server):
    """uvicorn, but for what it does at the first signal. `state` is the app's."""

    def __init__(self, config: uvicorn.Config, *, state: Any, leave_seconds: float) -> None:
        super().__init__(config)
        self._state = state
        self._leave_seconds = leave_seconds
        self._leave_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to leave, or stop now."""
        self._state.leaving = True
        if self._leave_at is None and self._leave_seconds > 0:
            self._leave_at = time.monotonic() + self._leave_seconds
            self.config.encoded_headers.append(_CLOSE)
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to accept no more."""
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.should_exit = True
        return await super().on_tick(counter)
