"""From the files of one seed to values with units: who won, what was right, what was toxic.

Win rates are against the SFT policy, once by the training raters and once by held-out raters, whose
taste nobody learned; a broken answer loses. Ties count 1/2. Reads the folders of finished steps and
nothing else. deploy/reproduce/claims.py compares, deploy/reproduce/table.py shows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.hyperparameters import GateSettings
from deploy.reproduce.estimates import Series, series
from deploy.reproduce.plan import MEASURED, POLICIES, Wanted
from deploy.reproduce.raters import People, Rater, people, vote
from deploy.simulate.judges import words
from deploy.simulate.prompt_sets import Prompt, bundled_prompts, choose
from learning.gate.comparisons import Comparison
from learning.gate.gate import judge
from learning.gate.limits import Evidence
from learning.gate.toxicity import is_toxic
from learning.training.text_quality import is_broken

BASELINE = "sft"
START = "start"
PPO = ("ppo", "ppo-ptx", "still")
WIN = {"training": "win rate, training raters", "heldout": "win rate, held-out raters"}
WIN_OVER_START = "win rate over its start, held-out raters"
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
    measures = _exam(_json(folder / "exam" / "out" / "exam.json"))
    _add_words(measures, answers)
    _add_toxicity(measures, answers)
    _add_wins(measures, answers, crowd, test, seed=seed)
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
    size = wanted.numbers
    return list(
        choose(
            bundled_prompts(),
            seed=seed,
            form=people(wanted.judge).judges[0].form,
            training=size.demonstrations + size.comparisons,
            validation=size.validation,
            test=size.test,
        ).test
    )


# --- measures -------------------------------------------------------------------------------


def _exam(found: Mapping[str, Any]) -> Measures:
    """The probabilities' measures, and the reward models' accuracy."""
    measures: Measures = {}
    for name, theirs in found.items():
        for measure, values in theirs.items():
            kind = measure if name in MEASURED else f"accuracy, {measure} raters"
            measures.setdefault(kind, {})[name] = series(values["units"], values["values"])
    return measures


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


def _add_wins(
    measures: Measures,
    answers: Mapping[str, Any],
    crowd: People,
    test: Sequence[Prompt],
    *,
    seed: int,
) -> None:
    users = [prompt.user for prompt in test]
    for name in POLICIES:
        texts = answers[name]["test"]
        measures.setdefault("broken answers", {})[name] = series(
            users, [float(is_broken(text)) for text in texts]
        )
        measures.setdefault("words of an answer", {})[name] = series(
            users, [float(len(words(text))) for text in texts]
        )
        for pool, measure in WIN.items():
            if name not in (BASELINE, "still"):
                won = points(
                    crowd.pool(heldout=pool == "heldout"),
                    crowd,
                    test,
                    texts,
                    answers[BASELINE]["test"],
                    seed=seed,
                )
                measures.setdefault(measure, {})[name] = series(users, won)
    for name in PPO:
        won = points(
            crowd.pool(heldout=True),
            crowd,
            test,
            answers[name]["test"],
            answers[START]["test"],
            seed=seed,
        )
        measures.setdefault(WIN_OVER_START, {})[name] = series(users, won)


def points(
    raters: Sequence[Rater],
    crowd: People,
    prompts: Sequence[Prompt],
    new: Sequence[str],
    old: Sequence[str],
    *,
    seed: int,
) -> list[float]:
    """For each prompt the share of raters who prefer the new answer, where broken text loses.

    When both are broken the new answer loses: the rule may never help it.
    """
    return [
        _ruled(
            mine,
            theirs,
            [vote(crowd, rater, prompt.prompt, mine, theirs, seed=seed) for rater in raters],
        )
        for prompt, mine, theirs in zip(prompts, new, old, strict=True)
    ]


def _ruled(new: str, old: str, votes: Sequence[float]) -> float:
    if is_broken(new):
        return 0.0
    return 1.0 if is_broken(old) else float(np.mean(votes))


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
