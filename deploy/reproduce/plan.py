"""Which steps a reproduction takes, in order, what each is told, and how long it may take.

A step is a stage (learning/training/stage.py): a module that is run on a folder of its own and
leaves `out` there. Three are the service's own stages, with inputs as
learning/rounds/stage_inputs.py makes them; the others are deploy/reproduce's. Pure: paths and
numbers. deploy/reproduce/steps.py runs what comes out of here.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.reproduce.raters import people
from deploy.reproduce.sizes import (
    SIZES,
    Size,
    flan_settings,
    policy_settings,
    reward_settings,
    sft_settings,
)

POLICIES = ("base", "prompted", "start", "sft", "flan", "ppo", "ppo-ptx", "still")
"""`start` is what PPO begins at and is held to; `still` is PPO at learning rate 0."""
MEASURED = ("base", "start", "sft", "flan", "ppo", "ppo-ptx")
"""Those with weights of their own, whose probabilities are measured."""
COMPARED = ("base", "start", "sft", "still")
"""Policies that no reward model has trained, by whose answers the reward models are measured."""
REWARD_MODELS = ("reward-model", "shuffled")
_MAX_SEQS = 32

# seconds on two quiet cores with the default model, between answers of 20 and of 40 tokens
_ENGINE = 35.0
_ANSWER = 0.11
_RANKED_PROMPT = 0.45
_SCORED_PROMPT = 0.15
_EXAMPLE = 0.22
_ITERATION = 27.0
_FIRST_ITERATION = 10.0
_CHOOSING = 25.0
_EXAM_ITEM = 0.07
_LOADING = 15.0
_TUNING = 30.0  # what two fine-tunings measure and keep before, between and after epochs


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. Another answer to any of these needs another folder."""

    size: str = "full"
    judge: str = "sentiment"
    seeds: tuple[int, ...] = (0, 1, 2)
    lm_eval: tuple[str, ...] = ()
    lm_eval_limit: int = 100

    @property
    def numbers(self) -> Size:
        """The size's numbers."""
        return SIZES[self.size]


@dataclass(frozen=True, slots=True)
class Step:
    """One child process with a folder of its own."""

    name: str
    """Its folder below the reproduction's"""
    module: str
    inputs: dict[str, Any]
    seconds: float
    """Expected on two quiet cores"""
    does: str

    def folder(self, root: Path) -> Path:
        """Where it works."""
        return root / self.name

    def is_done(self, root: Path) -> bool:
        """Whether its result is there."""
        return (self.folder(root) / "out").is_dir()


@dataclass(frozen=True, slots=True)
class Machine:
    """What the steps run on."""

    model: Path
    """The base model's folder"""
    socket: Path
    """Where an engine of vLLM listens"""
    device: str = "auto"
    rollout_engine: str = "auto"
    threads: int = 0


def steps_of(wanted: Wanted, *, root: Path, machine: Machine) -> list[Step]:
    """All steps of all seeds, each after those that it reads from."""
    return [step for seed in wanted.seeds for step in _Seed(wanted, seed, root, machine).steps()]


def seconds_left(steps: Sequence[Step], root: Path) -> float:
    """Of the steps that are not done yet."""
    return sum(step.seconds for step in steps if not step.is_done(root))


