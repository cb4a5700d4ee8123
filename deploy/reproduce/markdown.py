"""The report of a reproduction as Markdown: every figure with n and interval.

What the run is too small for is said first. Takes the document of deploy/reproduce/table.py, which
JSON can hold as well; decides nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.reproduce.estimates import MIN_UNITS
from deploy.reproduce.plan import POLICIES
from deploy.reproduce.wins import PPO, WIN, WIN_OVER_START, WIN_SIMILAR, WIN_UNRULED

HELDOUT, TRAINING = WIN["heldout"], WIN["training"]
SHOWN_AS = {
    "base": "base",
    "prompted": "base, few-shot prompt",
    "start": "start of PPO",
    "sft": "SFT",
    "flan": "FLAN-style",
    "ppo": "PPO (γ = 0)",
    "ppo-ptx": "PPO-ptx",
    "still": "PPO, learning rate 0",
}
COLUMNS = (
    (HELDOUT, "share"),
    (WIN_UNRULED, "share"),
    (WIN_SIMILAR, "share"),
    (TRAINING, "share"),
    (WIN_OVER_START, "share"),
    ("truthfulness", "share"),
    ("tasks", "share"),
    ("public tasks", "share"),
    ("loss on prose", "number"),
    ("toxicity respectful", "share"),
    ("toxicity none", "share"),
    ("toxicity biased", "share"),
    ("bias respectful", "number"),
    ("bias none", "number"),
    ("bias biased", "number"),
    ("broken answers", "share"),
    ("words of an answer", "count"),
)
"""Measures in the order of the table, and how a figure is written."""
EXPLAINED = {
    HELDOUT: "against SFT, by raters with the same main taste and a leaning that nobody trained "
    "on, whose word trained and chose nothing",
    WIN_SIMILAR: "where the word counts differ by a tenth at most",
    TRAINING: "against SFT, by the raters whose rankings trained the reward model",
    "truthfulness": "questions with popular wrong answers, multiple choice, right",
    "tasks": "bundled tasks of our own, right",
    "public tasks": "tasks of lm-eval, right",
    "loss on prose": "nats a token on text of another kind than the mix; less is better",
    "toxicity none": "continued openings with a word of abuse (a word list's judgement)",
    "bias none": "entropy, bits, over two continuations that differ in a group; 1 prefers neither",
}


def markdown(report: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The report for people. `plots` are names of image files beside it."""
    seeds = ", ".join(map(str, report["seeds"]))
    parts = [
        "# The paper in miniature",
        f"Size `{report['size']}`, taste `{report['judge']}`, seeds {seeds}. Every figure is a "
        "mean with its 95 % bootstrap interval; n is the number of values, and behind the slash "
        "stands the number of units that they come from: families of prompts with templates and "
        "topics of their own (win rates, broken answers, words, the reward model), or items. Under "
        f"{MIN_UNITS} units nothing is concluded.",
        *(f"> {line}" for line in report["warnings"]),
        "## Policies",
        _policies(report),
        "\n".join(
            f"- *{name}*: {text}." for name, text in EXPLAINED.items() if name in report["figures"]
        ),
        "## Claims of the paper",
        _claims(report["claims"]),
        "A difference is called higher or lower only where its interval leaves zero (of win rates: "
        "one half) out and all seeds agree. Intervals cover families of prompts and items, not the "
        f"luck of a training, which a few seeds cannot measure; of {len(report['claims'])} claims "
        "about one would stand out by chance even if nothing were there. Items of one bundled task "
        "share their form: other tasks may say otherwise.",
        "## Controls",
        _controls(report),
        "## Reward model",
        _reward_lines(report),
        *(f"![{name.partition('.')[0].replace('-', ' ')}]({name})" for name in plots),
    ]
    return "\n\n".join(parts) + "\n"


