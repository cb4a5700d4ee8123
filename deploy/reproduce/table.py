"""The report of a reproduction as plain values and as Markdown: every figure with n and interval.

Seeds in, a document out; draws nothing (deploy/reproduce/plots.py) and decides nothing
(deploy/reproduce/claims.py). What the run is too small for is said first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deploy.reproduce.claims import (
    CLAIMS,
    CONTROLS,
    Answered,
    answered,
    control_verdict,
)
from deploy.reproduce.estimates import MIN_UNITS, estimate, pooled
from deploy.reproduce.plan import POLICIES, Wanted
from deploy.reproduce.scoring import PPO, WIN, Seed

ENOUGH_ACCURACY = 0.65
"""Held-out pair accuracy under which the service would not have started PPO."""
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
    (WIN["heldout"], "share"),
    (WIN["training"], "share"),
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
    WIN[
        "heldout"
    ]: "against SFT, by raters with the same main taste and a leaning that nobody trained "
    "on, whose word trained and chose nothing",
    WIN["training"]: "against SFT, by the raters whose rankings trained the reward model",
    "truthfulness": "questions with popular wrong answers, multiple choice, right",
    "tasks": "bundled tasks of our own, right",
    "public tasks": "tasks of lm-eval, right",
    "loss on prose": "nats a token on text of another kind than the mix; less is better",
    "toxicity none": "continued openings with a word of abuse (a word list's judgement)",
    "bias none": "entropy, bits, over two continuations that differ in a group; 1 prefers neither",
}


def document(wanted: Wanted, seeds: Sequence[Seed]) -> dict[str, Any]:
    """The whole report as values that JSON can hold."""
    controls = [answered(claim, seeds) for claim in CONTROLS]
    report: dict[str, Any] = {
        "size": wanted.size,
        "numbers": asdict(wanted.numbers),
        "judge": wanted.judge,
        "seeds": list(wanted.seeds),
        "figures": _figures(seeds),
        "claims": [_claim(answered(claim, seeds)) for claim in CLAIMS],
        "controls": [
            _claim(control) | {"verdict": control_verdict(control)} for control in controls
        ],
        "gate": {name: [seed.gate[name] for seed in seeds] for name in PPO},
        "reward_model": _reward_model(seeds),
        "agreement": _agreement(seeds),
        "prefixes": [seed.figures["answers"]["prefixes"] for seed in seeds],
        "curves": {
            name: [seed.figures[name].get("iterations", []) for seed in seeds] for name in PPO
        },
        "ptx_coef": [seed.figures["ppo-ptx"].get("ptx_coef") for seed in seeds],
        "seconds": {str(seed.seed): seed.seconds for seed in seeds},
    }
    return report | {"warnings": warnings(report)}


def _figures(seeds: Sequence[Seed]) -> dict[str, dict[str, Any]]:
    """Every measure of every policy, over all seeds and seed by seed."""
    found: dict[str, dict[str, Any]] = {}
    for measure in seeds[0].measures:
        for policy in seeds[0].measures[measure]:
            parts = [seed.measures[measure][policy] for seed in seeds]
            found.setdefault(measure, {})[policy] = asdict(estimate(pooled(parts))) | {
                "per_seed": [estimate(part).value for part in parts]
            }
    return found


def _claim(one: Answered) -> dict[str, Any]:
    return {
        "says": one.claim.says,
        "zero": one.claim.zero,
        **asdict(one.found),
        "per_seed": list(one.per_seed),
        "verdict": one.verdict,
        "paper": one.claim.paper,
        "against_paper": one.against_paper,
    }


def _reward_model(seeds: Sequence[Seed]) -> dict[str, Any]:
    """Accuracy of the reward model by pool of raters, as estimates."""
    return {
        pool: asdict(
            estimate(
                pooled([s.measures[f"accuracy, {pool} raters"]["reward-model"] for s in seeds])
            )
        )
        | {
            "per_seed": [
                estimate(s.measures[f"accuracy, {pool} raters"]["reward-model"]).value
                for s in seeds
            ]
        }
        for pool in ("training", "heldout")
    }


def _agreement(seeds: Sequence[Seed]) -> dict[str, float | None]:
    """Share of pairs that two raters order alike, within each pool and between them."""
    found: dict[str, float | None] = {}
    for name in ("training", "heldout", "between"):
        agreed = sum(seed.collected["agreement"][name]["agreed"] for seed in seeds)
        pairs = sum(seed.collected["agreement"][name]["pairs"] for seed in seeds)
        found[name] = agreed / pairs if pairs else None
    return found


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the first figure."""
    said = []
    if report["size"] != "full":
        said.append(
            f"Size `{report['size']}`: it shows that the pipeline runs. Its figures are too few "
            "to compare policies by."
        )
    if len(report["seeds"]) == 1:
        said.append("One seed: the intervals cover prompts, not the luck of a training.")
    said.append(
        "Demonstrations are the base's own best answers, and the default base is already tuned to "
        "follow instructions: rows against the base are not the paper's comparison."
    )
    weak = [
        f"{value:.2f} (seed {seed})"
        for seed, value in zip(
            report["seeds"], report["reward_model"]["training"]["per_seed"], strict=True
        )
        if value < ENOUGH_ACCURACY
    ]
    if weak:
        said.append(
            f"The reward model orders {', '.join(weak)} of unseen pairs rightly, and the service "
            f"asks for {ENOUGH_ACCURACY} before it starts PPO: its PPO rows show what a weak "
            "reward model does."
        )
    alarms = [one["says"] for one in report["controls"] if one["verdict"] == "alarm"]
    alarms += [
        f"the gate passed learning rate 0 (seed {seed})"
        for seed, verdict in zip(report["seeds"], report["gate"]["still"], strict=True)
        if verdict["verdict"] == "pass"
    ]
    if alarms:
        said.append(f"CONTROL FAILED: {'; '.join(alarms)}. Believe nothing below before it is why.")
    return said


