"""`instructloop bench reward-model`: comparisons per second of reward-model training, beside TRL's.

Same model, pieces of text, precision and threads. Ours reads a prompt once with all its K answers;
our unpacked path reads it with each answer; TRL's RewardTrainer reads both sequences of every pair.
All stay loaded and take turns in every round; a figure is the median over rounds. The machine's own
rate for products of matrices of these shapes is taken in every round, too. Training itself is in
deploy/bench/training_child.py and training_trl.py, the words in deploy/bench/training_report.py.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.settings import Settings
from deploy.base_model import base_model_folder
from deploy.bench.maths import over_rounds
from deploy.bench.progress import Tick, progress
from deploy.bench.targets import folder_in
from deploy.bench.training_data import TOKENS, Preferences, preferences
from deploy.bench.training_maths import (
    Shape,
    body_flops,
    group_looks,
    pairs_of,
    read_shape,
    trained_layers,
)
from deploy.bench.training_report import RewardReport, Variant
from deploy.bench.training_turns import Trainer, trainer, trl_missing

OURS = "instructloop"
SMALL = "instructloop, lower half frozen"
UNPACKED = "instructloop, unpacked"
TRL = "TRL RewardTrainer"
ANSWERS = (4, 9)
_VARIANTS = {OURS: (0.0, True), SMALL: (0.5, True), UNPACKED: (0.0, False)}
_STEPS = {4: 4, 9: 2}
"""Steps of one turn, each over two prompts."""
_STEP_PAIRS = 12
"""Of TRL's optimiser step, as in ours at K = 4; at K = 9 ours has 72. Pairs are alike for any K."""
_PROMPTS = {4: 60, 9: 16}
_HELDOUT = 30
_LEARNED_ANSWERS = 4
_CHILD, _PEER = "deploy.bench.training_child", "deploy.bench.training_trl"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure."""

    rounds: int = 3
    accuracy: bool = True
    """Whether to train ours and TRL's to the end of an epoch and compare what they learned."""
    peers: bool = True
    """Whether to measure TRL, where it is installed."""
    peer_dtype: str = "bfloat16"


def bench_reward_model(
    wanted: Wanted, *, settings: Settings, say: Callable[[str], None]
) -> RewardReport:
    """Measure. Raises StartError."""
    model = base_model_folder(settings, say=say, alive=lambda: True).resolve()
    shape = read_shape(model)
    data = preferences(model, prompts=_PROMPTS, heldout=_HELDOUT)
    missing = trl_missing()
    if wanted.peers and missing:
        say(missing)
    with_trl = wanted.peers and not missing
    with folder_in(settings.state_dir) as folder:
        rates, products, peaks = _speeds(wanted, model, data, folder, say, with_trl)
        accuracy = {}
        if wanted.accuracy:
            say("training to the end of an epoch, to compare what was learned (minutes)")
            accuracy = dict(_accuracies(wanted, model, data, folder, with_trl))
    variants = [
        Variant(
            name=name,
            comparisons_per_second={k: over_rounds(v) for k, v in rates[name].items()},
            peak_bytes=peaks[name],
            accuracy=accuracy.get(name),
            flops_per_second={k: over_rounds(v) for k, v in _flops(shape, name, rates[name])},
        )
        for name in rates
    ]
    trained = pairs_of(_LEARNED_ANSWERS) * _PROMPTS[_LEARNED_ANSWERS] if accuracy else 0
    return RewardReport(
        rounds=wanted.rounds,
        variants=variants,
        products_per_second=over_rounds(products),
        trained_comparisons=trained,
    )


def row_tokens(answers: int) -> int:
    """Of a prompt with its answers."""
    return TOKENS * (1 + answers)


def flops_per_comparison(shape: Shape, answers: int, *, frozen_share: float, packed: bool) -> float:
    """What one comparison's share of a ranking of K answers takes."""
    if packed:
        tokens, looks = row_tokens(answers), group_looks(TOKENS, [TOKENS] * answers)
    else:
        tokens, looks = 2 * TOKENS * answers, answers * group_looks(TOKENS, [TOKENS])
    layers = trained_layers(shape, frozen_share)
    return body_flops(shape, tokens=tokens, looks=looks, trained_layers=layers) / pairs_of(answers)


