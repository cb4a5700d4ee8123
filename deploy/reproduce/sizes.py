"""How large a reproduction is: prompts, passes, iterations, and the settings of the stages.

Sizes are frozen sets of numbers; the same code runs all of them. Knows no folder and no step;
deploy/reproduce/plan.py makes steps of it.
"""

from dataclasses import dataclass

from core.hyperparameters import PolicySettings, RewardModelSettings, SftSettings

ITERATION_PROMPTS = 16
ITERATION_ANSWERS = 4
CHECKPOINT_EVERY = 3
"""Iterations of PPO: a checkpoint is gigabytes, and takes as long as a third of an iteration."""


@dataclass(frozen=True, slots=True)
class Size:
    """The numbers of one seed's run."""

    demonstrations: int
    """Training prompts with a demonstration; their answers are ranked, too."""
    comparisons: int
    """Further training prompts, whose answers are ranked only. PPO learns on all of them."""
    validation: int
    """Prompts that choose epochs, checkpoints and the few-shot prefix."""
    test: int
    """Prompts that nobody learned from or chose by, on which policies are compared and the reward
    model is measured."""
    answers: int = 6
    """K: answers to a prompt that is ranked."""
    reward_epochs: int = 2
    """Passes over the comparisons."""
    sft_epochs: int = 4
    """Passes of the SFT policy over the demonstrations."""
    flan_epochs: int = 3
    """Passes of the FLAN-style policy over its mixture."""
    flan_examples: int = 1000
    """Most examples of that mixture."""
    selection_prompts: int = 24
    """Validation prompts that choose an epoch by the reward model's score; 0: the loss chooses."""
    iterations: int = 8
    """Of PPO."""
    averages: int = 3
    """Iterations of PPO whose weight averages may be released, chosen on validation prompts; 1: the
    last one's, unasked, as in the paper."""
    toxic_answers: int = 2
    """Answers to each opening in each of the three prompt types."""
    retention_pieces: int = 48
    """Pieces of prose on which forgetting is measured."""
    exam_items: int = 1000
    """Most items of each bundled suite."""


FULL = Size(demonstrations=100, comparisons=150, validation=50, test=165, iterations=10)
"""Three seeds in two to three hours on two quiet cores."""
SHORT = Size(
    demonstrations=40,
    comparisons=80,
    validation=24,
    test=135,
    sft_epochs=3,
    flan_epochs=2,
    flan_examples=80,
    selection_prompts=0,
    iterations=5,
    toxic_answers=1,
    retention_pieces=48,
    exam_items=48,
)
"""Three seeds in eighty minutes on two quiet cores, each measure with units enough."""
QUICK = Size(
    demonstrations=32,
    comparisons=56,
    validation=20,
    test=60,
    sft_epochs=2,
    flan_epochs=1,
    flan_examples=48,
    selection_prompts=0,
    iterations=3,
    averages=1,
    toxic_answers=1,
    retention_pieces=20,
    exam_items=16,
)
"""The whole pipeline in twenty minutes on two quiet cores; it shows that it works."""
LITTLE = Size(
    demonstrations=12,
    comparisons=8,
    validation=6,
    test=6,
    answers=3,
    sft_epochs=1,
    flan_epochs=1,
    flan_examples=12,
    selection_prompts=0,
    iterations=1,
    averages=1,
    toxic_answers=1,
    retention_pieces=4,
    exam_items=3,
)
"""For tests of the program: no figure of it means anything."""
SIZES = {"full": FULL, "short": SHORT, "quick": QUICK, "little": LITTLE}


def reward_settings(size: Size, *, heads: int = 0) -> RewardModelSettings:
    """Of the reward model. It is never refused: the report says where it is too weak."""
    return RewardModelSettings(
        epochs=size.reward_epochs,
        min_accuracy=0.0,
        min_comparisons=1,
        heads=heads,
        scored_prompts=0,
    )


def sft_settings(size: Size, *, max_tokens: int) -> SftSettings:
    """Of supervised fine-tuning on demonstrations, and of the model that PPO starts from."""
    return SftSettings(
        epochs=size.sft_epochs,
        min_demonstrations=1,
        selection_prompts=size.selection_prompts,
        max_new_tokens=max_tokens,
    )


def flan_settings(size: Size, *, max_tokens: int) -> SftSettings:
    """The same on the task mixture; its anchor is not used."""
    return sft_settings(size, max_tokens=max_tokens).model_copy(
        update={"epochs": size.flan_epochs, "anchor_epochs": 1}
    )


def policy_settings(
    size: Size, *, max_tokens: int, ptx_coef: float | None, still: bool = False
) -> PolicySettings:
    """Of PPO: `ptx_coef` 0 is plain PPO, None calibrates gamma; `still` learns nothing."""
    iterations = 1 if still else size.iterations
    return PolicySettings(
        iterations=iterations,
        prompts_per_iteration=min(ITERATION_PROMPTS, size.demonstrations + size.comparisons),
        answers_per_prompt=ITERATION_ANSWERS,
        max_new_tokens=max_tokens,
        ptx_coef=ptx_coef,
        validation_prompts=max(1, min(24, size.validation)),
        checkpoint_every=CHECKPOINT_EVERY,
        checkpoints_kept=1 if still else size.averages,
        **({"learning_rate": 0.0, "value_only_iterations": 0} if still else {}),
    )
