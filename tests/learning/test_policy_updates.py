from dataclasses import replace

import pytest
import torch

from learning.policy.experience import answer_scores, row_values
from learning.policy.updates import (
    calibrated_ptx_coef,
    policy_step,
    ppo_gradient,
    ptx_batch,
    ptx_gradient,
    text_loss,
    value_step,
)
from learning.training.models import scores
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group, pack
from learning.training.rollouts import finished_groups, layouts
from tests.learning.packing_cases import tiny_llama
from tests.learning.ppo_cases import (
    EACH_ALONE,
    END,
    SETTINGS,
    experience,
    gradients,
    rollouts,
    tiny_reward_model,
)

SCORES = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.0])
TEXT = [[3, 4, 5, 6, 7], [9, 9, 8, 1], [30, 31, 32]]


def whole(budget: int = 64):
    return layouts(rollouts(), minibatches=1, token_budget=budget, order=[0, 1, 2])[0]


def advantages_of(seen) -> torch.Tensor:
    values = torch.zeros(seen.mask.shape)
    return seen.advantages(values, discount=1.0, gae_lambda=1.0)


def test_the_kl_from_the_anchor_is_zero_before_the_first_update() -> None:
    model = tiny_llama()
    seen = experience(model, tiny_llama(), scores=SCORES)
    assert (seen.kl.per_token, seen.kl.k3_per_token) == (0.0, 0.0)
    torch.testing.assert_close(seen.rewards.sum(dim=1), SCORES)


def test_old_logprobs_are_those_of_each_answer_alone() -> None:
    model = tiny_llama()
    seen = experience(model, tiny_llama(seed=3), scores=SCORES)
    for number, (prompt, ids) in enumerate(EACH_ALONE):
        logits = model(torch.tensor([prompt + ids])).logits[0] / SETTINGS.temperature
        chosen = torch.tensor(ids)[:, None]
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, chosen)
        torch.testing.assert_close(
            seen.logprobs[number, : len(ids)], expected[:, 0], rtol=1e-4, atol=1e-5
        )
        assert seen.logprobs[number, len(ids) :].abs().sum() == 0.0


def test_the_first_ratio_is_exactly_one() -> None:
    model = tiny_llama()
    seen = experience(model, tiny_llama(seed=3), scores=SCORES)
    parts = layouts(seen.rollouts, minibatches=3, token_budget=64, order=range(3))
    stats = ppo_gradient(model, seen, parts[0], advantages_of(seen), settings=SETTINGS)
    assert (stats.ratio_min, stats.ratio_max) == (1.0, 1.0)


@pytest.mark.parametrize("budget", [9, 20, 64])
def test_the_gradient_does_not_depend_on_how_tokens_are_packed_into_rows(budget: int) -> None:
    found = []
    for token_budget in (1, budget):
        model = tiny_llama()
        seen = experience(model, tiny_llama(seed=3), scores=SCORES)
        seen = replace(seen, logprobs=seen.logprobs + 0.1)  # away from ratio 1
        part = whole(token_budget)
        stats = ppo_gradient(model, seen, part, advantages_of(seen), settings=SETTINGS)
        found.append((len(part.rows), stats.loss, gradients(model)))
    assert found[0][0] == 3
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-3, atol=1e-5)


def test_the_policy_gradient_is_autograds_gradient_of_the_plain_formula() -> None:
    model, reference = tiny_llama(), tiny_llama(seed=3)
    seen = experience(model, reference, scores=SCORES)
    advantages = advantages_of(seen)
    ppo_gradient(model, seen, whole(), advantages, settings=SETTINGS)
    ours = gradients(model)
    model.zero_grad()
    total = torch.zeros(())
    weights = seen.importance(SETTINGS.importance_cap)
    for number, (prompt, ids) in enumerate(EACH_ALONE):
        logits = model(torch.tensor([prompt + ids])).logits[0] / SETTINGS.temperature
        chosen = torch.tensor(ids)[:, None]
        new = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, chosen)[:, 0]
        n = len(ids)
        ratio = (new - seen.logprobs[number, :n]).exp()
        total = total - (weights[number, :n] * ratio * advantages[number, :n]).sum()
    (total / sum(len(ids) for _, ids in EACH_ALONE)).backward()
    torch.testing.assert_close(ours, gradients(model), rtol=1e-3, atol=1e-5)


