"""The learner's own engine: vLLM started beside the trainer, its weights replaced in place.

It samples while the trainer waits and sleeps while the trainer works. New weights go through a
folder in shared memory, which is gone when the engine is, also when an earlier process was killed.
Where vLLM is not installed, learning/training/transformers_engine.py does the same in the trainer's
process. Knows vLLM only through core/engine. Stages of learning that sample own one each.
"""

import asyncio
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from core.engine.client import EngineClient, Sample
from core.engine.launch import EngineSpec, start_engine, stop_engine, wait_until_ready
from learning.training.beside import beside
from learning.training.stage import Stage
from learning.training.transformers_engine import transformers_engine

SHARED_MEMORY = Path("/dev/shm")
_WEIGHTS = "instructloop-weights"
_START_SECONDS = 300.0
_GRACE_SECONDS = 2.0
_CONTEXT_TOKENS = 2048


class LearnerEngine(Protocol):
    """An engine that answers for one learner. Its methods block; call them from one thread."""

    def wait(self) -> float:
        """Until it answers; the seconds that took. Raises StartError if it does not come up."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Sample]]:
        """`n` answers to each prompt, all over the vocabulary: no top-p, no penalty.

        Answer k to prompt i has the seed `seed + i * n + k`. A temperature of 0 is greedy.
        """

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> Generator[tuple[int, list[Sample]], None, None]:
        """The same, each prompt's number with its answers as soon as they are finished.

        What the caller does with them comes before the last ones are there. Closing the iterator
        ends what is still being answered.
        """

    def load_folder(self, folder: Path, *, version: str) -> None:
        """Serve the checkpoint in a folder from now on. Raises CorruptVersion if it is refused."""

    def load_model(self, model: PreTrainedModel, *, version: str) -> None:
        """Serve a model's present weights from now on."""

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every parameter as the engine holds it; empty where it cannot say."""


@dataclass(frozen=True, slots=True)
class VllmEngine:
    """A vLLM server of ours."""

    spec: EngineSpec
    process: "subprocess.Popen[bytes]"
    runner: asyncio.Runner
    weights: Path
    """The folder through which weights travel."""

    def wait(self) -> float:
        """Until it answers; the seconds that took. Raises StartError if it does not come up."""

        async def until_ready() -> float:
            async with self._client() as client:
                return await wait_until_ready(
                    client, self.process, timeout=_START_SECONDS, log=self.spec.log
                )

        return self.runner.run(until_ready())

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Sample]]:
        """`n` answers to each prompt, all over the vocabulary: no top-p, no penalty."""
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
        """Each prompt's answers once they are finished; the engine goes on while the caller works.

        At most `max_num_seqs` answers are asked for at a time, prompt by prompt.
        """
        finished: SimpleQueue[tuple[int, list[Sample]] | None] = SimpleQueue()
        slots = asyncio.Semaphore(max(1, self.spec.max_num_seqs // n))

        async def answer(client: EngineClient, number: int) -> None:
            async with slots:
                (found,) = await client.generate(
                    [prompts[number]],
                    n=n,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed + number * n,
                    concurrency=n,
                )
            finished.put((number, found))

        async def answer_all() -> None:
            async with self._client() as client:
                tasks = [asyncio.create_task(answer(client, i)) for i in range(len(prompts))]
                try:
                    await asyncio.gather(*tasks)
                finally:  # after a failure the others would go on for nobody
                    for task in tasks:
                        task.cancel()

        yield from beside(answer_all, finished)

    def load_folder(self, folder: Path, *, version: str) -> None:
        """Serve the checkpoint in a folder from now on, with an empty prefix cache."""

        async def replace() -> None:
            async with self._client() as client:
                await client.replace_weights(folder, version)

        self.runner.run(replace())

    def load_model(self, model: PreTrainedModel, *, version: str) -> None:
        """Serve a model's present weights, in the names and types that the engine started with."""
        save_file(saved_tensors(model), self.weights / "model.safetensors")
        self.load_folder(self.weights, version=version)

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every parameter as the engine holds it."""

        async def ask() -> dict[str, str]:
            async with self._client() as client:
                return await client.checksums()

        return self.runner.run(ask())

    def _client(self) -> EngineClient:
        return EngineClient(
            socket=self.spec.socket,
            data_token=self.spec.data_token,
            control_token=self.spec.control_token,
        )


@contextmanager
def stage_engine(stage: Stage, start: str) -> Iterator[LearnerEngine]:
    """The engine of a stage, not waited for yet, on the model folder that this input names."""
    with learner_engine(
        stage.path(start),
        stage.inputs["engine"],
        log=stage.folder / "engine.log",
        fallback=stage.folder / "weights",
        idle_priority=bool(stage.inputs.get("idle_priority")),
    ) as engine:
        yield engine


@contextmanager
def learner_engine(
    model: Path, engine: dict[str, Any], *, log: Path, fallback: Path, idle_priority: bool
) -> Iterator[LearnerEngine]:
    """Start an engine on a model folder without waiting for it; stop it and clean up at the end.

    `engine` is what stage.json says: {kind, socket, max_num_seqs}. `fallback` is where weights
    travel to vLLM when there is no room in shared memory.
    """
    if engine_kind(engine.get("kind", "auto")) == "transformers":
        yield transformers_engine(model, max_num_seqs=int(engine["max_num_seqs"]))
        return
    spec = EngineSpec(
        model=model,
        socket=Path(engine["socket"]),
        served_name="learner",
        policy_version="parent",
        data_token=secrets.token_urlsafe(),
        control_token=secrets.token_urlsafe(),
        log=log,
        max_num_seqs=int(engine["max_num_seqs"]),
        max_model_len=context_tokens(model),
    )
    weights = weights_folder(model, fallback)
    process = start_engine(spec, idle_priority=idle_priority)
    try:
        with asyncio.Runner() as runner:
            yield VllmEngine(spec=spec, process=process, runner=runner, weights=weights)
    finally:
        stop_engine(process, _GRACE_SECONDS)
        shutil.rmtree(weights, ignore_errors=True)


def engine_kind(asked: str) -> str:
    """`vllm` or `transformers`: with `auto` vLLM where it is installed."""
    if asked != "auto":
        return asked
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"


def context_tokens(model: Path) -> int:
    """Tokens of prompt and answer together that the engine is started for."""
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    return min(_CONTEXT_TOKENS, int(config.max_position_embeddings))


def saved_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state by name as save_pretrained writes it: a tied output matrix is not repeated."""
    state = model.state_dict()
    seen: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            continue
        seen[tensor.data_ptr()] = name
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def weights_folder(model: Path, fallback: Path) -> Path:
    """An empty folder of this process in shared memory, if two copies of the weights fit there."""
    _sweep(SHARED_MEMORY)
    needed = 2 * sum(file.stat().st_size for file in model.glob("*.safetensors"))
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > needed
    folder = SHARED_MEMORY / f"{_WEIGHTS}-{os.getpid()}" if roomy else fallback
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def _sweep(root: Path) -> None:
    """Remove what learners that were killed have left behind."""
    for left in root.glob(f"{_WEIGHTS}-*"):
        owner = re.search(r"\d+$", left.name)
        if owner and not Path("/proc", owner.group()).exists():
            shutil.rmtree(left, ignore_errors=True)
