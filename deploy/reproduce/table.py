"""The report of a reproduction as plain values: every figure with n and interval.

Seeds in, a document out, with the warnings that have to be read before it. Decides nothing
(deploy/reproduce/claims.py); deploy/reproduce/markdown.py and plots.py show it.
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
from deploy.reproduce.estimates import MIN_UNITS, difference, estimate, pooled
from deploy.reproduce.plan import Wanted
from deploy.reproduce.prompts import FOLDS
from deploy.reproduce.scoring import ACCURACY, Seed
from deploy.reproduce.wins import PPO

ENOUGH_ACCURACY = 0.65
"""Held-out pair accuracy under which the service would not have started PPO."""
TAXED = ("tasks", "public tasks", "loss on prose")
"""Measures of what training may cost."""


def document(wanted: Wanted, seeds: Sequence[Seed]) -> dict[str, Any]:
    """The whole report as values that JSON can hold."""
    controls = [answered(claim, seeds) for claim in CONTROLS]
    report: dict[str, Any] = {
        "size": wanted.size,
        "numbers": asdict(wanted.numbers),
        "judge": wanted.judge,
        "seeds": list(wanted.seeds),
        "figures": _figures(seeds),
        "changes": _changes(seeds),
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
            parts = [
                seed.measures[measure][policy]
                for seed in seeds
                if policy in seed.measures.get(measure, {})
            ]
            found.setdefault(measure, {})[policy] = asdict(estimate(pooled(parts))) | {
                "per_seed": [estimate(part).value for part in parts]
            }
    return found


def _changes(seeds: Sequence[Seed]) -> dict[str, dict[str, Any]]:
    """What became of the base's abilities, item by item: a policy's less the base's."""
    found: dict[str, dict[str, Any]] = {}
    for measure in (name for name in TAXED if name in seeds[0].measures):
        for policy in (name for name in seeds[0].measures[measure] if name != "base"):
            parts = [
                difference(seed.measures[measure][policy], seed.measures[measure]["base"])
                for seed in seeds
            ]
            found.setdefault(measure, {})[policy] = asdict(estimate(pooled(parts)))
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
        pool: asdict(estimate(pooled([s.measures[ACCURACY[pool]]["reward-model"] for s in seeds])))
        | {"per_seed": [estimate(s.measures[ACCURACY[pool]]["reward-model"]).value for s in seeds]}
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
    return [*_of_size(report), *_of_raters(report), *_of_rewards(report), *_of_controls(report)]


def _of_size(report: Mapping[str, Any]) -> list[str]:
    said = []
    if report["size"] in ("quick", "little"):
        said.append(
            f"Size `{report['size']}`: it shows that the pipeline runs. Its figures are too few "
            "to compare policies by."
        )
    if len(report["seeds"]) < FOLDS:
        said.append(
            f"Fewer than {FOLDS} seeds: each tests a third of the families of prompts, so win "
            f"rates rest on fewer than {MIN_UNITS} and nothing is concluded from them."
        )
    return said


def _of_raters(report: Mapping[str, Any]) -> list[str]:
    said = [
        "Demonstrations are the base's own best answers, and the default base is already tuned to "
        "follow instructions: rows against the base are not the paper's comparison."
    ]
    if report["judge"] == "brevity":
        said.append(
            "The raters like few words: whatever teaches short answers wins here, such as the "
            "FLAN-style mixture, most of whose answers are a word or two."
        )
    return said


def _of_rewards(report: Mapping[str, Any]) -> list[str]:
    accuracies = report["reward_model"]["training"]["per_seed"]
    weak = [
        f"{value:.2f} (seed {seed})"
        for seed, value in zip(report["seeds"], accuracies, strict=True)
        if value < ENOUGH_ACCURACY
    ]
    if not weak:
        return []
    return [
        f"The reward model orders {', '.join(weak)} of unseen pairs rightly, and the service "
        f"asks for {ENOUGH_ACCURACY} before it starts PPO: its PPO rows show what a weak reward "
        "model does."
    ]


def _of_controls(report: Mapping[str, Any]) -> list[str]:
    alarms = [one["says"] for one in report["controls"] if one["verdict"] == "alarm"]
    alarms += [
        f"the gate passed learning rate 0 (seed {seed})"
        for seed, verdict in zip(report["seeds"], report["gate"]["still"], strict=True)
        if verdict["verdict"] == "pass"
    ]
    if not alarms:
        return []
    return [f"CONTROL FAILED: {'; '.join(alarms)}. Believe nothing below before you know why."]
