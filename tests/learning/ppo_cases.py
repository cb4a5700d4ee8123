"""A made-up iteration on the tiny model of packing_cases: answers, scores, and what follows."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from core.engine.client import Sample
from core.hyperparameters import PolicySettings
from learning.policy.experience import Experience, experience_of, policy_logprobs
from learning.training.models import RewardModel
from learning.training.rollouts import Prompt, Rollouts, layouts, rollouts_of
from tests.learning.packing_cases import VOCABULARY, WIDTH

END = 2
PROMPTS = [[5, 9, 11, 3], [33, 4], [44, 45, 46, 47, 48]]
ANSWERS = [
    [[7, 8, END], [50, 51, 52, 53]],
    [[21, 22, 23, 24, END], [END]],
    [[58, 57, 56, 55, 54, 53], [12, 13]],
]
EACH_ALONE = [
    (prompt, ids) for prompt, answers in zip(PROMPTS, ANSWERS, strict=True) for ids in answers
]
"""Every answer with its prompt, in the tables' order"""
SETTINGS = PolicySettings(
    minibatches=1, token_budget=64, temperature=0.7, ptx_sequences=4, ptx_sequence_tokens=5
)


def rollouts() -> Rollouts:
    """Three prompts, two answers each; their engine log-probabilities count down in tenths."""
    prompts = [Prompt(f"p{i}", f"u{i}", "[]", tuple(ids)) for i, ids in enumerate(PROMPTS)]
    samples = [
        [
            Sample(
                token_ids=list(ids),
                logprobs=[-0.1 * (i + 1) for i in range(len(ids))],
                finish_reason="stop" if ids[-1] == END else "length",
            )
            for ids in answers
        ]
        for answers in ANSWERS
    ]
    return rollouts_of(prompts, samples)


def tiny_reward_model(*, seed: int = 1) -> RewardModel:
    """Width 24, fp32, with a head of ordinary size and a bias of 0.25."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=30,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
        num_labels=1,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RewardModel(LlamaForSequenceClassification(config).eval(), bias=0.25)
    model.bias.requires_grad_(True)
    return model


def experience(policy: nn.Module, reference: nn.Module, *, scores: Tensor) -> Experience:
    """The made-up answers with real log-probabilities; beta is 0.1."""
    taken = rollouts()
    parts = layouts(taken, minibatches=3, token_budget=64, order=range(3))
    logprobs, entropy = policy_logprobs(policy, taken, parts, temperature=SETTINGS.temperature)
    ref, _ = policy_logprobs(reference, taken, parts, temperature=SETTINGS.temperature)
    return experience_of(
        taken, scores, logprobs, ref, entropy=entropy, kl_coef=0.1, missing_eos_score=None
    )


def gradients(model: nn.Module) -> Tensor:
    """All gradients of a model in one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
