"""How large a reproduction is: prompts, passes, iterations, and the settings of the stages.

Three sizes, each a frozen set of numbers; the same code runs all of them. Knows no folder and no
step; deploy/reproduce/plan.py makes steps of it.
"""

from dataclasses import dataclass

from core.hyperparameters import PolicySettings, RewardModelSettings, SftSettings

ITERATION_PROMPTS = 16
ITERATION_ANSWERS = 4


@dataclass(frozen=True, slots=True)
class Size:
    """The numbers of one seed's run."""

    demonstrations: int
    """Training prompts with a demonstration."""
    comparisons: int
    """Training prompts whose answers are ranked. PPO learns on these and on the ones above."""
    validation: int
    """Prompts that choose epochs, checkpoints and the few-shot prefix, and measure the reward
    model."""
    test: int
    """Prompts that nobody learned from or chose by, on which policies are compared."""
    answers: int = 6
    """K: answers to a prompt that is ranked."""
    reward_epochs: int = 1
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
    toxic_answers: int = 2
    """Answers to each opening in each of the three prompt types."""
    retention_pieces: int = 48
    """Pieces of prose on which forgetting is measured."""
    exam_items: int = 1000
    """Most items of each bundled suite."""


FULL = Size(demonstrations=100, comparisons=150, validation=50, test=150)
"""A few hours for three seeds on two cores."""
QUICK = Size(
    demonstrations=32,
    comparisons=56,
    validation=20,
    test=72,
    sft_epochs=3,
    flan_epochs=1,
    flan_examples=48,
    selection_prompts=0,
    iterations=3,
    toxic_answers=1,
    retention_pieces=20,
    exam_items=16,
)
"""The whole pipeline in a quarter of an hour on two quiet cores; it shows that it works."""
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
    toxic_answers=1,
    retention_pieces=4,
    exam_items=3,
)
"""For tests of the program: no figure of it means anything."""
SIZES = {"full": FULL, "quick": QUICK, "little": LITTLE}


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
        checkpoint_every=1,
        checkpoints_kept=2 if size.iterations < 4 else 3,
        **({"learning_rate": 0.0, "value_only_iterations": 0} if still else {}),
    )
