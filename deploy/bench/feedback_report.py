"""The figures of the feedback route as a document for programs, and as tables for people. Pure.

Knows the aims that the README states, and which figure each is about.
"""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from deploy.bench.feedback_held import Reconciled
from deploy.bench.feedback_loads import Figures
from deploy.bench.maths import Spread, over_rounds
from deploy.bench.report import Aim, aims_table, cell, plain

NO_PEER = "no peer is installable beside us: Redis itself and a bare pass-through are the bounds"
LABELS = {
    "saturated_per_second": "acknowledged feedback/s, 64 clients",
    "saturated_processor_ms": "  processor time of the gateway per piece (ms)",
    "saturated_gateway_share": "  processors taken by the gateway",
    "saturated_redis_share": "  by Redis",
    "saturated_clients_share": "  by the clients",
    "mixed_per_second": "  with a completion before every 20th",
    "steady_p50_ms": "500 feedback/s by timetable, p50 (ms)",
    "steady_p99_ms": "  p99",
    "steady_after_reply_p99_ms": "  p99 of those right after the reply",
    "steady_longest_ms": "  longest",
    "redis_calls_per_second": "bound: calls/s of Redis alone, one connection",
    "pass_through_per_second": "bound: requests/s of a bare pass-through",
    "completions_per_second": "  completions/s of the gateway",
    "disk_sync_p50_ms": "bound: a synced write, p50 (ms)",
    "disk_sync_p99_ms": "  p99",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """What came of the pieces that were said while processes were killed."""

    reconciled: Reconciled
    killed: Sequence[str]
    refused: int
    broken: int
    seconds: float
    silences: Sequence[float]
    """After each kill, the longest time in seconds in which nobody was acknowledged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackReport:
    """What was measured."""

    seconds: float
    rounds: Sequence[Figures]
    bytes_per_record: Mapping[str, float]
    killed: Killed | None = None
    pii: Mapping[str, Any] | None = None
    log: Mapping[str, Any] | None = None

    @property
    def is_sound(self) -> bool:
        """Nothing that was acknowledged is lost, doubled, wrong or miscounted."""
        return self.killed is None or self.killed.reconciled.is_sound

    def figures(self) -> dict[str, Spread]:
        """Each figure over the rounds."""
        return {name: over_rounds([one[name] for one in self.rounds]) for name in self.rounds[0]}

    def aims(self) -> list[Aim]:
        """Each aim beside what was found."""
        return list(_aims(self))

    def document(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "machine": {"processors": os.cpu_count(), "python": platform.python_version()},
            "seconds": self.seconds,
            "rounds": len(self.rounds),
            "figures": plain(self.figures()),
            "bytes_per_record": dict(self.bytes_per_record),
            "killed": None if self.killed is None else asdict(self.killed),
            "pii": None if self.pii is None else dict(self.pii),
            "log": None if self.log is None else dict(self.log),
            "peers": NO_PEER,
            "aims": [{**asdict(aim), "met": aim.met} for aim in self.aims()],
        }

    def tables(self) -> Group:
        """Everything, for people."""
        return Group(*self._parts(), aims_table(self.aims()))

    def _parts(self) -> Iterator[RenderableType]:
        table = Table("", "", title="measured: median (lowest-highest round)")
        for name, of in self.figures().items():
            table.add_row(LABELS[name], cell(of))
        yield table
        yield NO_PEER
        sizes = ", ".join(f"{name} {size:.0f}" for name, size in self.bytes_per_record.items())
        yield f"bytes of Redis memory for one piece of feedback: {sizes}"
        if self.killed is not None:
            yield _killed_table(self.killed)
        if self.log is not None:
            table = Table("the log", "")
            for name, value in self.log.items():
                table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
            yield table
        if self.pii is not None:
            yield _pii_table(self.pii)


def _aims(report: FeedbackReport) -> Iterator[Aim]:
    figures = report.figures()
    yield Aim("feedback_per_second", figures["saturated_per_second"].median, 1500.0, at_most=False)
    yield Aim("mixed_per_second", figures["mixed_per_second"].median, 1500.0, at_most=False)
    yield Aim("steady_p99_ms", figures["steady_p99_ms"].median, 5.0, at_most=True)
    after = figures["steady_after_reply_p99_ms"].median
    yield Aim("steady_after_reply_p99_ms", after, 5.0, at_most=True)
    if report.killed is not None:
        found = report.killed.reconciled
        for name in ("lost", "doubled", "wrong", "miscounted"):
            yield Aim(name, getattr(found, name), 0.0, at_most=True)


def _killed_table(killed: Killed) -> Table:
    found = killed.reconciled
    table = Table("while processes were killed with -9", "")
    rows: dict[str, object] = {
        "acknowledged": f"{found.acknowledged:,} in {killed.seconds:.0f} s",
        "killed (then seconds without an acknowledgement)": ", ".join(
            f"{what} ({silence:.1f})"
            for what, silence in zip(killed.killed, killed.silences, strict=True)
        ),
        "asked again after a 503": killed.refused,
        "asked again after a broken connection": killed.broken,
        "records": f"{found.records:,}",
        "lost": found.lost,
        "doubled": found.doubled,
        "wrong": found.wrong,
        "miscounted": found.miscounted,
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _pii_table(pii: Mapping[str, Any]) -> Table:
    table = Table("personal data", "recall", "values")
    for kind, recall in pii["recall"].items():
        table.add_row(kind, f"{recall:.3f}", str(pii["values"][kind]))
    table.add_row("prompts/s of one process", f"{pii['prompts_per_second']:.0f}", "")
    return table
