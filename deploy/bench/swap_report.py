"""The figures of swaps as a document for programs, and as a table for people. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from deploy.bench.maths import quantile


@dataclass(slots=True)
class Seen:
    """What the streams saw; times are of one clock."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    """When the wait for a chunk began, and when it came."""
    first_waits: list[tuple[float, float]] = field(default_factory=list)
    """The same for a reply's first chunk."""
    tokens: int = 0
    misattributed: int = 0
    replies: int = 0
    failed: int = 0

    def longest(self, begin: float, end: float, *, first: bool = False) -> float:
        """The longest wait that overlaps this time, in seconds."""
        waits = self.first_waits if first else self.gaps
        return max((to - since for since, to in waits if to > begin and since < end), default=0.0)


@dataclass(frozen=True, slots=True)
class Span:
    """One swap in time."""

    began: float
    held_from: float
    """When the new weights were staged, and requests began to wait."""
    admitted: float
    ended: float
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class Tail:
    """A duration over all swaps, in seconds."""

    median: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What swaps of one way did to so many streams."""

    streams: int
    way: str
    swaps: int
    pause: Tail
    """From pause to resume."""
    gap: Tail
    """The longest wait between two chunks of any stream, from hold to admit."""
    gap_beside: Tail
    """The same while weights are staged and compared, beside the answers."""
    first_chunk: Tail
    """The longest wait for a first chunk, from hold to admit."""
    whole: Tail
    """The whole swap: staging, pause, comparison."""
    replies: int
    failed: int
    tokens: int
    misattributed: int


@dataclass(frozen=True, slots=True)
class SwapReport:
    """All that was measured."""

    figures: list[Figures]
    restart_seconds: float
    weight_bytes: int
    bytes_per_second: float

    @property
    def limit_seconds(self) -> float:
        """In which the weights could be read from memory."""
        return self.weight_bytes / self.bytes_per_second

    @property
    def is_sound(self) -> bool:
        """Whether no reply failed and each token was its version's."""
        return not any(of.failed or of.misattributed for of in self.figures)

    def document(self) -> dict[str, Any]:
        """Everything, for programs."""
        return asdict(self) | {"limit_seconds": self.limit_seconds, "is_sound": self.is_sound}

    def table(self) -> Table:
        """Everything, for people."""
        table = Table(
            title="Swaps under streams: median / p99 / longest, in seconds",
            caption=f"restart of the engine {self.restart_seconds:.1f} s; "
            f"{self.weight_bytes / 1e6:.0f} MB of weights over memory bandwidth "
            f"{self.limit_seconds:.3f} s",
        )
        for name in ("streams", "way", "swaps", "pause", "longest gap", "while staging"):
            table.add_column(name)
        for name in ("first chunk", "whole swap", "failed", "misattributed"):
            table.add_column(name)
        for of in self.figures:
            tails = (of.pause, of.gap, of.gap_beside, of.first_chunk, of.whole)
            table.add_row(
                str(of.streams),
                of.way,
                str(of.swaps),
                *(f"{t.median:.2f} / {t.p99:.2f} / {t.longest:.2f}" for t in tails),
                f"{of.failed} of {of.replies}",
                f"{of.misattributed} of {of.tokens}",
            )
        return table


def figures(streams: int, way: str, seen: Seen, spans: Sequence[Span]) -> Figures:
    """One row, from what the streams saw and when the swaps were."""
    return Figures(
        streams=streams,
        way=way,
        swaps=len(spans),
        pause=tail([span.pause_seconds for span in spans]),
        gap=tail([seen.longest(span.held_from, span.admitted) for span in spans]),
        gap_beside=tail(
            [
                max(
                    seen.longest(span.began, span.held_from - _MARGIN),
                    seen.longest(span.admitted + _MARGIN, span.ended),
                )
                for span in spans
            ]
        ),
        first_chunk=tail([seen.longest(s.held_from, s.admitted, first=True) for s in spans]),
        whole=tail([span.ended - span.began for span in spans]),
        replies=seen.replies,
        failed=seen.failed,
        tokens=seen.tokens,
        misattributed=seen.misattributed,
    )


_MARGIN = 0.1  # so that a wait of the pause itself is not counted as one beside it


def tail(values: Sequence[float]) -> Tail:
    """Median, p99 and the longest. Raises ValueError when there are none."""
    return Tail(quantile(values, 0.5), quantile(values, 0.99), max(values, default=0.0))
