"""`instructloop bench reward-model`: comparisons per second of reward-model training, beside TRL's.

Same model, pieces of text, precision and threads. Ours reads a prompt once with all its K answers;
our unpacked path reads it with each answer; TRL's RewardTrainer reads both sequences of every pair.
Ours runs as two processes, too, which divide the threads and every step among them. All stay loaded
and take turns in every round; a figure is the median over rounds. The machine's own rate for
products of matrices of these shapes is taken in every round, too. Then fresh models of ours and of
TRL learn from the same comparisons, each once, and are asked about the same unseen ones.
Training itself is in deploy/bench/training_child.py and training_trl.py, the words in
deploy/bench/training_report.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from core.settings import Settings
from deploy.base_model import base_model_folder
from deploy.bench.maths import over_rounds
from deploy.bench.progress import Tick, progress
from deploy.bench.targets import folder_in
from deploy.bench.training_data import TOKENS, Preferences, Ranked, preferences
from deploy.bench.training_learned import Learned
from deploy.bench.training_line import Words
from deploy.bench.training_maths import (
    Shape,
    body_flops,
    group_looks,
    pairs_of,
    read_shape,
    trained_layers,
)
from deploy.bench.training_report import RewardReport, Variant
from deploy.bench.training_turns import Trainer, measured_names, trainer

OURS = "instructloop"
SMALL = "instructloop, lower half frozen"
UNPACKED = "instructloop, unpacked"
TWO = "instructloop, two processes"
TRL = "TRL RewardTrainer"
ANSWERS = (4, 9)
_VARIANTS = {OURS: (0.0, True), SMALL: (0.5, True), UNPACKED: (0.0, False), TWO: (0.0, True)}
TARGETS = {"ours": OURS, "half": SMALL, "unpacked": UNPACKED, "two": TWO, "trl": TRL}
"""By the names that `--only` takes."""
_TURN_PROMPTS = {4: 8, 9: 4}
"""Of one turn, or a whole step's if those are more; half as many without packing."""
_PROMPTS = {4: 40, 9: 16}
_HELDOUT = 24
_LEARNED_ANSWERS = 4
_CHILD, _PEER = "deploy.bench.training_child", "deploy.bench.training_trl"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure."""

    rounds: int = 3
    accuracy: bool = True
    """Whether to train ours and TRL's to the end of an epoch and compare what they learned."""
    speed: bool = True
    """Whether to measure comparisons per second."""
    only: tuple[str, ...] = tuple(TARGETS)
    """Of TARGETS, what is measured; TRL where it is installed."""
    peer_dtype: str = "bfloat16"
    step_prompts: int = 2
    """Of an optimiser step where speed is measured: cpu-small's; the paper's is 64. TRL's step has
    as many comparisons as ours at K = 4; pairs are alike for any K."""


def bench_reward_model(
    wanted: Wanted, *, settings: Settings, say: Callable[[str], None]
) -> RewardReport:
    """Measure. Raises StartError."""
    model = base_model_folder(settings, say=say, alive=lambda: True).resolve()
    names = measured_names(wanted.only, TARGETS, trl=TRL, say=say)
    shape = read_shape(model)
    size = wanted.step_prompts
    enough = {k: math.ceil(count / size) * size for k, count in _PROMPTS.items()}
    data = preferences(model, prompts=enough, heldout=_HELDOUT)
    with folder_in(settings.state_dir) as folder:
        place = Place(model, data, folder, wanted.peer_dtype, wanted.step_prompts)
        speeds = _speeds(place, names, wanted.rounds if wanted.speed else 0, say)
        learned = dict(_learned(place, names, say)) if wanted.accuracy else {}
    variants = [
        Variant(
            name=name,
            comparisons_per_second={k: over_rounds(v) for k, v in speeds.rates[name].items() if v},
            peak_bytes=speeds.peaks.get(name, 0),
            learned=learned.get(name),
            processes=processes_of(name),
            flops_per_second={
                k: over_rounds(v) for k, v in _flops(shape, name, speeds.rates[name]) if v
            },
        )
        for name in names
    ]
    return RewardReport(
        rounds=wanted.rounds,
        step_prompts=wanted.step_prompts,
        variants=variants,
        products_per_second=over_rounds(speeds.products) if speeds.products else None,
        trained_comparisons=pairs_of(_LEARNED_ANSWERS) * enough[_LEARNED_ANSWERS],
    )


def processes_of(name: str) -> int:
    """Of one of our variants or TRL's."""
    return 2 if name == TWO else 1


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