def test_the_pretraining_gradient_is_gamma_times_that_of_the_cross_entropy() -> None:
    model = tiny_llama()
    loss = ptx_gradient(model, ptx_batch(TEXT, token_budget=6), coefficient=1.7)
    ours = gradients(model)
    model.zero_grad()
    losses = [
        torch.nn.functional.cross_entropy(
            model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="sum"
        )
        for ids in TEXT
    ]
    mean = sum(losses) / sum(len(ids) - 1 for ids in TEXT)
    (1.7 * mean).backward()
    assert loss == pytest.approx(float(mean.detach()), rel=1e-5)
    torch.testing.assert_close(ours, gradients(model), rtol=1e-3, atol=1e-5)
    assert text_loss(model, ptx_batch(TEXT, token_budget=64)) == pytest.approx(loss, rel=1e-5)


def test_gamma_zero_is_plain_ppo() -> None:
    weights = []
    for text, gamma in ((TEXT, 0.0), ([], 0.0), (TEXT, 0.5)):
        model = tiny_llama()
        seen = experience(model, tiny_llama(seed=3), scores=SCORES)
        policy_step(
            model,
            MasterAdamW(model.parameters()),
            seen,
            whole(),
            advantages_of(seen),
            ptx_batch(text, token_budget=64),
            settings=SETTINGS,
            ptx_coef=gamma,
            learning_rate=1e-3,
        )
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_gamma_is_set_so_that_the_pretraining_gradient_is_a_share_of_ppos() -> None:
    model = tiny_llama()
    optimiser = MasterAdamW(model.parameters())
    seen = experience(model, tiny_llama(seed=3), scores=SCORES)
    advantages, text = advantages_of(seen), ptx_batch(TEXT, token_budget=64)
    settings = SETTINGS.model_copy(update={"ptx_gradient_share": 0.3})
    before = [p.detach().clone() for p in model.parameters()]
    gamma = calibrated_ptx_coef(
        model, optimiser, seen, whole(), advantages, text, settings=settings
    )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    ppo_gradient(model, seen, whole(), advantages, settings=settings)
    of_ppo = float(gradients(model).norm())
    model.zero_grad()
    ptx_gradient(model, text, coefficient=gamma)
    assert float(gradients(model).norm()) == pytest.approx(0.3 * of_ppo, rel=1e-4)


def test_a_given_gamma_is_taken_as_it_is_and_no_text_means_none() -> None:
    model = tiny_llama()
    optimiser = MasterAdamW(model.parameters())
    seen = experience(model, model, scores=SCORES)
    args = (model, optimiser, seen, whole(), advantages_of(seen))
    given = SETTINGS.model_copy(update={"ptx_coef": 27.8})
    assert calibrated_ptx_coef(*args, ptx_batch(TEXT, token_budget=64), settings=given) == 27.8
    assert calibrated_ptx_coef(*args, ptx_batch([], token_budget=64), settings=SETTINGS) == 0.0


def test_a_policy_step_makes_a_well_paid_answer_likelier() -> None:
    model = tiny_llama()
    scores = torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    seen = experience(model, tiny_llama(), scores=scores)
    optimiser = MasterAdamW(model.parameters())
    for _ in range(3):
        policy_step(
            model,
            optimiser,
            seen,
            whole(),
            advantages_of(seen),
            ptx_batch([], token_budget=64),
            settings=SETTINGS,
            ptx_coef=0.0,
            learning_rate=1e-3,
        )
    after = experience(model, tiny_llama(), scores=scores)
    assert after.logprobs[0].sum() > seen.logprobs[0].sum()
    assert after.kl.k3_per_token > 0.0


