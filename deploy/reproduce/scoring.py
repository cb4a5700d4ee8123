"""From the files of one seed to values with units: who won, what was right, what was toxic.

The unit of what is asked of people is a family of prompts, as these share templates and topics;
elsewhere it is an item. Reads the folders of finished steps and nothing else.
deploy/reproduce/wins.py says who won, deploy/reproduce/claims.py compares, and
deploy/reproduce/table.py shows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.hyperparameters import GateSettings
from deploy.reproduce.estimates import Series, series
from deploy.reproduce.plan import COMPARED, MEASURED, POLICIES, REWARD_MODELS, Wanted
from deploy.reproduce.prompts import families_of, prompt_sets
from deploy.reproduce.raters import People, people, ranking
from deploy.reproduce.wins import PPO, START, WIN_OVER_START, win_rates
from deploy.simulate.judges import words
from deploy.simulate.prompt_sets import Prompt
from learning.gate.comparisons import Comparison
from learning.gate.gate import judge
from learning.gate.limits import Evidence
from learning.gate.toxicity import is_toxic
from learning.training.text_quality import is_broken

ACCURACY = {"training": "accuracy, training raters", "heldout": "accuracy, held-out raters"}
Measures = dict[str, dict[str, Series]]
"""By measure, then by policy"""


@dataclass(frozen=True, slots=True)
class Seed:
    """What one seed gave."""

    seed: int
    measures: Measures
    gate: dict[str, dict[str, Any]]
    """What the service's gate says of each PPO policy over its start"""
    collected: dict[str, Any]
    figures: dict[str, dict[str, Any]]
    """Of the learning stages, by step"""
    seconds: dict[str, float]


def read_seed(root: Path, wanted: Wanted, seed: int) -> Seed:
    """Read one finished seed."""
    folder = root / f"seed-{seed}"
    answers = _json(folder / "answers" / "out" / "answers.json")
    collected = _json(folder / "collect" / "out" / "figures.json")
    crowd = people(wanted.judge, collected["scales"])
    test = unseen_prompts(wanted, seed)
    examined = _json(folder / "exam" / "out" / "exam.json")
    measures = _exam(examined)
    _add_accuracy(measures, examined, answers, crowd, test, seed=seed)
    _add_words(measures, answers)
    _add_toxicity(measures, answers)
    texts = {name: answers[name]["test"] for name in POLICIES}
    _add_form(measures, texts, families_of(test))
    measures |= win_rates(texts, crowd, test, seed=seed)
    figures = {
        step: _json(folder / step / "out" / "figures.json")
        for step in ("reward-model", "sft", "flan", *PPO, "shuffled", "answers")
    }
    return Seed(
        seed=seed,
        measures=measures,
        gate={name: _gate(name, measures, figures[name], test) for name in PPO},
        collected=collected,
        figures=figures,
        seconds={
            path.parent.name: float(_json(path)["seconds"]) for path in folder.glob("*/took.json")
        },
    )


def unseen_prompts(wanted: Wanted, seed: int) -> list[Prompt]:
    """The prompts that nobody learned from or chose by."""
    form = people(wanted.judge).judges[0].form
    return list(prompt_sets(wanted.numbers, form, seed=seed).test)


# --- measures -------------------------------------------------------------------------------


def _exam(found: Mapping[str, Any]) -> Measures:
    """The probabilities' measures."""
    measures: Measures = {}
    for name in MEASURED:
        for measure, values in found[name].items():
            measures.setdefault(measure, {})[name] = series(values["units"], values["values"])
    return measures


def _add_accuracy(
    measures: Measures,
    found: Mapping[str, Any],
    answers: Mapping[str, Any],
    crowd: People,
    test: Sequence[Prompt],
    *,
    seed: int,
) -> None:
    """Pair by pair whether a reward model orders answers as a rater of each pool does."""
    texts = [[answers[name]["test"][place] for name in COMPARED] for place in range(len(test))]
    for pool in ("training", "heldout"):
        raters = crowd.pool(heldout=pool == "heldout")
        orders = [
            ranking(crowd, raters[place % len(raters)], prompt.prompt, said, seed=seed)
            for place, (prompt, said) in enumerate(zip(test, texts, strict=True))
        ]
        for name in REWARD_MODELS:
            units, right = pair_marks(families_of(test), found[name]["scores"], orders)
            measures.setdefault(ACCURACY[pool], {})[name] = series(units, right)


def pair_marks(
    units: Sequence[str],
    scores: Sequence[Sequence[float]],
    orders: Sequence[Sequence[Sequence[int]]],
) -> tuple[list[str], list[float]]:
    """For each untied pair its unit, and 1 where the better answer scores higher, 1/2 if alike."""
    found = [
        (unit, _point(given[better], given[worse]))
        for unit, given, order in zip(units, scores, orders, strict=True)
        for place, tie in enumerate(order)
        for better in tie
        for worse in (answer for later in order[place + 1 :] for answer in later)
    ]
    return [unit for unit, _ in found], [point for _, point in found]


def _point(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)


def _add_words(measures: Measures, answers: Mapping[str, Any]) -> None:
    """Items that were answered in words belong to the tasks."""
    for name, theirs in measures["tasks"].items():
        right: dict[str, bool] = answers[name]["words"]
        measures["tasks"][name] = series(
            [*theirs.units, *right], [*theirs.values, *map(float, right.values())]
        )


def _add_toxicity(measures: Measures, answers: Mapping[str, Any]) -> None:
    """The share of answers to each opening that have a word of abuse."""
    for name, said in answers.items():
        for kind, several in said.get("toxicity", {}).items():
            shares = [float(np.mean([is_toxic(text) for text in texts])) for texts in several]
            units = [f"opening-{place}" for place in range(len(shares))]
            measures.setdefault(f"toxicity {kind}", {})[name] = series(units, shares)


def _add_form(measures: Measures, texts: Mapping[str, Sequence[str]], units: Sequence[str]) -> None:
    """What answers look like, whatever anybody thinks of them."""
    for name, said in texts.items():
        measures.setdefault("broken answers", {})[name] = series(
            units, [float(is_broken(text)) for text in said]
        )
        measures.setdefault("words of an answer", {})[name] = series(
            units, [float(len(words(text))) for text in said]
        )


# --- the gate -------------------------------------------------------------------------------


def _gate(
    name: str,
    measures: Measures,
    figures: Mapping[str, Any],
    test: Sequence[Prompt],
) -> dict[str, Any]:
    """The verdict of the service's own gate on held-out raters' votes, over the start of PPO."""
    won = measures[WIN_OVER_START][name].values
    lengths = {who: _mean(measures["words of an answer"][who]) for who in (name, START)}
    prose = measures["loss on prose"]
    before = _mean(prose[START])
    after = _mean(prose[name]) if name in prose else before
    evidence = Evidence(
        votes=[
            Comparison(prompt.user, value, value) for prompt, value in zip(test, won, strict=True)
        ],
        proxies=(),
        kl_per_token=float(figures.get("kl_per_token") or 0.0),
        pretraining_loss_share=(after - before) / before,
        length_ratio=lengths[name] / max(lengths[START], 1e-9),
        broken_share=_mean(measures["broken answers"][name]),
    )
    return asdict(judge(evidence, settings=GateSettings(), attempt=1, seed=0))


def _mean(measured: Series) -> float:
    return sum(measured.values) / len(measured.values)


def _json(path: Path) -> Any:  # whatever JSON holds
    return json.loads(path.read_text(encoding="utf-8"))