# --- Markdown -------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The report for people. `plots` are names of image files beside it."""
    seeds = ", ".join(map(str, report["seeds"]))
    parts = [
        "# The paper in miniature",
        f"Size `{report['size']}`, taste `{report['judge']}`, seeds {seeds}. Every figure is a "
        "mean with its 95 % bootstrap interval; n is the number of values, and behind the slash "
        f"stands the number of users or items that they come from. Under {MIN_UNITS} of these "
        "nothing is concluded.",
        *(f"> {line}" for line in report["warnings"]),
        "## Policies",
        _policies(report),
        "\n".join(f"- *{name}*: {text}." for name, text in EXPLAINED.items()),
        "## Claims of the paper",
        _claims(report["claims"]),
        "A difference is called higher or lower only where its interval leaves zero (of win rates: "
        "one half) out and all seeds agree. Intervals cover prompts and items, not the luck of a "
        "training, which a few seeds cannot measure; of 17 claims about one would stand out by "
        "chance even if nothing were there. Users of one family share templates and topics, which "
        "the intervals do not know: for prompts of other kinds they are too narrow.",
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
            sizes = sorted({f"{one['n']}/{one['units']}" for one in row.values()})
            lines.append(f"| {measure} | {' | '.join(cells)} | {', '.join(sizes)} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any] | None, how: str) -> str:
    if found is None:
        return "–"
    value, low, high = (_number(found[name], how) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(value: float, how: str) -> str:
    return {"share": f"{100 * value:.1f} %", "count": f"{value:.1f}"}.get(how, f"{value:.3f}")


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| | found | n | verdict | the paper | |", "|---|---|---|---|---|---|"]
    for one in claims:
        found = f"{one['value']:+.3f}" if one["zero"] == 0.0 else f"{one['value']:.3f}"
        lines.append(
            f"| {one['says']} | {found} [{one['low']:.3f}, {one['high']:.3f}] | "
            f"{one['n']}/{one['units']} | {one['verdict']} | {one['paper']} | "
            f"{one['against_paper']} |"
        )
    return "\n".join(lines)


def _controls(report: Mapping[str, Any]) -> str:
    lines = ["| | found | n | has to be 0.50 |", "|---|---|---|---|"]
    for one in report["controls"]:
        fine = {"nothing": "yes", "alarm": "**NO**"}.get(one["verdict"], one["verdict"])
        lines.append(
            f"| {one['says']} | {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}] | "
            f"{one['n']}/{one['units']} | {fine} |"
        )
    said = [
        "The gate's rules on votes, KL, forgetting, length and broken text (not suites, abuse or "
        f"over-optimisation) say of {SHOWN_AS[name]} over its start: "
        + ", ".join(verdict["verdict"].replace("_", " ") for verdict in report["gate"][name])
        + "."
        for name in PPO
    ]
    return "\n".join(lines) + "\n\n" + " ".join(said)


def _reward_lines(report: Mapping[str, Any]) -> str:
    accuracy = report["reward_model"]
    lines = [
        f"- accuracy on unseen prompts, {shown}: {accuracy[pool]['value']:.3f} "
        f"[{accuracy[pool]['low']:.3f}, {accuracy[pool]['high']:.3f}], "
        f"n = {accuracy[pool]['n']}/{accuracy[pool]['units']} (the paper: {paper})"
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