def _flops(
    shape: Shape, name: str, rates: dict[int, list[float]]
) -> Iterator[tuple[int, list[float]]]:
    for answers, found in rates.items():
        if name in _VARIANTS:
            frozen, packed = _VARIANTS[name]
            each = flops_per_comparison(shape, answers, frozen_share=frozen, packed=packed)
        else:  # a pair of sequences each time
            each = flops_per_comparison(shape, 2, frozen_share=0.0, packed=False)
        yield answers, [each * rate for rate in found]


def _speeds(
    wanted: Wanted,
    model: Path,
    data: Preferences,
    folder: Path,
    say: Callable[[str], None],
    with_trl: bool,
) -> tuple[dict[str, dict[int, list[float]]], list[float], dict[str, int]]:
    """Comparisons per second by variant and K, products per second, and peaks of memory."""
    names = [*_VARIANTS, *([TRL] if with_trl else [])]
    rates: dict[str, dict[int, list[float]]] = {n: {k: [] for k in ANSWERS} for n in names}
    products: list[float] = []
    peaks: dict[str, int] = {}
    with ExitStack() as stack:
        say("loading the models")
        start = _starter(stack, model, data, folder)
        trainers = {name: start(name, *_VARIANTS[name]) for name in _VARIANTS}
        bare = stack.enter_context(trainer("products", _CHILD, {"model": str(model)}, folder))
        if with_trl:
            trainers[TRL] = _trl(stack, wanted, model, data, folder)
        with progress((wanted.rounds + 1) * (len(trainers) + 1)) as tick:
            for number in range(-1, wanted.rounds):
                tick("products of matrices")
                found = bare.ask(do="products", tokens=row_tokens(9))["per_second"]
                for name, its in _round(trainers, tick, short=number < 0):
                    peaks[name] = its.pop(0)
                    if number >= 0:
                        for answers, rate in zip(ANSWERS, its, strict=True):
                            rates[name][answers].append(rate)
                if number >= 0:
                    products.append(found)
    return rates, products, peaks


def _round(
    trainers: dict[str, Trainer], tick: Tick, *, short: bool
) -> Iterator[tuple[str, list[Any]]]:
    """Of every variant: its peak of memory, then comparisons per second for each K."""
    for name, of in trainers.items():
        tick(name)
        asked = ANSWERS if name != TRL else ANSWERS[:1]
        heard = [of.ask(do="speed", answers=k, steps=1 if short else _STEPS[k]) for k in asked]
        heard += heard * (len(ANSWERS) - len(asked))
        yield (
            name,
            [heard[-1]["peak_bytes"], *(one["comparisons"] / one["seconds"] for one in heard)],
        )


def _starter(
    stack: ExitStack, model: Path, data: Preferences, folder: Path
) -> Callable[[str, float, bool], Trainer]:
    def start(name: str, frozen_share: float, packed: bool) -> Trainer:
        specification = {
            "model": str(model),
            "data": data.document(),
            "frozen_share": frozen_share,
            "packed": packed,
        }
        return stack.enter_context(trainer(name, _CHILD, specification, folder))

    return start


def _trl(stack: ExitStack, wanted: Wanted, model: Path, data: Preferences, folder: Path) -> Trainer:
    specification = {
        "role": "reward",
        "model": str(model),
        "dtype": wanted.peer_dtype,
        "pairs": [pair for group in data.train[9] for pair in group.pairs()],
        "step_pairs": _STEP_PAIRS,
    }
    return stack.enter_context(trainer(TRL, _PEER, specification, folder, peer=True))


def _accuracies(
    wanted: Wanted, model: Path, data: Preferences, folder: Path, with_trl: bool
) -> Iterator[tuple[str, float]]:
    """Of fresh models after one epoch over the same comparisons, on the same unseen ones."""
    for name in (OURS, SMALL):
        with ExitStack() as stack:
            child = _starter(stack, model, data, folder)(name, *_VARIANTS[name])
            yield name, child.ask(do="learn", answers=_LEARNED_ANSWERS)["accuracy"]
    if with_trl:
        specification = {
            "role": "learned",
            "model": str(model),
            "dtype": wanted.peer_dtype,
            "pairs": [p for group in data.train[_LEARNED_ANSWERS] for p in group.pairs()],
            "heldout": data.document()["heldout"],
        }
        with trainer(TRL, _PEER, specification, folder, peer=True) as child:
            yield TRL, child.ask(do="learn")["accuracy"]