@dataclass(frozen=True, slots=True)
class Place:
    """What every child is started with."""

    model: Path
    data: Preferences
    folder: Path
    peer_dtype: str
    step_prompts: int

    def start(self, stack: ExitStack, name: str) -> Trainer:
        """A child that trains at one of our variants or TRL's."""
        if name == TRL:
            train = self.data.train[9]
            step_pairs = pairs_of(4) * self.step_prompts
            return self._trl(stack, role="reward", pairs=_pairs(train), step_pairs=step_pairs)
        frozen_share, packed = _VARIANTS[name]
        specification = {
            "model": str(self.model),
            "data": self.data.document(),
            "frozen_share": frozen_share,
            "packed": packed,
            "step_prompts": self.step_prompts,
        }
        count = processes_of(name)
        child = trainer(name, _CHILD, specification, self.folder, processes=count)
        return stack.enter_context(child)

    def start_learning(self, stack: ExitStack, name: str) -> Trainer:
        """A child with a fresh model that learns from all comparisons once."""
        if name != TRL:
            return self.start(stack, name)
        train, heldout = self.data.train[_LEARNED_ANSWERS], self.data.document()["heldout"]
        return self._trl(stack, role="learned", pairs=_pairs(train), heldout=heldout)

    def _trl(self, stack: ExitStack, **words: object) -> Trainer:
        specification = words | {"model": str(self.model), "dtype": self.peer_dtype}
        return stack.enter_context(trainer(TRL, _PEER, specification, self.folder, peer=True))


@dataclass(slots=True)
class Speeds:
    """What was measured, round by round."""

    rates: dict[str, dict[int, list[float]]]
    """Comparisons per second, by variant and K"""
    products: list[float] = field(default_factory=list)
    """Operations per second"""
    peaks: dict[str, int] = field(default_factory=dict)
    """Of memory, in bytes, by variant"""


def _speeds(place: Place, names: Sequence[str], rounds: int, say: Callable[[str], None]) -> Speeds:
    found = Speeds({name: {k: [] for k in ANSWERS} for name in names})
    if rounds == 0:
        return found
    with ExitStack() as stack:
        say("loading the models")
        specification = {"model": str(place.model)}
        bare = stack.enter_context(trainer("products", _CHILD, specification, place.folder))
        trainers = {name: place.start(stack, name) for name in names}
        with progress((rounds + 1) * (len(trainers) + 1)) as tick:
            for number in range(-1, rounds):
                say("warming up" if number < 0 else f"round {number + 1} of {rounds}")
                tick("products of matrices")
                products = bare.ask(do="products", tokens=row_tokens(9))["per_second"]
                turns = _round(trainers, tick, step_prompts=place.step_prompts, short=number < 0)
                if number >= 0:
                    found.products.append(products)
                    _note(found, turns)
    return found


def _round(
    trainers: dict[str, Trainer], tick: Tick, *, step_prompts: int, short: bool
) -> list[tuple[str, int, Words]]:
    """The turn of every variant at every K. A pair of TRL's costs the same at any K."""
    turns = []
    for name, of in trainers.items():
        tick(name)
        for answers in ANSWERS:
            if name != TRL or answers == ANSWERS[0]:
                prompts = _TURN_PROMPTS[answers] // (2 if name == UNPACKED else 1)
                steps = 1 if short else max(1, prompts // step_prompts)
                heard = of.ask(do="speed", answers=answers, steps=steps)
            turns.append((name, answers, heard))
    return turns


def _note(found: Speeds, turns: Sequence[tuple[str, int, Words]]) -> None:
    for name, answers, heard in turns:
        found.rates[name][answers].append(heard["comparisons"] / heard["seconds"])
        found.peaks[name] = heard["peak_bytes"]


def _learned(
    place: Place, names: Sequence[str], say: Callable[[str], None]
) -> Iterator[tuple[str, Learned]]:
    """Of fresh models after one epoch over the same comparisons, on the same unseen ones."""
    for name in names:
        if name in (UNPACKED, TWO):  # the same loss as ours
            continue
        say(f"{name} learns from every comparison once (half a minute; TRL some minutes)")
        with ExitStack() as stack:
            child = place.start_learning(stack, name)
            heard = child.ask(do="learn", answers=_LEARNED_ANSWERS)
        yield name, Learned(heard["seconds"], heard["right"], heard["pairs"])


def _pairs(groups: Sequence[Ranked]) -> list[tuple[list[int], list[int]]]:
    return [pair for group in groups for pair in group.pairs()]