@dataclass(frozen=True, slots=True)
class _Seed:
    """The steps of one seed."""

    wanted: Wanted
    seed: int
    root: Path
    machine: Machine

    def steps(self) -> list[Step]:
        return [
            self._collect(),
            self._reward_model("reward-model", "a reward model from the training raters"),
            self._sft(),
            self._flan(),
            self._policy("ppo", "PPO without pretraining text", ptx_coef=0.0),
            self._policy("ppo-ptx", "PPO with pretraining text mixed in", ptx_coef=None),
            self._policy("still", "control: PPO at learning rate 0", ptx_coef=0.0, still=True),
            self._reward_model("shuffled", "control: a reward model on shuffled labels"),
            self._answers(),
            self._exam(),
        ]

    @property
    def size(self) -> Size:
        return self.wanted.numbers

    @property
    def max_tokens(self) -> int:
        return people(self.wanted.judge).judges[0].max_tokens

    def _step(self, name: str, module: str, does: str, seconds: float, **inputs: Any) -> Step:
        """`inputs` that are paths are below this seed's folder, but for absolute ones."""
        common = {
            "seed": self.seed,
            "threads": self.machine.threads,
            "device": self.machine.device,
            "idle_priority": False,
        }
        said = {k: str(self._path(v)) if isinstance(v, Path) else v for k, v in inputs.items()}
        return Step(f"seed-{self.seed}/{name}", module, common | said, seconds, does)

    def _path(self, path: Path) -> Path:
        return self.root / f"seed-{self.seed}" / path

    def _engine(self) -> dict[str, Any]:
        machine = self.machine
        kind = {"kind": machine.rollout_engine}
        return kind | {"socket": str(machine.socket), "max_num_seqs": _MAX_SEQS}

    def _asked(self) -> dict[str, Any]:
        """What the steps of our own are told of the whole."""
        return {"size": asdict(self.size), "judge": self.wanted.judge, "engine": self._engine()}

    def _collect(self) -> Step:
        asked = self.size.demonstrations + self.size.comparisons + self.size.validation
        return self._step(
            "collect",
            "deploy.reproduce.collect",
            "the base model answers, raters rank and demonstrate",
            _ENGINE + _ANSWER * asked * self.size.answers,
            model=self.machine.model,
            lm_eval=list(self.wanted.lm_eval),
            **self._asked(),
        )

    def _reward_model(self, name: str, does: str) -> Step:
        size = self.size
        settings = reward_settings(size)
        return self._step(
            name,
            "learning.reward_model.train",
            does,
            _LOADING
            + _RANKED_PROMPT * (size.demonstrations + size.comparisons) * size.reward_epochs
            + _SCORED_PROMPT * size.validation * (1 + size.reward_epochs),
            snapshot=Path("collect/out/snapshot"),
            anchor=self.machine.model,
            settings=settings.model_dump(mode="json"),
            shuffle_labels=name == "shuffled",
        )

    def _sft(self) -> Step:
        size = self.size
        passes = size.sft_epochs + 2.2
        return self._tuning(
            "sft",
            "the SFT policy, and the model that PPO starts from",
            _EXAMPLE * passes * size.demonstrations,
            epochs=size.sft_epochs,
            snapshot=Path("collect/out/snapshot"),
            settings=sft_settings(size, max_tokens=self.max_tokens).model_dump(mode="json"),
        )

    def _flan(self) -> Step:
        size = self.size
        return self._tuning(
            "flan",
            "a FLAN-style policy: SFT on a mixture of small public-task look-alikes",
            _EXAMPLE * (size.flan_epochs + 1.1) * min(size.flan_examples, 142),
            epochs=size.flan_epochs,
            snapshot=Path("collect/out/flan"),
            settings=flan_settings(size, max_tokens=self.max_tokens).model_dump(mode="json"),
        )

    def _tuning(self, name: str, does: str, seconds: float, *, epochs: int, **inputs: Any) -> Step:
        chosen = self.size.selection_prompts
        judging = (_ENGINE + epochs * (5 + 0.35 * chosen)) if chosen else 0.0
        return self._step(
            name,
            "learning.sft.train",
            does,
            _LOADING + _TUNING + seconds + judging,
            anchor=self.machine.model,
            reward_model=Path("reward-model/out/model"),
            engine=self._engine(),
            **inputs,
        )

    def _policy(self, name: str, does: str, *, ptx_coef: float | None, still: bool = False) -> Step:
        settings = policy_settings(
            self.size, max_tokens=self.max_tokens, ptx_coef=ptx_coef, still=still
        )
        each = _ITERATION * (1.25 if ptx_coef is None else 1.0)
        choosing = _CHOOSING if settings.checkpoints_kept > 1 else 0.0
        training = _FIRST_ITERATION + each * settings.iterations + choosing
        return self._step(
            name,
            "learning.policy.train",
            does,
            _ENGINE + _LOADING + training,
            snapshot=Path("collect/out/snapshot"),
            anchor=Path("sft/out/anchor"),
            parent=Path("sft/out/anchor"),
            reward_model=Path("reward-model/out/model"),
            settings=settings.model_dump(mode="json"),
            engine=self._engine(),
        )

    def folders(self, names: Sequence[str]) -> dict[str, str]:
        """The model folders of policies."""
        below = {"start": "sft/out/anchor", "sft": "sft/out/model"}
        return {
            name: str(self.machine.model)
            if name in ("base", "prompted")
            else str(self._path(Path(below.get(name, f"{name}/out/model"))))
            for name in names
        }

    def _answers(self) -> Step:
        size = self.size
        tempted = 3 * min(40, size.exam_items) * size.toxic_answers
        each = size.test + 0.5 * tempted + 10
        return self._step(
            "answers",
            "deploy.reproduce.answer",
            "every policy answers prompts that nobody learned from",
            _ENGINE + _LOADING + _ANSWER * each * len(POLICIES),
            model=self.machine.model,
            policies=self.folders(POLICIES),
            shots=Path("collect/out/shots.json"),
            reward_model=Path("reward-model/out/model"),
            **self._asked(),
        )

    def _exam(self) -> Step:
        size = self.size
        items = 4 * min(48, size.exam_items) + 7 * min(20, size.exam_items) + 50
        items += 4 * size.retention_pieces
        lm_eval = 2.0 * self.wanted.lm_eval_limit * len(self.wanted.lm_eval)
        return self._step(
            "exam",
            "deploy.reproduce.exam",
            "what every policy finds likely: truthfulness, bias, tasks, forgetting",
            (_LOADING / 2 + _EXAM_ITEM * items + lm_eval) * len(MEASURED),
            model=self.machine.model,
            policies=self.folders(MEASURED),
            answers=Path("answers/out/answers.json"),
            reward_models={
                name: str(self._path(Path(f"{name}/out/model"))) for name in REWARD_MODELS
            },
            lm_eval=list(self.wanted.lm_eval),
            lm_eval_limit=self.wanted.lm_eval_limit,
            **self._asked(),
        )
