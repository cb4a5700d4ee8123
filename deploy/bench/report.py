"""The figures of the gateway as a document for programs, and as tables for people. Pure.

Knows the aims that the README states, and which figure each is about.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from deploy.bench.figures import Rounds, added, ratios, summary
from deploy.bench.maths import Spread
from deploy.bench.targets import GATEWAY

_LEAST_MS = 0.1  # less than this is noise, and nothing to divide by
LABELS = {
    "alone_p50_ms": "one client after another, p50 (ms)",
    "alone_p99_ms": "  p99",
    "steady_p50_ms": "100 requests/s by timetable, p50 (ms)",
    "steady_p99_ms": "  p99",
    "requests_per_second": "requests/s, 32 clients",
    "processor_ms": "  processor time per request (ms)",
    "first_chunk_p50_ms": "first chunk of a stream, p50 (ms)",
    "chunk_p50_ms": "chunks of 100 streams, delay p50 (ms)",
    "chunk_p99_ms": "  p99",
    "crowd_1_p50_ms": "beside an engine that waits, 1 client, p50 (ms)",
    "crowd_512_p50_ms": "  512 clients",
}


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure should be."""

    what: str
    value: float
    aim: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.value <= self.aim if self.at_most else self.value >= self.aim


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured."""

    seconds: float
    rounds: Rounds
    disk_sync_ms: dict[str, Spread]
    """How long a small write takes to be on the disk, `p50` and `p99`: the log waits for it."""
    memory_mib_per_100k: float | None = None
    tokens: dict[str, Spread] | None = None

    def aims(self) -> list[Aim]:
        """Each aim beside what was found."""
        return list(_aims(self))

    def ratios(self) -> dict[str, dict[str, float]]:
        """What we add over what each peer adds, and our requests/s over theirs."""
        figures, more, rate = summary(self.rounds), added(self.rounds), "requests_per_second"
        return {
            name: ratios(more[GATEWAY], theirs)
            | {rate: figures[GATEWAY][rate].median / figures[name][rate].median}
            for name, theirs in more.items()
            if name != GATEWAY
        }

    def document(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "machine": {"processors": os.cpu_count(), "python": platform.python_version()},
            "seconds": self.seconds,
            "rounds": len(self.rounds[GATEWAY]),
            "disk_sync_ms": plain(self.disk_sync_ms),
            "figures": {name: plain(of) for name, of in summary(self.rounds).items()},
            "added": {name: plain(of) for name, of in added(self.rounds).items()},
            "ratios": self.ratios(),
            "memory_mib_per_100k": self.memory_mib_per_100k,
            "tokens_per_second": None if self.tokens is None else plain(self.tokens),
            "aims": [{**asdict(aim), "met": aim.met} for aim in self.aims()],
        }

    def tables(self) -> Group:
        """Everything, for people."""
        sync = self.disk_sync_ms
        return Group(
            _table("measured: median (lowest-highest round)", summary(self.rounds)),
            _table("added to the engine", added(self.rounds)),
            f"a synced write to this disk takes {cell(sync['p50'])} ms, p99 {cell(sync['p99'])}",
            _ratios_table(self.ratios()),
            *self._options(),
            aims_table(self.aims()),
        )

    def _options(self) -> Iterator[str]:
        if self.memory_mib_per_100k is not None:
            yield f"memory: {self.memory_mib_per_100k:+.2f} MiB in 100,000 requests"
        if self.tokens is not None:
            named = ", ".join(f"{name} {cell(of)}" for name, of in self.tokens.items())
            yield f"tokens/s of vLLM at 32 clients: {named}"


def _aims(report: Report) -> Iterator[Aim]:
    ours = added(report.rounds)[GATEWAY]
    for name, aim in (
        ("alone_p50_ms", 1.0),
        ("alone_p99_ms", 3.0),
        ("steady_p50_ms", 1.0),
        ("steady_p99_ms", 3.0),
        ("first_chunk_p50_ms", 1.5),
        ("chunk_p50_ms", 2.0),
    ):
        yield Aim(f"added_{name}", ours[name].median, aim, at_most=True)
    alone = max(ours["crowd_1_p50_ms"].median, _LEAST_MS)
    growth = ours["crowd_512_p50_ms"].median / alone
    yield Aim("growth_from_1_to_512_clients", growth, 3.0, at_most=True)
    rate = summary(report.rounds)[GATEWAY]["requests_per_second"].median
    yield Aim("requests_per_second", rate, 1000.0, at_most=False)
    if report.memory_mib_per_100k is not None:
        yield Aim("memory_mib_per_100k", report.memory_mib_per_100k, 1.0, at_most=True)
    if report.tokens is not None:
        share = report.tokens["share"].median
        yield Aim("share_of_tokens_per_second", share, 0.97, at_most=False)


def _table(title: str, figures: dict[str, dict[str, Spread]]) -> Table:
    table = Table("", *figures, title=title)
    known = next(iter(figures.values()))
    for name, label in LABELS.items():
        if name in known:
            table.add_row(label, *[cell(of[name]) for of in figures.values()])
    return table


def _ratios_table(of_peers: dict[str, dict[str, float]]) -> Table:
    table = Table("", *of_peers, title="the gateway over others: what is added, and requests/s")
    for name, label in LABELS.items():
        cells = [f"{of[name]:.2f}" if name in of else "" for of in of_peers.values()]
        if any(cells):
            table.add_row(label, *cells)
    return table


def aims_table(aims: list[Aim]) -> Table:
    """Each aim beside what was found."""
    table = Table("aim", "bound", "found", "")
    for aim in aims:
        bound = f"{'at most' if aim.at_most else 'at least'} {aim.aim:g}"
        table.add_row(aim.what, bound, f"{aim.value:.3g}", "met" if aim.met else "missed")
    return table


def cell(of: Spread) -> str:
    """A figure for people: the median, and its extremes."""
    digits = 0 if of.median >= 100 else 2
    return f"{of.median:.{digits}f} ({of.low:.{digits}f}-{of.high:.{digits}f})"


def plain(figures: dict[str, Spread]) -> dict[str, dict[str, float]]:
    """Figures for programs."""
    return {name: asdict(of) for name, of in figures.items()}
