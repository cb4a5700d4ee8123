"""What a client gets when an engine refused, or none answered: the right status, and an error body.

An engine's refusal is passed on byte for byte, unless it is about us and not about the request.
Nothing here is used once the status line has been sent.
"""

import orjson
from starlette.types import Send

from core.errors import Unavailable
from serving import sse
from serving.error_bodies import refusal_for
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
        """Whether it makes sense to ask another replica; 429 is an engine's full queue."""
        return self.status >= 500 or self.status == 429 or self.is_ours

    @property
    def is_fault(self) -> bool:
        """Whether it says that something is wrong with the engine; one that is full is well."""
        return self.status >= 500 and self.status != 503


def refusal_of(event: bytes) -> Refusal:
    """The error that came as the first event of a stream, as the reply it should have been."""
    data = sse.data_of(event) or b"{}"
    error = orjson.loads(data).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return Refusal(code if isinstance(code, int) and 400 <= code <= 599 else 500, data)


async def send_failure(send: Send, failure: Refusal | NotAnswered | None, path: str) -> None:
    """Answer for engines that did not, as clients of the path read it.

    Raises Unavailable unless one of them refused.
    """
    if not isinstance(failure, Refusal) or failure.is_ours:
        why = "no engine is ready" if failure is None else f"the engine did not answer: {failure}"
        raise Unavailable(f"{why}; see /readyz", code="no_engine") from failure
    body = refusal_for(path, failure.status, failure.body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    if failure.status in (429, 503):
        headers.append((b"retry-after", (failure.retry_after or "1").encode()))
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
