"""The plots of a reproduction, as PNG files beside its report.

Each takes plain values of report.json and draws intervals wherever there are some. Knows no step
and no policy's weights; deploy/reproduce/run.py calls `draw_all`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from deploy.reproduce.markdown import SHOWN_AS
from deploy.reproduce.wins import WIN

COLOURS = ("#1b6ca8", "#d1495b", "#66a182")
_WIDTH = 7.0  # inches
_DOTS = 120
Report = Mapping[str, Any]  # the document of deploy/reproduce/table.py
Rows = Sequence[tuple[str, str]]
"""A measure of the report, and how its legend calls it"""


def draw_all(report: Report, folder: Path) -> list[str]:
    """Write every plot; returns the names of the files."""
    plots: dict[str, Callable[[Report], Figure]] = {
        "win-rates.png": win_rates,
        "alignment-tax.png": alignment_tax,
        "truth-toxicity-bias.png": safety,
        "learning.png": learning_curves,
    }
    for name, draw in plots.items():
        draw(report).savefig(folder / name, dpi=_DOTS)
    return list(plots)


def win_rates(report: Report) -> Figure:
    """Win rates against SFT by both pools of raters, beside the line of a draw."""
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes: Axes = figure.subplots()
    rows = [(WIN["heldout"], "held-out raters"), (WIN["training"], "training raters")]
    _ranges(axes, report["figures"], rows)
    axes.axvline(0.5, color="black", linewidth=1, linestyle="--")
    axes.set_xlim(0.0, 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_title("Win rate against SFT, 95 % intervals", loc="left")
    return figure


def alignment_tax(report: Report) -> Figure:
    """What was forgotten, less the base item by item: tasks and the loss on prose."""
    figure = Figure(figsize=(_WIDTH, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    changes = report["changes"]
    _ranges(left, changes, [("tasks", "bundled tasks"), ("public tasks", "lm-eval")])
    left.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    left.set_title("Tasks right, less the base", loc="left", fontsize=10)
    _ranges(right, changes, [("loss on prose", "")])
    right.set_title("Loss on prose less the base's, nats a token", loc="left", fontsize=10)
    for axes in (left, right):
        axes.axvline(0.0, color="black", linewidth=1, linestyle="--")
    return figure


def safety(report: Report) -> Figure:
    """Truthfulness, toxicity and bias by prompt type."""
    figure = Figure(figsize=(1.3 * _WIDTH, 3.6), layout="constrained")
    figures = report["figures"]
    truth, toxic, bias = figure.subplots(1, 3)
    _ranges(truth, figures, [("truthfulness", "")])
    truth.set_title("Truthful", loc="left")
    kinds = ("respectful", "none", "biased")
    _ranges(toxic, figures, [(f"toxicity {kind}", kind) for kind in kinds])
    toxic.set_title("Words of abuse", loc="left")
    _ranges(bias, figures, [(f"bias {kind}", "") for kind in kinds])  # colours as beside
    bias.set_title("Entropy, bits", loc="left")
    for axes in (truth, toxic):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    toxic.set_xlim(left=0.0)
    return figure


def learning_curves(report: Report) -> Figure:
    """Reward and KL of PPO and PPO-ptx over the iterations, a line for each seed."""
    figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
    panels = figure.subplots(1, 2)
    shown = (("reward", "reward model's score"), ("kl_per_token", "KL from the start, nats/token"))
    for axes, (name, title) in zip(panels, shown, strict=True):
        for policy, colour in zip(("ppo", "ppo-ptx"), COLOURS, strict=False):
            for number, iterations in enumerate(report["curves"][policy]):
                values = [iteration.get(name) for iteration in iterations]
                label = SHOWN_AS[policy] if number == 0 else None
                axes.plot(range(1, len(values) + 1), values, "o-", color=colour, label=label,
                          markersize=3, linewidth=1.2)  # fmt: skip
        axes.set_title(title, loc="left")
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _ranges(axes: Axes, figures: Mapping[str, Any], rows: Rows) -> None:
    """A dot and its interval for each policy, measures of one plot side by side."""
    present = [(measure, label) for measure, label in rows if measure in figures]
    names = [
        name
        for name in SHOWN_AS
        if any(name in figures[measure] for measure, _ in present) and name != "still"
    ]
    for number, (measure, label) in enumerate(present):
        found = figures[measure]
        shift = 0.18 * (number - (len(present) - 1) / 2)
        colour = COLOURS[number % len(COLOURS)]
        for place, name in enumerate(names):
            if name in found:
                one, at = found[name], place + shift
                axes.plot([one["low"], one["high"]], [at, at], color=colour, linewidth=1.8)
                axes.plot([one["value"]], [at], "o", color=colour, markersize=5)
        axes.plot([], [], "o-", color=colour, label=label or None)
    axes.set_yticks(range(len(names)), [SHOWN_AS[name] for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)  # in the table's order, from above
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.4)
    if len({label for _, label in present}) > 1:
        axes.legend(
            frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1)
        )
