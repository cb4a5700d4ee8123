"""How weights travel to the learner's engine. The engine itself: test_train_policy.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from learning.training import learner_engine
from learning.training.learner_engine import context_tokens, saved_tensors, weights_folder
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
