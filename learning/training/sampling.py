"""Which token comes next, for each answer of a batch by the answer's own seed.

One uniform number a token against the cumulative distribution, so that an answer follows from its
seed, whoever shares its batch. Knows no model and no cache: transformers' continuous batching hands
over the logits of a step and takes the drawn tokens (learning/training/transformers_engine.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from core.errors import NotFinite


class Draw(ContinuousBatchingLogitsProcessorList):
    """Draws the next token of each request and notes its log-probability.

    It leaves nothing but the drawn token, so that whoever takes the largest score takes that. The
    library's own sampler has one seed for all requests, so what an answer is depends on others.
    """

    def __init__(self, *, seed: int, temperature: float) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._seed, self._temperature = seed, temperature
        self._numbers: dict[str, list[float]] = {}
        """Of each request, uniform, one for each token"""
        self._logprobs: dict[str, list[float]] = {}
        self._names: list[str] = []
        """Of the requests that get a token in this step, in the order of their logits"""

    def expect(self, name: str, number: int, max_tokens: int) -> None:
        """A request of this name is the answer of this number; its seed is so much further."""
        self._numbers[name] = uniform(self._seed + number, max_tokens)
        self._logprobs[name] = []

    def taken(self, name: str) -> list[float]:
        """The log-probabilities of a finished request's tokens; it is forgotten."""
        del self._numbers[name]
        return self._logprobs.pop(name)

    def prepare_tensor_args(
        self, requests_in_batch: Sequence[FutureRequestState], arg_storage: Tensor
    ) -> Tensor:
        """Before each step: note whose logits will come."""
        self._names = [
            request.state.request_id for request in requests_in_batch if request.has_new_token
        ]
        return arg_storage

    def __call__(  # type: ignore[override]
        self, _ids: Tensor, scores: Tensor, _arguments: Tensor
    ) -> Tensor:
        """(rows, vocabulary) -> (rows, vocabulary); rows behind those that were noted are nobody's.

        Raises NotFinite where a token's log-probability is no number.
        """
        count = len(self._names)
        only = torch.full_like(scores, -torch.inf)
        only[count:, 0] = 0.0
        if not count:
            return only
        greedy = self._temperature == 0.0
        divisor = 1.0 if greedy else self._temperature
        logprobs = torch.log_softmax(scores[:count].float() / divisor, dim=-1)
        if greedy:
            chosen = logprobs.argmax(dim=-1, keepdim=True)  # (count, 1)
        else:
            numbers = [self._numbers[name][len(self._logprobs[name])] for name in self._names]
            chosen = drawn(logprobs, torch.tensor(numbers, device=scores.device))
        found = logprobs.gather(1, chosen).squeeze(1)  # (count,)
        if not bool(found.isfinite().all()):
            raise NotFinite("the model computes numbers that are not finite")
        for name, logprob in zip(self._names, found.tolist(), strict=True):
            self._logprobs[name].append(logprob)
        only[:count].scatter_(1, chosen, 0.0)
        return only


def drawn(logprobs: Tensor, numbers: Tensor) -> Tensor:
    """The token of each row at which the cumulative distribution passes a number from [0, 1).

    (rows, vocabulary) and (rows,) -> (rows, 1); what has no probability is never drawn.
    """
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    passed = numbers[:, None].double() * cumulative[:, -1:]
    return torch.searchsorted(cumulative, passed, right=True).clamp_max(logprobs.shape[1] - 1)


def uniform(seed: int, count: int) -> list[float]:
    """`count` numbers from [0, 1) that a seed gives."""
    numbers: list[float] = torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return numbers
