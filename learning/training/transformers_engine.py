"""A learner's engine without vLLM: transformers samples in the trainer's own process.

The fallback where vLLM is not installed, with the promises of the other: token ids in and out, the
log-probability of each token under the distribution it was drawn from, a seed for each answer. It
has weights of its own, so that those sampled from change only when they are loaded. Answers are
generated in batches that last as long as their longest, so a batch holds prompts of similar length.
Knows no trainer; learning/training/learner_engine.py says when it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from core.engine.client import Sample
from core.errors import CorruptVersion, NotFinite
from learning.training.distributed import device


@dataclass(frozen=True, slots=True)
class TransformersEngine:
    """A model that answers. Its methods block."""

    model: PreTrainedModel
    end_tokens: frozenset[int]
    max_num_seqs: int

    def wait(self) -> float:
        """It answers at once."""
        return 0.0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Sample]]:
        """`n` answers to each prompt; an answer depends on its own seed, not on its batch.

        Up to the last bits of the logits, that is, which depend on the shape of the batch. Raises
        NotFinite where the weights compute no numbers.
        """
        asked = [number for number in range(len(prompts)) for _ in range(n)]
        order = sorted(range(len(asked)), key=lambda i: (len(prompts[asked[i]]), i))
        answers: dict[int, Sample] = {}
        for start in range(0, len(order), self.max_num_seqs):
            chosen = order[start : start + self.max_num_seqs]
            draw = Draw([seed + i for i in chosen], max_tokens, temperature)
            found = self._answers([prompts[asked[i]] for i in chosen], max_tokens, draw)
            answers |= zip(chosen, found, strict=True)
        return [[answers[i * n + k] for k in range(n)] for i in range(len(prompts))]

    def load_folder(self, folder: Path, *, version: str) -> None:
        """Answer with the checkpoint in a folder from now on."""
        files = sorted(folder.glob("*.safetensors"))
        self._load({name: t for file in files for name, t in load_file(file).items()}, version)

    def load_model(self, model: PreTrainedModel, *, version: str) -> None:
        """Answer with a model's present weights from now on."""
        self._load(dict(model.state_dict()), version)

    def checksums(self) -> dict[str, str]:
        """None: an engine that serves has other names and cuts, so nothing could be compared."""
        return {}

    def _load(self, tensors: dict[str, Tensor], version: str) -> None:
        """Copy tensors in place, if every parameter is among them in its shape and finite."""
        targets = dict(self.model.named_parameters())  # a tied matrix is there once
        for name, target in targets.items():
            if name not in tensors or tensors[name].shape != target.shape:
                raise CorruptVersion(f"{version} has no {name} of shape {tuple(target.shape)}")
            if not bool(tensors[name].isfinite().all()):
                raise CorruptVersion(f"{version} has numbers in {name} that are not finite")
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(tensors[name])

    @torch.no_grad()
    def _answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, draw: "Draw"
    ) -> list[Sample]:
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
        made = self.model.generate(  # type: ignore[operator]
            ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            max_new_tokens=max_tokens,
            logits_processor=LogitsProcessorList([draw]),
        )
        logprobs = torch.stack(draw.logprobs, dim=1).cpu()  # (prompts, tokens)
        if not bool(logprobs.isfinite().all()):
            raise NotFinite("the model computes numbers that are not finite")
        return [
            self._cut(answer, values)
            for answer, values in zip(made[:, length:].tolist(), logprobs.tolist(), strict=True)
        ]

    def _cut(self, ids: list[int], logprobs: list[float]) -> Sample:
        """An answer up to its end token, that one included."""
        for place, token in enumerate(ids):
            if token in self.end_tokens:
                return Sample(ids[: place + 1], logprobs[: place + 1], "stop")
        return Sample(ids, logprobs, "length")


class Draw(LogitsProcessor):
    """Draws each row's next token by the row's own seed, and notes its log-probability.

    It leaves nothing but the drawn token, so that whoever takes the largest score takes that.
    """

    def __init__(self, seeds: Sequence[int], max_tokens: int, temperature: float) -> None:
        self.temperature = temperature
        self.logprobs: list[Tensor] = []
        """(rows,) fp32 for each token so far; behind the end of an answer none counts"""
        self._numbers = torch.stack(  # (rows, max_tokens), uniform
            [_uniform(seed, max_tokens) for seed in seeds]
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, tokens so far), (rows, vocabulary) -> (rows, vocabulary)."""
        greedy = self.temperature == 0.0
        logprobs = torch.log_softmax(scores.float() / (1.0 if greedy else self.temperature), dim=-1)
        if greedy:
            chosen = logprobs.argmax(dim=-1, keepdim=True)  # (rows, 1)
        else:
            numbers = self._numbers[:, len(self.logprobs)].to(scores.device)
            chosen = drawn(logprobs, numbers)
        self.logprobs.append(logprobs.gather(1, chosen).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def drawn(logprobs: Tensor, numbers: Tensor) -> Tensor:
    """The token of each row at which the cumulative distribution passes a number from [0, 1).

    (rows, vocabulary) and (rows,) -> (rows, 1); what has no probability is never drawn.
    """
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    passed = numbers[:, None].double() * cumulative[:, -1:]
    return torch.searchsorted(cumulative, passed, right=True).clamp_max(logprobs.shape[1] - 1)


def transformers_engine(folder: Path, *, max_num_seqs: int) -> TransformersEngine:
    """An engine with the weights of a model folder, on the GPU where there is one."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
    )
    ends = model.generation_config.eos_token_id or []
    ends = [ends] if isinstance(ends, int) else list(ends)
    # the folder's own defaults (a penalty, a top-p) would bend what is sampled
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
    )
    nn.Module.to(model, device())
    return TransformersEngine(
        model=model.requires_grad_(False),  # from_pretrained has turned dropout off
        end_tokens=frozenset(ends),
        max_num_seqs=max_num_seqs,
    )


def _uniform(seed: int, count: int) -> Tensor:
    """(count,) numbers from [0, 1) that a seed gives."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))
