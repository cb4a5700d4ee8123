"""The plots of the demonstration's report, as SVG text that takes its colours from the page.

Each function takes plain values of report.json and returns an `<svg>` element to be put into
HTML, or "" where there is nothing to show. Text stays text, so the page's font and its dark and
light colours apply. Knows no page; report_page.py does.
"""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

INK, FAINT, ONE, TWO = "#010203", "#040506", "#070809", "#0a0b0c"
"""Stand-ins, replaced by the page's variables: text, grid lines, first and second series."""
_VARIABLES = {INK: "--ink", FAINT: "--faint", ONE: "--one", TWO: "--two"}
_WIDTH = 4.2  # inches; one plot fills a phone, two stand side by side on a desk
_STYLE: Any = {  # matplotlib types each name of its settings
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def win_rate_plot(report: Mapping[str, Any]) -> str:
    """Win rates with their intervals, beside the line of a draw."""
    rows = [
        ("broken text loses", report["win_rate"]),
        ("score alone", report["win_rate_by_score"]),
        ("similar length", report["similar_length"]),
    ]
    shown = [(f"{name} (n={rate['n']})", rate) for name, rate in rows if rate][::-1]
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(0.75 + 0.42 * len(shown))
        for place, (_, rate) in enumerate(shown):
            low, high = rate["interval"]
            axes.plot([low, high], [place, place], color=ONE, linewidth=2, solid_capstyle="butt")
            axes.plot([rate["value"]], [place], "o", color=ONE, markersize=7)
        axes.axvline(0.5, color=INK, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(shown)), [name for name, _ in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlim(0.0, 1.0)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        return _svg(figure, "win", "Win rate of the new version with 95 % intervals")


def learning_plot(iterations: Sequence[Mapping[str, Any]]) -> str:
    """Reward and KL of each PPO iteration, one above the other."""
    panels = [
        ("reward: the reward model's score", _series(iterations, "reward"), ONE),
        ("KL from the first policy, nats a token", _series(iterations, "kl_per_token"), TWO),
    ]
    shown = [panel for panel in panels if panel[1]]
    if not shown:
        return ""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.6 + 1.45 * len(shown)), layout="constrained")
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (title, values, colour) in zip(axes, shown, strict=True):
            numbers = range(1, len(values) + 1)
            panel.plot(numbers, values, "o-", color=colour, markersize=3.5, linewidth=1.5)
            panel.set_title(title)
        axes[-1].set_xlabel("iteration")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, "learn", "Reward and KL over the iterations of PPO")


def timeline_plot(phase_seconds: Mapping[str, float], stage_seconds: Mapping[str, float]) -> str:
    """When each phase ran; the stages of the round stand under the phase `learn`."""
    bars, at = [], 0.0
    for name, seconds in phase_seconds.items():
        bars.append((name, at, seconds, ONE))
        if name == "learn":
            bars += _within(stage_seconds, at)
        at += seconds
    if not bars:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(0.8 + 0.26 * len(bars))
        for place, (_, start, seconds, colour) in enumerate(bars):
            axes.barh(float(place), seconds, left=start, height=0.62, color=colour)
            axes.text(start + seconds + 0.01 * at, place, f"{seconds:.0f} s", va="center", size=8)
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * at)
        axes.set_xlabel("seconds since the start")
        axes.grid(axis="y", visible=False)
        return _svg(figure, "time", "Timeline of the demonstration")


def stalls_plot(gaps: Sequence[Sequence[float]], first_chunks: Sequence[Sequence[float]]) -> str:
    """The longest waits of clients around the swap, on a logarithmic scale."""
    if not gaps and not first_chunks:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(2.6)
        for name, waits, mark, colour in (
            ("between two chunks", gaps, ".", ONE),
            ("for the first chunk", first_chunks, "^", TWO),
        ):
            if waits:
                when, seconds = zip(*waits, strict=True)
                axes.plot(when, seconds, mark, color=colour, label=name, markersize=5)
        axes.axvline(0.0, color=INK, linewidth=1, linestyle="--")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("seconds since the promotion")
        axes.set_ylabel("seconds waited")
        figure.legend(loc="outside upper left", ncols=2, fontsize=9)
        return _svg(figure, "stall", "Waits of clients around the swap")


def _within(
    stage_seconds: Mapping[str, float], start: float
) -> list[tuple[str, float, float, str]]:
    """The stages one after the other from `start` on, as bars."""
    ends = [start]
    for seconds in stage_seconds.values():
        ends.append(ends[-1] + seconds)
    names = [f"· {name.replace('_', ' ')}" for name in stage_seconds]
    return [
        (name, begin, end - begin, TWO)
        for name, (begin, end) in zip(names, pairwise(ends), strict=True)
    ]


def _series(iterations: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A figure over the iterations; empty unless all of them have it."""
    values = [iteration.get(name) for iteration in iterations]
    return [float(v) for v in values if v is not None] if None not in values else []


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes: Axes = figure.subplots()
    return figure, axes


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an element of the page: no prolog, ids of its own, the page's colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    label = f'<svg role="img" aria-label="{title}"'
    return text.replace("<svg", label, 1)
