"""AdamW on fp32 masters, against torch's own in fp32."""

import copy
import math

import pytest
import torch
from torch import nn

from learning.training.optimizer import MasterAdamW

RATES = [3e-3, 1e-3, 5e-4]


def _parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (7,)]
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def _gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(5, 3, generator=generator), torch.randn(7, generator=generator)]


def _set_gradients(parameters, step):
    loss = sum((p.float() * g).sum() for p, g in zip(parameters, _gradients(step), strict=True))
    loss.backward()


def test_in_fp32_it_is_torchs_adamw_with_clipping():
    ours, theirs = _parameters(torch.float32), _parameters(torch.float32)
    options = {"betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.1}
    optimizer = MasterAdamW(ours, **options)
    reference = torch.optim.AdamW(theirs, lr=1.0, **options)
    for step, rate in enumerate(RATES):
        _set_gradients(ours, step)
        _set_gradients(theirs, step)
        norm = optimizer.step(learning_rate=rate, max_grad_norm=0.5)
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, 0.5)), rel=1e-5)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        reference.zero_grad()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        assert one.grad is None


def test_bf16_weights_are_the_rounding_of_fp32_training():
    ours = _parameters(torch.bfloat16)
    theirs = [nn.Parameter(p.detach().float()) for p in ours]
    optimizer = MasterAdamW(ours)
    reference = torch.optim.AdamW(theirs, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)
    for step in range(3):
        # the same slopes for both: linear losses do not look at the weights
        for p, q, gradient in zip(ours, theirs, _gradients(step), strict=True):
            p.grad, q.grad = gradient.clone(), gradient.clone()
        optimizer.step(learning_rate=1e-3)
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.to(torch.bfloat16), rtol=0, atol=0)


def test_updates_smaller_than_the_spacing_of_bf16_add_up():
    (parameter,) = [nn.Parameter(torch.ones(1, dtype=torch.bfloat16))]
    optimizer = MasterAdamW([parameter])
    for _ in range(40):
        parameter.grad = torch.ones(1)
        optimizer.step(learning_rate=1e-4)  # bf16 numbers under 1 are 0.0039 apart
    assert parameter.item() == pytest.approx(1 - 40e-4, abs=0.002)
    assert parameter.item() < 1


def test_gradients_of_bf16_parameters_are_summed_in_fp32():
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    MasterAdamW([parameter])
    for size in [1.0] + [1 / 512] * 4:
        (parameter * size).sum().backward()
    assert parameter.grad.dtype == torch.float32
    torch.testing.assert_close(parameter.grad, torch.full((3,), 1 + 4 / 512))


def test_a_saved_state_continues_exactly():
    straight = _parameters(torch.bfloat16)
    optimizer = MasterAdamW(straight)
    broken = _parameters(torch.bfloat16)
    first_half = MasterAdamW(broken)
    for step in range(2):
        for parameters, each in ((straight, optimizer), (broken, first_half)):
            _set_gradients(parameters, step)
            each.step(learning_rate=1e-2)
    state = copy.deepcopy(first_half.state_dict())
    resumed = _parameters(torch.bfloat16)  # as a new process would load them
    second_half = MasterAdamW(resumed)
    second_half.load_state_dict(state)
    for parameters, each in ((straight, optimizer), (resumed, second_half)):
        _set_gradients(parameters, 2)
        each.step(learning_rate=1e-2)
    for one, other in zip(straight, resumed, strict=True):
        assert torch.equal(one, other)


def test_a_gradient_that_is_not_finite_stops_the_step():
    parameters = _parameters(torch.float32)
    before = [p.detach().clone() for p in parameters]
    optimizer = MasterAdamW(parameters)
    for p in parameters:
        p.grad = torch.full_like(p, math.inf)
    with pytest.raises(FloatingPointError, match="inf"):
        optimizer.step(learning_rate=1.0)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_parameters_that_need_no_gradient_are_left_out():
    parameters = _parameters(torch.bfloat16)
    parameters[0].requires_grad_(False)
    optimizer = MasterAdamW(parameters)
    assert optimizer.parameters == [parameters[1]]
