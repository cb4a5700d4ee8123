"""A checkpoint that does not fit on the disk: the one before it still counts.

A limit on the size of files stands for the disk: a write beyond it fails in its middle.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from core.errors import InstructLoopError
from learning.training.checkpoints import load_checkpoint, read_notes, save_checkpoint
from learning.training.optimizer import MasterAdamW

WEIGHTS = 30_000
ROOM = 64 << 10


@contextmanager
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def optimizer(value: float) -> MasterAdamW:
    weight = torch.nn.Parameter(torch.full((WEIGHTS,), value))
    made = MasterAdamW([weight], betas=(0.9, 0.95), eps=1e-5)
    weight.grad = torch.ones(WEIGHTS)
    made.step(learning_rate=0.0)
    return made


def test_the_checkpoint_before_is_taken_up_and_the_next_one_with_room_is_written(
    tmp_path: Path,
) -> None:
    at = tmp_path / "checkpoint"
    save_checkpoint(at, [optimizer(1.0)], notes={"step": 1})
    with full_disk(), pytest.raises(InstructLoopError, match="MiB of disk free: make room"):
        save_checkpoint(at, [optimizer(2.0)], notes={"step": 2})
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-1"]
    assert read_notes(at) == {"step": 1}
    loaded = optimizer(0.0)
    load_checkpoint(at, [loaded])
    assert float(loaded.masters[0].detach()[0]) == 1.0
    save_checkpoint(at, [optimizer(3.0)], notes={"step": 3})
    assert read_notes(at) == {"step": 3}
    load_checkpoint(at, [loaded])
    assert float(loaded.masters[0].detach()[-1]) == 3.0
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
