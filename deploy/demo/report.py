"""The report of a demonstration: report.json for programs, report.html for people, and a summary.

`figures` is the whole report as plain values; the page (report_page.py) and the summary only show
what stands in it. Judges nothing, measures nothing.
"""

import dataclasses
import json
import math
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.demo.report_page import page
from deploy.demo.report_words import headline, summary_rows
from deploy.demo.scoring import Comparison, Side
from deploy.demo.traffic import TrafficReport
from deploy.simulate.prompt import Collected
from learning.gate.winrate import WinRate

SAMPLES = 12
SWAP_WINDOW_SECONDS = 30.0
"""How long before and after the swap a wait counts as a stall of the swap."""
_BIN_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Everything that a demonstration found out. Sequences over prompts have one order."""

    judge: str
    seed: int
    outcome: str
    """How the round ended: promoted, refused, not_enough_data, failed, ..."""
    reason: str
    first_version: str
    new_version: str
    comparison: Comparison
    prompts: Sequence[str]
    first_texts: Sequence[str]
    new_texts: Sequence[str]
    first_finished: Sequence[bool]
    new_finished: Sequence[bool]
    collected: Collected
    card: Mapping[str, Any]
    """The card of the version that is live at the end."""
    iterations: Sequence[Mapping[str, Any]]
    """Figures of each PPO iteration."""
    stage_seconds: Mapping[str, float]
    """Seconds of each stage of the round, in order."""
    phase_seconds: Mapping[str, float]
    """Seconds of each phase of the demonstration, in order; the stages lie within `learn`."""
    seconds: float
    traffic: TrafficReport
    swap_at: float
    """When the swap began, in seconds since the traffic began."""
    idle: TrafficReport = field(default_factory=TrafficReport)
    """What a client saw before anything was learned."""
    trained_until: float = math.inf
    """When training was over, in seconds since the traffic began."""


def write_report(result: DemoResult, out: Path, *, console: Console | None = None) -> None:
    """Write `report.json` and `report.html` into `out`, and show the summary on the terminal."""
    report = _plain(figures(result))
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    _write(out / "report.html", page(report))
    show_summary(report, console or Console())


def figures(result: DemoResult) -> dict[str, Any]:
    """The report as plain values that JSON can hold."""
    compared, card = result.comparison, result.card.get("figures") or {}
    evaluation = card.get("evaluation") or {}
    return {
        "judge": result.judge,
        "seed": result.seed,
        "outcome": result.outcome,
        "reason": result.reason,
        "first_version": result.first_version,
        "new_version": result.new_version,
        "win_rate": _rate(compared.win_rate),
        "win_rate_by_score": _rate(compared.win_rate_by_score),
        "similar_length": compared.similar_length and _rate(compared.similar_length),
        "at_equal_length": compared.at_equal_length,
        "wins": compared.wins,
        "ties": compared.ties,
        "losses": compared.losses,
        "first": _side(compared.first, result.first_finished),
        "new": _side(compared.new, result.new_finished),
        "seconds": result.seconds,
        "phase_seconds": dict(result.phase_seconds),
        "stage_seconds": dict(result.stage_seconds),
        "kl": card.get("kl_to_anchor"),
        "kl_per_token": evaluation.get("kl_per_token"),
        "kl_answers": evaluation.get("kl_answers"),
        "pretraining_loss_change": card.get("pretraining_loss_change"),
        "pretraining_tokens": evaluation.get("pretraining_tokens"),
        **_swap(result),
        "first_token_seconds": {
            "idle": _median([wait for _, wait in result.idle.first_chunks]),
            "while_training": _median(
                [wait for at, wait in result.traffic.first_chunks if at < result.trained_until]
            ),
        },
        "collected": dataclasses.asdict(result.collected),
        "gate": result.card.get("gate") or {},
        "card_figures": card,
        "iterations": [dict(iteration) for iteration in result.iterations],
        "samples": sorted(
            random.Random(result.seed).sample(
                range(len(result.prompts)), min(SAMPLES, len(result.prompts))
            )
        ),
        "answers": _answers(result),
    }


def show_summary(report: Mapping[str, Any], console: Console) -> None:
    """The main figures as a table on the terminal."""
    table = Table(title=headline(report), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in summary_rows(report):
        table.add_row(Text(name), Text(value))
    console.print(table)


def _rate(rate: WinRate) -> dict[str, Any]:
    return {
        "value": rate.value,
        "interval": [rate.low, rate.high],
        "n": rate.comparisons,
        "users": rate.users,
        "ties": rate.ties,
    }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _side(side: Side, finished: Sequence[bool]) -> dict[str, Any]:
    return {
        "mean_score": side.mean_score,
        "mean_words": side.mean_words,
        "cut_share": 1.0 - sum(finished) / len(finished),
        "broken_share": side.broken_share,
        "empty_share": side.empty_share,
    }


def _swap(result: DemoResult) -> dict[str, Any]:
    """What the clients saw; waits as [seconds since the swap, the longest wait that ended then]."""
    traffic = result.traffic

    gaps = _waits_near(result.swap_at, traffic.gaps)
    first_chunks = _waits_near(result.swap_at, traffic.first_chunks)
    return {
        "requests": traffic.requests,
        "failed_requests": len(traffic.failures),
        "failures": list(traffic.failures[:20]),
        "requests_by_version": dict(traffic.versions),
        "crossed_streams": traffic.crossed,
        "longest_stall_seconds": max((wait for _, wait in gaps + first_chunks), default=None),
        "longest_gap_seconds": max((wait for _, wait in gaps), default=None),
        "gaps": gaps,
        "first_chunks": first_chunks,
    }


def _waits_near(moment: float, waits: Sequence[tuple[float, float]]) -> list[list[float]]:
    """The longest wait of each quarter of a second around a moment."""
    longest: dict[int, float] = {}
    for at, wait in waits:
        if abs(at - moment) <= SWAP_WINDOW_SECONDS:
            place = round((at - moment) / _BIN_SECONDS)
            longest[place] = max(wait, longest.get(place, 0.0))
    return [[place * _BIN_SECONDS, longest[place]] for place in sorted(longest)]


def _plain(value: Any) -> Any:  # JSON in, JSON out
    """The value with None for every number that JSON does not know (NaN, infinities)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _answers(result: DemoResult) -> list[dict[str, Any]]:
    """Every prompt with both answers and what the judge said of them."""
    first, new = result.comparison.first, result.comparison.new
    return [
        {
            "prompt": prompt,
            "first": {
                "text": result.first_texts[i],
                "score": first.scores[i],
                "broken": first.broken[i],
                "finished": result.first_finished[i],
            },
            "new": {
                "text": result.new_texts[i],
                "score": new.scores[i],
                "broken": new.broken[i],
                "finished": result.new_finished[i],
            },
        }
        for i, prompt in enumerate(result.prompts)
    ]


def _write(path: Path, text: str) -> None:
    """Beside, then renamed: a reader sees the old report or the new one."""
    beside = path.with_suffix(path.suffix + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
