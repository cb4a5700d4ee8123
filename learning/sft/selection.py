"""Which epoch of supervised fine-tuning is kept, and by whose judgement.

The paper chooses by the reward model's score of answers to validation prompts, which says more
about what people prefer than the loss does (section 3.5). Before there is a reward model, the loss
on demonstrations of held-out users stands in. Knows nothing of training; learning/sft/train.py asks
after each epoch. Of several processes the first has the engine; all score.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.hyperparameters import SftSettings
from learning.policy.experience import answer_scores, on_device
from learning.reward_model.dataset import read_demonstrations
from learning.sft.steps import mean_loss
from learning.training.distributed import (
    from_first,
    gathered,
    is_first,
    shard,
    told_by_first,
    wait,
)
from learning.training.learner_engine import LearnerEngine, context_tokens, stage_engine
from learning.training.models import RewardModel, layers_of, load_policy, load_reward_model
from learning.training.rollouts import (
    MAX_PROMPT_TOKENS,
    Prompt,
    Rollouts,
    finished_groups,
    read_prompts,
    rollouts_of,
)
from learning.training.stage import Stage

Judge = Callable[[PreTrainedModel, int], float]
"""How good a model is after an epoch (counted from 1), the larger the better."""


@contextmanager
def selection(
    stage: Stage, settings: SftSettings, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, Judge | None]]:
    """Who chooses, in words, and the judge; None where only the last epoch can be taken.

    An engine runs as long as the context, where a reward model judges.
    """
    prompts = _validation_prompts(stage, settings, tokenizer)
    if stage.inputs.get("reward_model") and prompts:
        frozen = load_reward_model(stage.path("reward_model")).requires_grad_(False)
        reward_model = on_device(frozen)
        shard(reward_model, layers_of(reward_model.classifier), exact=[reward_model.score])
        with _engine(stage) as engine:
            judge = _by_reward(stage, engine, reward_model, prompts, settings, tokenizer)
            yield "reward model", judge
        return
    unseen = read_demonstrations(stage.path("snapshot"), tokenizer, split="validation")
    if not unseen:
        yield "last epoch", None
        return

    def by_loss(model: PreTrainedModel, _epoch: int) -> float:
        return -mean_loss(model, unseen, token_budget=settings.token_budget)

    yield "loss on held-out demonstrations", by_loss


def _validation_prompts(
    stage: Stage, settings: SftSettings, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    room = context_tokens(stage.path("anchor")) - settings.max_new_tokens
    longest = min(MAX_PROMPT_TOKENS, room)
    prompts = read_prompts(stage.path("snapshot"), "validation", tokenizer, longest=longest)
    return prompts[: settings.selection_prompts]


@contextmanager
def _engine(stage: Stage) -> Iterator[LearnerEngine | None]:
    """The learner's engine, ready, in the first process; the others have none."""
    if not is_first():
        wait()
        yield None
        return
    with stage_engine(stage, "anchor") as engine:
        engine.wait()
        wait()
        yield engine


def _by_reward(
    stage: Stage,
    engine: LearnerEngine | None,
    reward_model: RewardModel,
    prompts: list[Prompt],
    settings: SftSettings,
    tokenizer: PreTrainedTokenizerBase,
) -> Judge:
    def judge(model: PreTrainedModel, epoch: int) -> float:
        whole = gathered(model, lambda: load_policy(stage.path("anchor")))

        def asked() -> Rollouts:
            assert engine is not None, "the first process has it"
            assert whole is not None, "and the whole model"
            engine.load_model(whole, version=f"epoch-{epoch}")
            samples = engine.generate(
                [prompt.ids for prompt in prompts],
                n=1,
                max_tokens=settings.max_new_tokens,
                temperature=1.0,
                seed=int(stage.inputs["seed"]),  # the same for each epoch, so that they compare
            )
            return rollouts_of(prompts, samples)

        ended = finished_groups(told_by_first(asked), end_token=int(tokenizer.eos_token_id))
        scores = answer_scores(reward_model, ended, token_budget=settings.token_budget)
        return from_first(float(scores.mean()))

    return judge
