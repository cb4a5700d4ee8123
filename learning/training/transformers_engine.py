"""A learner's engine without vLLM: transformers samples in the trainer's own process.

The fallback where vLLM is not installed, with the promises of the other: token ids in and out, the
log-probability of each token under the distribution it was drawn from, a seed for each answer. It
has weights of its own, so that those sampled from change only when they are loaded. Batches are
continuous: transformers' scheduler and paged cache, driven step by step in the caller's thread, so
that a prompt is read once for all of its answers and what is finished makes room at once. Sampling
and attention are ours (learning/training/sampling.py, learning/training/paged_attention.py).
Knows no trainer; learning/training/learner_engine.py says when it is used.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.generation.continuous_batching import RequestState
from transformers.generation.continuous_batching.utils import stream_context

from core.engine.client import Sample
from core.errors import CorruptVersion
from learning.training.distributed import device
from learning.training.paged_attention import PAGED_ATTENTION, step_of
from learning.training.sampling import Draw

_PAGE_TOKENS = 32
_STEP_TOKENS = 1024
"""Of prompts and answers in one step: longer prompts are read in parts."""
_LIBRARY_ATTENTION = "sdpa"


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
        found = dict(
            self.answers(prompts, n=n, max_tokens=max_tokens, temperature=temperature, seed=seed)
        )
        return [found[number] for number in range(len(prompts))]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> Generator[tuple[int, list[Sample]], None, None]:
        """The same, each prompt's number with its answers as soon as they are there.

        The next step is made when the next prompt is asked for.
        """
        if not prompts:
            return
        longest = max(map(len, prompts)) + max_tokens
        batch = _Batch(self, Draw(seed=seed, temperature=temperature), longest)
        most = self.max_num_seqs
        groups = [(i, k, min(most, n - k)) for i in range(len(prompts)) for k in range(0, n, most)]
        found: list[dict[int, Sample]] = [{} for _ in prompts]
        with closing(batch):
            while groups or batch.room < most:
                while groups and batch.room >= groups[0][2]:
                    i, k, count = groups.pop(0)
                    batch.ask(prompts[i], i * n + k, count, max_tokens)
                for number, sample in batch.step():
                    i, k = divmod(number, n)
                    found[i][k] = sample
                    if len(found[i]) == n:
                        yield i, [found[i].pop(k) for k in range(n)]

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


class _Batch:
    """The requests that an engine answers at a time, with a cache that holds just these."""

    def __init__(self, engine: TransformersEngine, draw: Draw, longest: int) -> None:
        self.room = engine.max_num_seqs
        self._engine, self._draw = engine, draw
        self._own_attention = _has_full_attention_only(engine.model)
        self._numbers: dict[str, int] = {}
        """The answer that a request's name stands for"""
        engine.model.set_attn_implementation(_LIBRARY_ATTENTION)
        ends = sorted(engine.end_tokens) or -1
        self._manager: Any = engine.model.init_continuous_batching(  # type: ignore[operator]
            generation_config=GenerationConfig(eos_token_id=ends),  # type: ignore[no-untyped-call]
            continuous_batching_config=_cache_config(engine.max_num_seqs, longest),
        )
        self._manager.logit_processor = draw
        if self._own_attention:
            engine.model.set_attn_implementation(PAGED_ATTENTION)
        # the library seeds the process's own generators
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            self._manager.warmup()  # which makes the cache, and without graphs no more
        if engine.model.device.type == "cuda":
            torch.cuda.synchronize()  # new weights came on another stream

    def ask(self, prompt: Sequence[int], first: int, count: int, max_tokens: int) -> None:
        """Begin `count` answers to a prompt, numbered from `first`; there is `room` for them."""
        forked = count if len(prompt) > 1 else 1  # the last token is read for each by itself
        for begin in range(first, first + count, forked):
            request = RequestState(
                request_id=str(begin),
                initial_tokens=list(prompt),
                num_children=forked - 1,
                max_new_tokens=max_tokens,
                eos_token_id=sorted(self._engine.end_tokens),
            )
            names = [str(begin), *(f"{begin}__child#{k}" for k in range(forked - 1))]
            for number, name in enumerate(names, begin):
                self._numbers[name] = number
                self._draw.expect(name, number, max_tokens)
            self._manager.batch_processor.scheduler.add_waiting_request(request)
        self.room -= count

    @torch.no_grad()
    def step(self) -> list[tuple[int, Sample]]:
        """The next token of each answer, or the next part of prompts; what is finished by it."""
        processor = self._manager.batch_processor
        tensors = processor.inputs_and_outputs
        with stream_context(tensors.compute_stream):
            if not processor.prepare_next_batch():
                raise RuntimeError("the scheduler has nothing to do while answers are missing")
            inputs = tensors.get_model_kwargs()
            if self._own_attention:
                lengths = [
                    (request.query_length, request.state.position_offset)  # by now its keys
                    for request in tensors.requests_in_batch
                ]
                inputs["step"] = step_of(lengths, inputs["read_index"][0])
            processor.model_runner.compute_batch(self._engine.model, inputs)
            tensors.retrieve_device_outputs()
            processor.update_batch()
        return list(self._finished())

    def _finished(self) -> Iterator[tuple[int, Sample]]:
        while (output := self._manager.get_result()) is not None:
            self.room += 1
            ids = output.generated_tokens
            ended = ids[-1] in self._engine.end_tokens
            logprobs = self._draw.taken(output.request_id)
            sample = Sample(list(ids), logprobs, "stop" if ended else "length")
            yield self._numbers.pop(output.request_id), sample

    def close(self) -> None:
        """Let go of the cache."""
        self._manager.batch_processor = None
        self._engine.model.set_attn_implementation(_LIBRARY_ATTENTION)


def _cache_config(max_num_seqs: int, longest: int) -> ContinuousBatchingConfig:
    """A cache for so many answers whose prompts and they have up to `longest` tokens, no larger.

    Every step is made by itself, without graphs: what is noted of it is its own.
    """
    return ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        num_blocks=max_num_seqs * math.ceil(longest / _PAGE_TOKENS),
        max_batch_tokens=max(_STEP_TOKENS, max_num_seqs),
        max_requests_per_batch=max_num_seqs,
        max_blocks_per_request=0,
        max_memory_percent=1.0,
        safety_margin=0.0,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
        disable_nccl_graph_mixing=False,
        seed=0,
    )


def _has_full_attention_only(model: PreTrainedModel) -> bool:
    """Whether our attention knows the model's; others keep the library's."""
    config: Any = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is None
    return set(kinds) == {"full_attention"}


def transformers_engine(folder: Path, *, max_num_seqs: int) -> TransformersEngine:
    """An engine with the weights of a model folder, on the GPU where there is one."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=_LIBRARY_ATTENTION, local_files_only=True
    )
    ends = model.generation_config.eos_token_id or []
    nn.Module.to(model, device())
    return TransformersEngine(
        model=model.requires_grad_(False),  # from_pretrained has turned dropout off
        end_tokens=frozenset([ends] if isinstance(ends, int) else ends),
        max_num_seqs=max_num_seqs,
    )
