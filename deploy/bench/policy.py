"""`instructloop bench policy`: episodes per second of PPO updates on given answers, beside TRL's.

Same model, answers, precision and threads; two optimiser steps over 8 prompts with 4 answers
each, which is half of an iteration. Sampling is an engine's business and left out on both sides:
what is measured are scores, old and reference log-probabilities, values, and the steps of both
models. The last TRL that had a PPO trainer knows no pretraining term, so ours is compared without
it and shown with it. All take turns, round by round. The updates are in
deploy/bench/policy_child.py and training_trl.py.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from core.settings import Settings
from deploy.base_model import base_model_folder
from deploy.bench.maths import over_rounds
from deploy.bench.progress import progress
from deploy.bench.targets import folder_in
from deploy.bench.training_data import TOKENS
from deploy.bench.training_line import Words
from deploy.bench.training_maths import (
    Shape,
    body_flops,
    group_looks,
    head_flops,
    read_shape,
    trained_layers,
)
from deploy.bench.training_report import PolicyReport, Update
from deploy.bench.training_turns import Trainer, measured_names, trainer
from learning.training.pretraining_text import draw, mix_texts, sequences

OURS = "instructloop"
PTX = "instructloop with ptx"
TRL = "TRL PPOTrainer"
TARGETS = {"ours": OURS, "trl": TRL}
"""By the names that `--only` takes."""
PROMPTS, ANSWERS, ANSWER_TOKENS = 8, 4, 40
_MINIBATCHES = 2
_PTX_SEQUENCES, _PTX_TOKENS = 3, 64
"""Of one optimiser step."""
_FORWARD_BATCH = 16
_FORWARD_PASSES = 3
"""Without a gradient: scores, old and reference log-probabilities."""
_CHILD, _PEER = "deploy.bench.policy_child", "deploy.bench.training_trl"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure."""

    rounds: int = 3
    only: tuple[str, ...] = tuple(TARGETS)
    """Of TARGETS, what is measured; TRL where it is installed."""
    peer_dtype: str = "bfloat16"


def bench_policy(wanted: Wanted, *, settings: Settings, say: Callable[[str], None]) -> PolicyReport:
    """Measure. Raises StartError."""
    model = base_model_folder(settings, say=say, alive=lambda: True).resolve()
    names = measured_names(wanted.only, TARGETS, trl=TRL, say=say)
    with folder_in(settings.state_dir) as folder, ExitStack() as stack:
        say("loading the models")
        asked = _trainers(stack, model, folder, names, wanted.peer_dtype)
        bare = stack.enter_context(
            trainer("products", "deploy.bench.training_child", {"model": str(model)}, folder)
        )
        heard: dict[str, list[Words]] = {name: [] for name in asked}
        products: list[float] = []
        tokens = PROMPTS // _MINIBATCHES * (TOKENS + ANSWERS * ANSWER_TOKENS)
        with progress((wanted.rounds + 1) * (len(asked) + 1)) as tick:
            for number in range(-1, wanted.rounds):  # the first is to warm up
                say("warming up" if number < 0 else f"round {number + 1} of {wanted.rounds}")
                tick("products of matrices")
                found = bare.ask(do="products", tokens=tokens)["per_second"]
                products += [found] if number >= 0 else []
                for name, (child, ptx) in asked.items():
                    tick(name)
                    words = child.ask(do="update", ptx=ptx)
                    heard[name] += [words] if number >= 0 else []
    return _report(wanted.rounds, heard, products, read_shape(model))


def update_flops(shape: Shape, *, frozen_share: float) -> float:
    """Of an update without ptx, by deploy/bench/training_maths.py."""
    answers = [ANSWER_TOKENS] * ANSWERS
    tokens = PROMPTS * (TOKENS + sum(answers))
    looks = PROMPTS * group_looks(TOKENS, answers)
    said = PROMPTS * sum(answers)
    body = [
        _FORWARD_PASSES * body_flops(shape, tokens=tokens, looks=looks, trained_layers=0),
        body_flops(shape, tokens=tokens, looks=looks, trained_layers=shape.layers),
        body_flops(
            shape, tokens=tokens, looks=looks, trained_layers=trained_layers(shape, frozen_share)
        ),
    ]
    head = 2 * head_flops(shape, tokens=said, trained=False)  # old and reference
    return sum(body) + head + head_flops(shape, tokens=said, trained=True)


def _report(
    rounds: int, heard: dict[str, list[Words]], products: Sequence[float], shape: Shape
) -> PolicyReport:
    rates = {name: [w["episodes"] / w["seconds"] for w in of] for name, of in heard.items()}
    flops = update_flops(shape, frozen_share=0.0)
    updates = [
        Update(
            name=name,
            episodes_per_second=over_rounds(of),
            peak_bytes=heard[name][-1]["peak_bytes"],
            flops_per_second=over_rounds([flops / w["seconds"] for w in heard[name]])
            if name == OURS
            else None,
        )
        for name, of in rates.items()
    ]
    with_ptx = [w["parts"]["policy with ptx"] for w in heard.get(PTX, [])]
    without = [w["parts"]["policy"] for w in heard.get(OURS, [])]
    extra = [a / b - 1.0 for a, b in zip(with_ptx, without, strict=True)]
    return PolicyReport(
        rounds=rounds,
        episodes=PROMPTS * ANSWERS,
        updates=updates,
        products_per_second=over_rounds(products),
        ptx_cost=over_rounds(extra) if extra else None,
        parts={
            part: statistics.median(w["parts"][part] for w in heard[OURS])
            for part in (heard[OURS][0]["parts"] if OURS in heard else ())
        },
    )


def _trainers(
    stack: ExitStack, model: Path, folder: Path, names: Sequence[str], peer_dtype: str
) -> dict[str, tuple[Trainer, bool]]:
    """By name, the child and whether its update has the pretraining term."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def pieces(length: int, count: int) -> list[list[int]]:
        cut = sequences(
            mix_texts(),
            lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
            length=length,
        )
        return draw(cut, count=count, seed=length)

    prompts, answers = pieces(TOKENS, PROMPTS), pieces(ANSWER_TOKENS, PROMPTS * ANSWERS)
    specification: Words = {
        "model": str(model),
        "groups": [
            (prompt, answers[at * ANSWERS : (at + 1) * ANSWERS])
            for at, prompt in enumerate(prompts)
        ],
        "ptx": pieces(_PTX_TOKENS, _PTX_SEQUENCES),
        "minibatches": _MINIBATCHES,
        "frozen_share": 0.0,
    }
    asked: dict[str, tuple[Trainer, bool]] = {}
    if OURS in names:
        ours = stack.enter_context(trainer(OURS, _CHILD, specification, folder))
        asked |= {OURS: (ours, False), PTX: (ours, True)}
    if TRL in names:
        given = {
            "role": "policy",
            "model": str(model),
            "dtype": peer_dtype,
            "prompts": [prompt for prompt in prompts for _ in range(ANSWERS)],
            "answers": answers,
            "minibatches": _MINIBATCHES,
            "forward_batch": _FORWARD_BATCH,
        }
        child = stack.enter_context(trainer(TRL, _PEER, given, folder, peer=True))
        asked[TRL] = (child, False)
    return asked
