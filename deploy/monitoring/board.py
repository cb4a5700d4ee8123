"""What a dashboard is made of, and the few forms of query that panels are written in."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["graph", "number", "table"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One question, the queries that answer it (legend to expression), and what to make of it."""

    title: str
    queries: dict[str, str]
    unit: str
    meaning: str
    kind: Kind = "graph"

    @property
    def expressions(self) -> dict[str, str]:
        """The queries, each 0 where there is nothing yet."""
        return {legend: f"{query} or on() vector(0)" for legend, query in self.queries.items()}


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard: rows of panels, from the most asked to the least."""

    uid: str
    title: str
    rows: dict[str, tuple[Panel, ...]]

    @property
    def panels(self) -> list[Panel]:
        """All panels, in order."""
        return [panel for panels in self.rows.values() for panel in panels]


def rate(metric: str, *, by: str) -> str:
    """How much a counter grows in a second."""
    return f"sum by ({by}) (rate({metric}[5m]))"


def quantile(share: float, metric: str, window: str = "5m") -> str:
    """A quantile of a histogram over a window."""
    buckets = f"sum by (le) (rate({metric}_bucket[{window}]))"
    return f"histogram_quantile({share}, {buckets})"


def quantiles(metric: str, window: str = "5m") -> dict[str, str]:
    """The three that people look at."""
    return {
        "median": quantile(0.5, metric, window),
        "95 of 100": quantile(0.95, metric, window),
        "99 of 100": quantile(0.99, metric, window),
    }


def mean(metric: str, *, by: str, window: str) -> str:
    """The mean of a histogram over a window."""
    total, number = (
        f"sum by ({by}) (rate({metric}_{part}[{window}]))" for part in ("sum", "count")
    )
    return f"{total} / clamp_min({number}, 1e-12)"


def gauge(metric: str) -> str:
    """A gauge that several processes may show."""
    return f"max({metric})"
