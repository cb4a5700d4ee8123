"""Log-probabilities of answer tokens, without ever holding the logits of a whole row.

Hidden states and the output matrix come in, log-probabilities and entropies go out to the losses
and the KL. The vocabulary is large (a row of 1,024 tokens would need 200 MB of logits), so tokens
go through in chunks, and the backward pass computes each chunk's logits a second time.
"""

from typing import Any

import torch
from torch import Tensor

from learning.training.packing import Packed


def answer_logprobs(
    hidden: Tensor,
    head_weight: Tensor,
    packed: Packed,
    *,
    temperature: float = 1.0,
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, in nats, at every answer token of a row, in the row's order.

    `hidden` (1, length, width) as `attend` gives it and `head_weight` (vocabulary, width) may be
    bf16; logits are divided by `temperature` and normalised in fp32.
    Returns two of (num_answer_tokens,) fp32; the entropies carry no gradient.
    """
    states = hidden[0, packed.predictor[packed.answer_mask]]  # (num_answer_tokens, width)
    targets = packed.input_ids[0, packed.answer_mask]  # (num_answer_tokens,)
    return token_logprobs(states, head_weight, targets, temperature=temperature, chunk=chunk)


def token_logprobs(
    states: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """Log-probability of `targets` (tokens,) after `states` (tokens, width), and the entropy there.

    Both (tokens,) fp32, in nats. `chunk` tokens are held as logits at a time.
    """
    logprobs, entropies = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
        states, head_weight, targets, temperature, chunk
    )
    return logprobs, entropies


class _ChunkedLogprobs(torch.autograd.Function):
    """d logprob / d logits = (onehot - softmax) / temperature, from logits computed again."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives the context no public type
        states: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), device=states.device)
        entropies = torch.empty_like(logprobs)
        for at in _slices(len(targets), chunk):
            logits = _logits(states[at], head_weight, temperature)  # (chunk, vocabulary)
            logs = torch.log_softmax(logits, dim=-1)
            logprobs[at] = logs.gather(1, targets[at, None]).squeeze(1)
            normaliser = logits.gather(1, targets[at, None]).squeeze(1) - logprobs[at]
            entropies[at] = normaliser - torch.linalg.vecdot(logs.exp_(), logits)
        ctx.save_for_backward(states, head_weight, targets)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, head_weight, targets = ctx.saved_tensors
        upstream = gradients[0] / ctx.temperature  # (tokens,)
        for_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(head_weight) if ctx.needs_input_grad[1] else None
        for at in _slices(len(targets), ctx.chunk):
            logits = _logits(states[at], head_weight, ctx.temperature)
            slope = torch.softmax(logits, dim=-1).mul_(-upstream[at, None])
            slope.scatter_add_(1, targets[at, None], upstream[at, None])
            slope = slope.to(states.dtype)  # (chunk, vocabulary)
            if for_states is not None:
                for_states[at] = slope @ head_weight
            if for_weight is not None:
                for_weight.addmm_(slope.T, states[at])
        return for_states, for_weight, None, None, None


def _logits(states: Tensor, head_weight: Tensor, temperature: float) -> Tensor:
    """(chunk, vocabulary) fp32. The product is in the weights' precision, as in the engine."""
    logits = (states @ head_weight.T).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
