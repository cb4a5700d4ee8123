"""How weights travel to the learner's engine, and how its answers come back one by one.

The engine itself: test_train_policy.py.
"""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from core.engine.client import Sample
from core.engine.launch import EngineSpec
from core.errors import EngineError
from learning.training import learner_engine
from learning.training.learner_engine import (
    VllmEngine,
    context_tokens,
    saved_tensors,
    stage_engine,
    weights_folder,
)
from learning.training.stage import Stage
from tests.learning.packing_cases import tiny_llama


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_weights_have_the_names_that_a_saved_folder_has(model_folder: Path) -> None:
    tensors = saved_tensors(tiny_llama(seed=8))
    with safe_open(model_folder / "model.safetensors", "pt") as saved:
        assert tensors.keys() == set(saved.keys())
        shapes = {name: saved.get_tensor(name).shape for name in saved.keys()}  # noqa: SIM118
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_the_folder_of_a_killed_learner_is_swept_away_and_that_of_a_living_one_is_not(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_engine, "SHARED_MEMORY", tmp_path)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True, text=True)  # fmt: skip
    left = tmp_path / f"instructloop-weights-{dead.stdout.strip()}"
    kept = tmp_path / f"instructloop-weights-{os.getppid()}"
    for folder in (left, kept):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    folder = weights_folder(model_folder, tmp_path / "fallback")
    assert folder == tmp_path / f"instructloop-weights-{os.getpid()}"
    assert folder.stat().st_mode & 0o077 == 0
    assert kept.exists()
    assert not left.exists()


def test_without_room_in_shared_memory_weights_travel_by_the_stages_own_folder(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_engine, "SHARED_MEMORY", tmp_path / "there-is-none")
    assert weights_folder(model_folder, tmp_path / "fallback") == tmp_path / "fallback"
    assert (tmp_path / "fallback").is_dir()


def test_a_model_with_a_short_context_is_served_with_it(model_folder: Path) -> None:
    assert context_tokens(model_folder) == 128
    model = tiny_llama()
    model.config.max_position_embeddings = 8192
    model.config.save_pretrained(model_folder)
    assert context_tokens(model_folder) == 2048


def test_a_tied_output_matrix_is_written_once() -> None:
    model = tiny_llama()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    numbers = sum(tensor.numel() for tensor in saved_tensors(model).values())
    assert numbers == sum(p.numel() for p in model.parameters())
    assert all(tensor.dtype == torch.float32 for tensor in saved_tensors(model).values())


# --- answers that come one by one -----------------------------------------------------------


class Client:
    """In place of the engine's client: prompt k is answered once `may_answer[k]` is set."""

    def __init__(self, count: int) -> None:
        self.may_answer = [threading.Event() for _ in range(count)]
        self.asked: list[tuple[int, int]] = []
        self.most = self.now = 0
        self.cancelled: list[int] = []

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_error: object) -> None:
        pass

    async def generate(self, prompts, *, n, max_tokens, temperature, seed, concurrency):
        ((number,),) = prompts
        self.asked.append((number, seed))
        self.now += 1
        self.most = max(self.most, self.now * n)
        try:
            while not self.may_answer[number].is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        if temperature < 0:
            raise EngineError("no")
        self.now -= 1
        return [[Sample([number, k], [-0.1, -0.2], "stop") for k in range(n)]]


@pytest.fixture
def client() -> Client:
    return Client(5)


@pytest.fixture
def vllm(client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VllmEngine:
    monkeypatch.setattr(VllmEngine, "_client", lambda self: client)
    spec = EngineSpec(
        model=tmp_path, socket=tmp_path / "s", served_name="learner", policy_version="parent",
        data_token="a", control_token="b", log=tmp_path / "log", max_num_seqs=6, max_model_len=99,
    )  # fmt: skip
    return VllmEngine(spec=spec, process=None, runner=None, weights=tmp_path)  # type: ignore[arg-type]


ASKED = {"n": 2, "max_tokens": 4, "temperature": 1.0, "seed": 40}
PROMPTS = [[k] for k in range(5)]


def test_the_engine_goes_on_while_the_caller_works_on_the_first_answers(vllm, client) -> None:
    answers = vllm.answers(PROMPTS, **ASKED)
    client.may_answer[1].set()
    number, samples = next(answers)
    assert (number, [s.token_ids for s in samples]) == (1, [[1, 0], [1, 1]])
    # here the caller works, and the engine, in its own thread, is asked for a fourth prompt
    while len(client.asked) < 4:
        assert threading.active_count() > 1
    assert client.asked == [(0, 40), (1, 42), (2, 44), (3, 46)]
    for event in client.may_answer:
        event.set()
    assert sorted(number for number, _ in answers) == [0, 2, 3, 4]
    assert client.most == 6


def test_all_answers_come_in_the_order_of_their_prompts(vllm, client) -> None:
    for event in client.may_answer:
        event.set()
    threads = threading.active_count()
    found = vllm.generate(PROMPTS, **ASKED)
    assert [[s.token_ids for s in answers] for answers in found] == [
        [[k, 0], [k, 1]] for k in range(5)
    ]
    assert vllm.generate([], **ASKED) == []
    assert threading.active_count() == threads


def test_an_iterator_that_is_closed_ends_what_is_being_answered(vllm, client) -> None:
    threads = threading.active_count()
    client.may_answer[0].set()
    answers = vllm.answers(PROMPTS, **ASKED)
    next(answers)
    answers.close()
    assert set(client.cancelled) >= {1, 2}
    assert threading.active_count() == threads


def test_the_error_of_an_engine_reaches_the_caller_and_ends_the_other_requests(
    vllm, client
) -> None:
    client.may_answer[2].set()
    with pytest.raises(EngineError):
        list(vllm.answers(PROMPTS, **ASKED | {"temperature": -1.0}))
    assert set(client.cancelled) >= {0, 1}


def test_a_stages_engine_starts_on_the_folder_that_an_input_names(
    model_folder: Path, tmp_path: Path
) -> None:
    told = {"parent": str(model_folder), "engine": {"kind": "transformers", "max_num_seqs": 7}}
    with stage_engine(Stage(folder=tmp_path, inputs=told), "parent") as engine:
        assert engine.wait() == 0.0
        assert engine.max_num_seqs == 7
        name, held = next(engine.model.named_parameters())
        assert torch.equal(held, tiny_llama().get_parameter(name).to(held.dtype))