def test_a_rate_of_zero_changes_no_weight() -> None:
    model = tiny_llama()
    before = [p.detach().clone() for p in model.parameters()]
    seen = experience(model, tiny_llama(seed=3), scores=SCORES)
    step = policy_step(
        model,
        MasterAdamW(model.parameters()),
        seen,
        whole(),
        advantages_of(seen),
        ptx_batch(TEXT, token_budget=64),
        settings=SETTINGS,
        ptx_coef=0.4,
        learning_rate=0.0,
    )
    assert step.grad_norm > 0.0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# --- the value model ------------------------------------------------------------------------


def test_a_value_is_what_the_reward_model_says_right_before_the_token() -> None:
    model = tiny_reward_model()
    (row,) = whole().rows
    values = row_values(model, row)
    expected = []
    for prompt, ids in EACH_ALONE:
        hidden = model.classifier.model(torch.tensor([prompt + ids])).last_hidden_state[0]
        scores = (hidden @ model.head.T).squeeze(1) + 0.25
        expected.append(scores[len(prompt) - 1 : len(prompt) + len(ids) - 1])
    torch.testing.assert_close(values, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_a_fresh_value_pass_records_what_it_saw_before_it_learned() -> None:
    model = tiny_reward_model()
    seen = experience(tiny_llama(), tiny_llama(seed=3), scores=SCORES)
    part = whole(20)
    before = torch.cat([row_values(model, row).detach() for row in part.rows])
    values = torch.zeros(seen.mask.shape)
    stats = value_step(
        model, MasterAdamW(model.parameters()), seen, part, values, settings=SETTINGS, fresh=True
    )
    torch.testing.assert_close(values[seen.mask], before, rtol=1e-4, atol=1e-5)
    returns = seen.returns(values, discount=1.0, gae_lambda=1.0)
    expected = 0.5 * (values - returns)[seen.mask].square().mean()
    assert stats.loss == pytest.approx(float(expected), rel=1e-4)
    assert stats.clip_fraction == 0.0


def test_value_passes_bring_the_values_to_the_returns_and_train_the_bias_too() -> None:
    model = tiny_reward_model()
    optimiser = MasterAdamW(model.parameters())
    seen = experience(tiny_llama(), tiny_llama(seed=3), scores=SCORES)
    settings = SETTINGS.model_copy(update={"value_learning_rate": 3e-3})
    values = torch.zeros(seen.mask.shape)
    losses = [
        value_step(model, optimiser, seen, whole(), values, settings=settings, fresh=True).loss
        for _ in range(12)
    ]
    assert losses[-1] < 0.5 * losses[0]
    assert float(model.bias.detach()) != 0.25


def test_later_epochs_clip_around_the_recorded_values() -> None:
    model = tiny_reward_model()
    seen = experience(tiny_llama(), tiny_llama(seed=3), scores=SCORES)
    far = torch.full(seen.mask.shape, 50.0)
    stats = value_step(
        model, MasterAdamW(model.parameters()), seen, whole(), far, settings=SETTINGS, fresh=False
    )
    assert stats.clip_fraction == 1.0
    assert far.unique().tolist() == [50.0]


def test_answers_in_rows_get_the_scores_that_each_gets_alone() -> None:
    model = tiny_reward_model().requires_grad_(False)
    groups = finished_groups(rollouts(), end_token=END)
    together = answer_scores(model, groups, token_budget=20)
    alone = [
        scores(model, pack([Group(group.prompt, [answer])], token_budget=64)[0])
        for group in groups
        for answer in group.answers
    ]
    assert len(pack(groups, token_budget=20)) > 1
    assert len(together.unique()) == 6
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