def _policies(report: Mapping[str, Any]) -> str:
    """One row for each measure, one column for each policy: narrow screens scroll one way."""
    names = [name for name in POLICIES if name != "still"]
    lines = [
        "| | " + " | ".join(SHOWN_AS[name] for name in names) + " | n |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for measure, how in COLUMNS:
        row = report["figures"].get(measure)
        if row:
            cells = [_cell(row.get(name), how) for name in names]
            lines.append(f"| {measure} | {' | '.join(cells)} | {_sizes(list(row.values()))} |")
    return "\n".join(lines)


def _sizes(row: Sequence[Mapping[str, Any]]) -> str:
    """Values and units of a row; where its policies have others, the fewest and the most."""
    sizes = sorted({(one["n"], one["units"]) for one in row})
    return " to ".join(f"{n}/{units}" for n, units in dict.fromkeys((sizes[0], sizes[-1])))


def _cell(found: Mapping[str, Any] | None, how: str) -> str:
    if found is None:
        return "–"
    value, low, high = (_number(found[name], how) for name in ("value", "low", "high"))
    # drawing again from values that are all the same says nothing of others
    return f"{value} (all)" if found["low"] == found["high"] else f"{value} [{low}, {high}]"


def _number(value: float, how: str) -> str:
    return {"share": f"{100 * value:.1f} %", "count": f"{value:.1f}"}.get(how, f"{value:.3f}")


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| | found | by seed | n | verdict | the paper | |", "|---|---|---|---|---|---|---|"]
    for one in claims:
        sign = "+" if one["zero"] == 0.0 else ""
        lines.append(
            f"| {one['says']} | {_found(one, sign)} | {one['n']}/{one['units']} | "
            f"{one['verdict']} | {one['paper']} | {one['against_paper']} |"
        )
    return "\n".join(lines)


def _found(one: Mapping[str, Any], sign: str = "") -> str:
    """Two cells: the mean with its interval, and each seed's mean."""
    value, low, high = (f"{one[name]:{sign}.3f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}] | {', '.join(f'{mean:{sign}.2f}' for mean in one['per_seed'])}"


def _controls(report: Mapping[str, Any]) -> str:
    lines = ["| | found | by seed | n | as it has to be: 0.50 |", "|---|---|---|---|---|"]
    for one in report["controls"]:
        fine = {"nothing": "yes", "alarm": "**NO**"}.get(one["verdict"], one["verdict"])
        lines.append(f"| {one['says']} | {_found(one)} | {one['n']}/{one['units']} | {fine} |")
    verdicts = [
        f"{SHOWN_AS[name]}: "
        + ", ".join(verdict["verdict"].replace("_", " ") for verdict in report["gate"][name])
        for name in PPO
    ]
    return (
        "\n".join(lines) + "\n\nThe gate's rules on votes, KL, forgetting, length and broken text "
        "(not suites, abuse or over-optimisation) say of a policy over the start of PPO, seed by "
        f"seed: {'; '.join(verdicts)}."
    )


def _reward_lines(report: Mapping[str, Any]) -> str:
    accuracy = report["reward_model"]
    lines = [
        f"- accuracy on pairs of answers to unseen prompts (of the base, of PPO's start and of "
        f"SFT), {shown}: {accuracy[pool]['value']:.3f} "
        f"[{accuracy[pool]['low']:.3f}, {accuracy[pool]['high']:.3f}], "
        f"n = {accuracy[pool]['n']}/{accuracy[pool]['units']}, by seed "
        f"{', '.join(f'{mean:.2f}' for mean in accuracy[pool]['per_seed'])} (the paper: {paper})"
        for pool, shown, paper in (
            ("training", "training raters", "0.724"),
            ("heldout", "held-out raters", "0.696"),
        )
    ]
    agreement = report["agreement"]
    lines += [
        f"- raters agree on {agreement[name]:.3f} of pairs, {shown} (the paper: {paper})"
        for name, shown, paper in (
            ("training", "training raters among themselves", "0.726"),
            ("heldout", "held-out raters among themselves", "0.773"),
            ("between", "one of each", "not given"),
        )
        if agreement[name] is not None
    ]
    return "\n".join(lines)
