"""Whether an engine may be asked after it failed: a circuit breaker. Pure.

Closed, it lets requests through and counts failures in a row. Open, it lets none through; after a
delay that doubles with each failed trial one trial is due (half open), and a trial that succeeds
closes it. The trial is a probe of serving/health.py, so no client ever waits for an engine that is
known to be ill. Knows no clock: whoever calls says what time it is.
"""

from dataclasses import dataclass
from typing import Literal

FAILURES = 3
"""So many failed requests in a row open it."""
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0


@dataclass(slots=True)
class Breaker:
    """The breaker of one engine. Times are seconds on any clock that does not go back."""

    failures: int = 0
    """In a row, while closed."""
    delay: float = 0.0
    """From one trial to the next; 0 while closed."""
    trial_at: float = 0.0

    @property
    def closed(self) -> bool:
        """Whether requests may pass."""
        return self.delay == 0.0

    def state(self, now: float) -> Literal["closed", "open", "half-open"]:
        """Half open: a trial is due."""
        if self.closed:
            return "closed"
        return "half-open" if now >= self.trial_at else "open"

    def failed(self, now: float) -> bool:
        """A request failed; returns whether that opened it."""
        self.failures += 1
        return self.failures >= FAILURES and self.open(now)

    def answered(self) -> None:
        """A request was answered. An open breaker waits for its trial all the same."""
        self.failures = 0

    def open(self, now: float, *, jitter: float = 1.0) -> bool:
        """Let nothing through, or wait longer for the next trial; whether it was closed."""
        opened = self.closed
        self.delay = FIRST_DELAY_SECONDS if opened else min(2 * self.delay, LONGEST_DELAY_SECONDS)
        self.trial_at = now + self.delay * jitter
        return opened

    def close(self) -> None:
        """The trial succeeded."""
        self.failures, self.delay = 0, 0.0
