"""Whether an engine gets on: its counters of tokens, and how long they have stood still. Pure.

An engine that hangs may still answer `/health`; one with long queues may not answer a probe for a
while. Tokens tell the two apart. Knows vLLM's metrics as text; reads nothing itself.
"""

from dataclasses import dataclass

_COUNTERS = (b"vllm:generation_tokens_total", b"vllm:prompt_tokens_total")


def tokens(text: bytes) -> float:
    """All tokens that an engine has read and written, from its `/metrics`."""
    lines = (line for line in text.splitlines() if line.startswith(_COUNTERS))
    return sum(float(line.rsplit(b" ", 1)[1]) for line in lines)


@dataclass(slots=True)
class Progress:
    """What was seen of an engine's work. Times are seconds on any clock that does not go back."""

    tokens: float = 0.0
    still_since: float | None = None
    """Since when it has had work and shown nothing for it; None while all is well."""

    def stuck_for(self, *, tokens: float | None, in_flight: int, now: float) -> float:
        """Seconds without progress; `tokens` is None when the engine did not even answer.

        An idle engine is not stuck, but one that got stuck is not well because its clients left.
        """
        if tokens is not None and tokens != self.tokens:
            self.tokens, self.still_since = tokens, None
        elif self.still_since is None and (tokens is None or in_flight):
            self.still_since = now
        return 0.0 if self.still_since is None else now - self.still_since
