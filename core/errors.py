"""Every error that may reach a person, with the HTTP status or exit code it becomes.

    InstructLoopError                 500, exit 1
    ├── BadRequest                    400  malformed
    ├── Unauthenticated               401  no key, or one we do not know
    ├── Forbidden                     403  the key lacks the scope
    ├── NotFound                      404  not there, or not yours
    ├── TooSlow                       408  the body did not come in time
    ├── Conflict                      409  contradicts what is already recorded
    ├── TooLarge                      413  over a limit of size
    ├── Unprocessable                 422  well-formed but wrong
    ├── RateLimited                   429  with Retry-After
    ├── Unavailable                   503  not now, with Retry-After
    ├── StartError                    exit 1: a precondition of starting is not met
    ├── LeaseLost                     another worker holds this work; publish nothing
    ├── CorruptVersion                a model folder failed verification
    ├── ArchiveBroken                 a file of the archive is missing or not as it was written
    └── EngineError                   the engine refused or failed
        └── NotFinite                 it computes NaN with the weights it has

The message of each says what happened and what to do about it.
"""

from collections.abc import Sequence


class InstructLoopError(Exception):
    """Something went wrong inside the service."""

    status = 500
    kind = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error object of OpenAI's API."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


class BadRequest(InstructLoopError):
    """The request is malformed."""

    status = 400
    kind = "invalid_request_error"


class Unauthenticated(InstructLoopError):
    """No API key, or one that is unknown, expired or revoked."""

    status = 401
    kind = "authentication_error"


class Forbidden(InstructLoopError):
    """The API key does not carry the scope that this route needs."""

    status = 403
    kind = "permission_error"


class NotFound(InstructLoopError):
    """There is no such thing, or it belongs to another tenant."""

    status = 404
    kind = "not_found_error"


class TooSlow(InstructLoopError):
    """The request was not received in time."""

    status = 408
    kind = "invalid_request_error"


class Conflict(InstructLoopError):
    """The request contradicts what is already recorded."""

    status = 409
    kind = "conflict_error"


class TooLarge(InstructLoopError):
    """The request is larger than the service takes."""

    status = 413
    kind = "invalid_request_error"


class Unprocessable(InstructLoopError):
    """The request is well-formed, but what it says cannot be."""

    status = 422
    kind = "invalid_request_error"


class RetryLater(InstructLoopError):
    """An error that goes away by itself; carries the seconds to wait."""

    def __init__(self, message: str, *, retry_after: int = 1, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class RateLimited(RetryLater):
    """A limit of the key is reached."""

    status = 429
    kind = "rate_limit_error"
    headers: Sequence[tuple[bytes, bytes]] = ()
    """More headers of the reply: what is left of which limit."""


class Unavailable(RetryLater):
    """The service cannot do this now: an engine or Redis is away."""

    status = 503
    kind = "service_unavailable_error"


class StartError(InstructLoopError):
    """A precondition of starting is not met; the message says what to do."""


class LeaseLost(InstructLoopError):
    """Another worker holds the lease for this work, so nothing may be published."""


class CorruptVersion(InstructLoopError):
    """A model folder failed verification: hash, names, shapes or finiteness."""


class ArchiveBroken(InstructLoopError):
    """A file of the archive of completions is missing or damaged; the message names it."""


class EngineError(InstructLoopError):
    """The engine refused a command, failed, or did not answer in time."""


class NotFinite(EngineError):
    """The engine computes NaN with the weights it has; its cache stays spoilt until a restart."""
