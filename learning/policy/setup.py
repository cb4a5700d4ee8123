"""What a PPO run is given and never changes: settings, prompts, pretraining text.

Reads the inputs of the stage once. Knows no model weights; learning/policy/train.py hands it on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import logging as progress_bars

from core.hyperparameters import PolicySettings
from learning.policy.updates import PtxBatch, ptx_batch
from learning.training import pretraining_text
from learning.training.distributed import compute_on
from learning.training.heldout_prompts import last_prompts
from learning.training.learner_engine import context_tokens
from learning.training.rollouts import MAX_PROMPT_TOKENS, Prompt, prompts_of_iteration, read_prompts
from learning.training.schedules import ema_decay, kl_horizon, warmup_factor, warmup_length
from learning.training.stage import NotEnoughData, Stage

_SEEDS_PER_ITERATION = 1_000_003
_RETENTION_SEQUENCES = 24
_RETENTION_TOKENS = 128
_RETENTION_CONTEXT = 16
"""Tokens that are read and not measured: a piece begins in the middle of a text, and the mix
teaches to expect that. About half of the fall in loss, when they counted, was in them."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A run's constants."""

    settings: PolicySettings
    seed: int
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt]
    ptx_sequences: list[list[int]]
    """The pretraining mix, in the order in which steps take from it"""
    retention: PtxBatch
    """Text that is never in the mix"""
    validation: list[Prompt] = field(default_factory=list)
    """Held-out users' prompts that choose among the checkpoints; none where there are no users"""

    @property
    def ema_decay(self) -> float:
        """Of the weight average, for each optimiser step of the policy."""
        settings = self.settings
        return ema_decay(
            optimiser_steps=settings.iterations * settings.inner_epochs * settings.minibatches,
            half_life_fraction=settings.ema_half_life_fraction,
            max_decay=settings.ema_max_decay,
        )

    def learning_rate(self, iteration: int) -> float:
        """Of the policy, in an iteration counted from 0."""
        asked, iterations = self.settings.warmup_iterations, self.settings.iterations
        warmup = warmup_length(asked, iterations=iterations)
        return self.settings.learning_rate * warmup_factor(iteration, warmup_iterations=warmup)

    @property
    def kl_horizon(self) -> int:
        """Episodes over which an adaptive beta acts."""
        settings = self.settings
        answers = settings.prompts_per_iteration * settings.answers_per_prompt
        return kl_horizon(settings.adaptive_kl_horizon, episodes=settings.iterations * answers)

    def prompts_of(self, iteration: int) -> list[Prompt]:
        """The prompts of an iteration."""
        count = self.settings.prompts_per_iteration
        return prompts_of_iteration(self.prompts, iteration, count=count, seed=self.seed)

    def sampling_seed(self, iteration: int) -> int:
        """So far apart that no two answers of a run share a seed."""
        return self.seed + _SEEDS_PER_ITERATION * (iteration + 1)

    def ptx_of(self, policy_step: int) -> PtxBatch:
        """The pretraining text of an optimiser step counted from 0; empty without any."""
        settings = self.settings
        count = -(-settings.ptx_sequences // settings.minibatches)
        if not self.ptx_sequences:
            return PtxBatch(rows=(), num_tokens=0)
        chosen = [
            self.ptx_sequences[at % len(self.ptx_sequences)]
            for at in range(policy_step * count, (policy_step + 1) * count)
        ]
        return ptx_batch(chosen, token_budget=settings.token_budget)


def prepare_process(stage: Stage) -> None:
    """As many threads as the stage may use, on the device it is told, without progress bars."""
    compute_on(stage.inputs.get("device", "auto"))
    if stage.inputs.get("threads"):
        torch.set_num_threads(int(stage.inputs["threads"]))
    progress_bars.disable_progress_bar()  # type: ignore[no-untyped-call]


def read_setup(stage: Stage) -> Setup:
    """Read the stage's inputs. Raises NotEnoughData without training prompts."""
    settings = PolicySettings.model_validate(stage.inputs["settings"])
    parent = stage.path("parent")
    tokenizer = AutoTokenizer.from_pretrained(parent, local_files_only=True)
    room = context_tokens(parent) - settings.max_new_tokens
    prompts = read_prompts(
        stage.path("snapshot"), "train", tokenizer, longest=min(MAX_PROMPT_TOKENS, room)
    )
    if not prompts:
        raise NotEnoughData("there are no training prompts to sample answers for")
    held_out = read_prompts(
        stage.path("snapshot"), "validation", tokenizer, longest=min(MAX_PROMPT_TOKENS, room)
    )
    encode = encoder(tokenizer)
    seed = int(stage.inputs["seed"])
    own = stage.inputs.get("pretraining_text")
    texts = pretraining_text.mix_texts(own)
    mix = pretraining_text.sequences(texts, encode, length=settings.ptx_sequence_tokens)
    if own and not mix:
        raise NotEnoughData(
            f"{own} has fewer than {settings.ptx_sequence_tokens} tokens: more text, or a smaller "
            "learning.policy.ptx_sequence_tokens"
        )
    return Setup(
        settings=settings,
        seed=seed,
        tokenizer=tokenizer,
        prompts=prompts,
        ptx_sequences=pretraining_text.draw(mix, count=len(mix), seed=seed),
        retention=retention_text(encode, token_budget=settings.token_budget),
        validation=last_prompts(held_out, count=settings.validation_prompts, key=str(seed)),
    )


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Plain text to ids, without special tokens, however long it is."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return encode


def retention_text(encode: Callable[[str], list[int]], *, token_budget: int) -> PtxBatch:
    """The text on which the change in pretraining loss is measured, the same in every run."""
    pieces = pretraining_text.sequences(
        pretraining_text.held_out_texts(), encode, length=_RETENTION_TOKENS
    )
    chosen = pretraining_text.draw(pieces, count=_RETENTION_SEQUENCES, seed=0)
    return ptx_batch(chosen, token_budget=token_budget, context=_RETENTION_CONTEXT)
