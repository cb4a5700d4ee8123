"""What a client gets when an engine refused, or none answered: the right status, and an error body.

An engine's refusal is passed on byte for byte, unless it is about us and not about the request.
Nothing here is used once the status line has been sent.
"""

import orjson
from starlette.types import Send

from core.errors import Unavailable
from serving import sse
from serving.upstream import NotAnswered

_MISFIT = frozenset({401, 403, 404, 405})  # the engine and we do not fit: not the client's doing


class Refusal(Exception):
    """The engine answered with an error, and nothing has been sent to the client yet."""

    def __init__(self, status: int, body: bytes, retry_after: str | None = None) -> None:
        super().__init__(f"it answered with status {status}")
        self.status = status
        self.body = body
        self.retry_after = retry_after

    @property
    def is_ours(self) -> bool:
        """Whether engine and gateway do not fit together."""
        return self.status in _MISFIT

    @property
    def others_may_do_better(self) -> bool:
        """Whether it makes sense to ask another replica."""
        return self.status >= 500 or self.is_ours


def refusal_of(event: bytes) -> Refusal:
    """The error that came as the first event of a stream, as the reply it should have been."""
    data = sse.data_of(event) or b"{}"
    error = orjson.loads(data)["error"]
    code = error.get("code") if isinstance(error, dict) else None
    return Refusal(code if isinstance(code, int) and 400 <= code <= 599 else 500, data)


async def send_failure(send: Send, failure: Refusal | NotAnswered | None) -> None:
    """Answer for engines that did not. Raises Unavailable unless one of them refused."""
    if not isinstance(failure, Refusal) or failure.is_ours:
        why = "no engine is ready" if failure is None else f"the engine did not answer: {failure}"
        raise Unavailable(f"{why}; see /readyz", code="no_engine") from failure
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(failure.body)),
    ]
    if failure.status in (429, 503):
        headers.append((b"retry-after", (failure.retry_after or "1").encode()))
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": failure.body})
