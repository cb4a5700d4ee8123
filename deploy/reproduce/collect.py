"""The step `collect`: the base model answers, raters rank, demonstrate, and are compared.

    python -m deploy.reproduce.collect SEED/collect

Where tasks of lm-eval are asked for it tries them first, so that missing data shows in the first
minutes. Leaves `out/snapshot` and `out/flan` as the stages of learning read them, and what few-shot
prefixes may consist of. A demonstration is the answer that a training rater likes best of K, broken
ones left out: these raters cannot write. Held-out raters are only compared with the others here.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from deploy.reproduce.prompts import prompt_sets
from deploy.reproduce.raters import People, Rater, agreement, people, ranking, scales_of
from deploy.reproduce.sampling import chat, encoded, sampled, serving, text_of
from deploy.reproduce.sizes import Size
from deploy.reproduce.tasks import flan_mixture
from deploy.simulate.prompt_sets import Prompt, PromptSets
from deploy.simulate.raters import who_ranks
from feedback.tables import SCHEMAS, write_tables
from learning.evaluation.regression_lm_eval import task_marks
from learning.training.stage import Stage, write_json
from learning.training.stage import run as run_stage
from learning.training.text_quality import is_broken

SHOTS = 3
PREFIXES = 3
"""Few-shot prefixes that the reward model chooses among, each of SHOTS examples."""
RANKED_BY = 2
"""Training raters who rank the answers to one prompt."""
Row = dict[str, Any]  # of a table


@dataclass(frozen=True, slots=True)
class Answered:
    """One prompt with the different answers to it."""

    prompt: Prompt
    texts: tuple[str, ...]


def collect(stage: Stage) -> dict[str, Any]:
    """Run the step; returns its figures. Raises Interrupted, NotEnoughData."""
    size, seed = Size(**stage.inputs["size"]), int(stage.inputs["seed"])
    _try_lm_eval(stage)
    judges = people(stage.inputs["judge"]).judges
    sets = prompt_sets(size, judges[0].form, seed=seed)
    answered = _answered(stage, [*sets.training, *sets.validation], size)
    said = [(one.prompt.prompt, text) for one in answered for text in one.texts]
    crowd = people(stage.inputs["judge"], scales_of(judges, said))
    training, validation = answered[: len(sets.training)], answered[len(sets.training) :]
    demonstrations = _demonstrations(crowd, training[: size.demonstrations], "train", seed=seed)
    rankings = _rankings(crowd, training, "train", seed=seed)
    tables = {
        "rankings": rankings + _rankings(crowd, validation, "validation", seed=seed),
        "demonstrations": demonstrations
        + _demonstrations(crowd, validation, "validation", seed=seed),
        "prompts": _prompts(sets),
    }
    _write(stage, "snapshot", tables)
    _write(stage, "flan", _flan(size, sets, seed=seed))
    write_json(stage.partial / "shots.json", _shots(demonstrations, seed=seed))
    return {
        "scales": crowd.scales,
        "prompts": len(answered),
        "answers": len(said),
        "rankings": len(rankings),
        "demonstrations": len(demonstrations),
        "agreement": _agreement(crowd, validation, seed=seed),
    }


def _try_lm_eval(stage: Stage) -> None:
    """Two items of each task. Raises NotEnoughData, which says what is missing."""
    tasks = stage.inputs.get("lm_eval", ())
    if tasks:
        stage.progress(0.0, "trying lm-eval")
        task_marks(stage.path("model"), tasks, limit=2, out=stage.folder / "parts" / "lm-eval")


def _answered(stage: Stage, prompts: Sequence[Prompt], size: Size) -> list[Answered]:
    tokenizer = AutoTokenizer.from_pretrained(stage.path("model"), local_files_only=True)
    with serving(stage) as engine:
        samples = sampled(
            stage,
            engine,
            "base",
            encoded(tokenizer, [prompt.prompt for prompt in prompts]),
            n=size.answers,
            max_tokens=people(stage.inputs["judge"]).judges[0].max_tokens,
            temperature=1.0,
            seed=1_000_003 * (1 + int(stage.inputs["seed"])),
            on_part=lambda share: stage.progress(0.9 * share, "the base model answers"),
        )
    texts = [dict.fromkeys(text_of(tokenizer, one) for one in several) for several in samples]
    return [Answered(prompt, tuple(found)) for prompt, found in zip(prompts, texts, strict=True)]


# --- what raters say ------------------------------------------------------------------------


def _said_by(raters: Sequence[Rater], index: int, *, seed: int) -> Rater:
    by_name = {rater.name: rater for rater in raters}
    return by_name[who_ranks(index, list(by_name), seed=seed)]


def _rankings(crowd: People, answered: Sequence[Answered], split: str, *, seed: int) -> list[Row]:
    """Each prompt's answers, ranked by RANKED_BY training raters; none where all answers are one.

    A second ranking costs no time: the reward model encodes an answer once.
    """
    rows = []
    for index, one in enumerate(answered):
        if len(one.texts) < 2:
            continue
        raters = list(crowd.pool(heldout=False))
        for _ in range(RANKED_BY):
            rater = _said_by(raters, index, seed=seed)
            raters.remove(rater)
            order = ranking(crowd, rater, one.prompt.prompt, one.texts, seed=seed)
            rows.append(_ranking_row(one, rater, order, f"{split}-{index}", split))
    return rows


def _ranking_row(
    one: Answered, rater: Rater, order: Sequence[Sequence[int]], group: str, split: str
) -> Row:
    places = {answer: place for place, tie in enumerate(order, start=1) for answer in tie}
    answers = [
        {
            "completion_id": f"{group}-{i}",
            "choice": 0,
            "text": text,
            "finish_reason": "stop",
            "rank": places[i],
        }
        for i, text in enumerate(one.texts)
    ]
    return _row(one.prompt, split, rater, group_id=group, answers=answers, weight=1.0)


def _demonstrations(
    crowd: People, answered: Sequence[Answered], split: str, *, seed: int
) -> list[Row]:
    """The answer that one training rater likes best; none where every answer is broken."""
    raters, rows = crowd.pool(heldout=False), []
    for index, one in enumerate(answered):
        whole = [text for text in one.texts if not is_broken(text)]
        if whole:
            rater = _said_by(raters, index, seed=seed + 1)
            order = ranking(crowd, rater, one.prompt.prompt, whole, seed=seed)
            rows.append(_row(one.prompt, split, rater, text=whole[order[0][0]], weight=1.0))
    return rows


def _row(prompt: Prompt, split: str, rater: Rater, **more: Any) -> Row:
    return {
        "feedback_id": "",
        "messages": chat(prompt.prompt),
        "user": prompt.user,
        "split": split,
        "rater": rater.name,
        "heldout_rater": rater.heldout,
        **more,
    }


def _agreement(
    crowd: People, answered: Sequence[Answered], *, seed: int
) -> dict[str, dict[str, int]]:
    """How often two raters order a pair the same way, within each pool and between them."""
    counts = {name: {"agreed": 0, "pairs": 0} for name in ("training", "heldout", "between")}
    for one in answered:
        orders = {
            heldout: [
                ranking(crowd, rater, one.prompt.prompt, one.texts, seed=seed)
                for rater in crowd.pool(heldout=heldout)
            ]
            for heldout in (False, True)
        }
        compared = {
            "training": list(_pairs(orders[False])),
            "heldout": list(_pairs(orders[True])),
            "between": [(a, b) for a in orders[False] for b in orders[True]],
        }
        for name, pairs in compared.items():
            for first, second in pairs:
                agreed, both = agreement(first, second)
                counts[name]["agreed"] += agreed
                counts[name]["pairs"] += both
    return counts


def _pairs(orders: Sequence[list[list[int]]]) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [(a, b) for i, a in enumerate(orders) for b in orders[i + 1 :]]


# --- what is written ------------------------------------------------------------------------


def _prompts(sets: PromptSets) -> list[Row]:
    return [
        {
            "prompt_id": f"{split}-{index}",
            "tenant": "default",
            "messages": chat(prompt.prompt),
            "user": prompt.user,
            "split": split,
        }
        for split, prompts in (("train", sets.training), ("validation", sets.validation))
        for index, prompt in enumerate(prompts)
    ]


def _flan(size: Size, sets: PromptSets, *, seed: int) -> dict[str, list[Row]]:
    """The task mixture as demonstrations: nine in ten train, the rest choose the epoch."""
    examples = flan_mixture(size.flan_examples, seed=seed)
    rows = [
        {
            "feedback_id": "",
            "messages": chat(example.prompt),
            "user": f"task-{example.task}",
            "split": "validation" if index % 10 == 9 else "train",
            "rater": "tasks",
            "heldout_rater": False,
            "text": example.answer,
            "weight": 1.0,
        }
        for index, example in enumerate(examples)
    ]
    return {"demonstrations": rows, "prompts": _prompts(sets)}


def _write(stage: Stage, name: str, tables: dict[str, list[Row]]) -> None:
    folder = stage.partial / name
    folder.mkdir()
    write_tables({table: tables.get(table, []) for table in SCHEMAS}, folder)


def _shots(demonstrations: Sequence[Row], *, seed: int) -> list[list[list[str]]]:
    """Sets of demonstrations to show before a prompt: [prompt, answer] each."""
    pairs = [[json.loads(row["messages"])[-1]["content"], row["text"]] for row in demonstrations]
    random.Random(seed).shuffle(pairs)
    count = min(SHOTS, max(1, len(pairs) // PREFIXES))
    return [pairs[at * count : (at + 1) * count] for at in range(PREFIXES) if pairs[at * count :]]


if __name__ == "__main__":
    run_stage(collect)
