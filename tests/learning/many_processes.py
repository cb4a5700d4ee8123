"""Stages as several real processes, and how like their models are to those of one."""

import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file

from learning.rounds.child import command_line

SAME_WEIGHTS = 0.15
"""Distance of the final weights as a share of how far training moved them. So few steps are about
one bf16 number, to either side of which almost the same fp32 weight is rounded."""


def start(module: str, folder: Path, number: int) -> subprocess.Popen:
    """The stage as the runner starts it, so many processes."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command_line("local", module, folder, number),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
            start_new_session=True,
        )


def assert_same_weights(expected: Path, found: Path, *, before: str) -> None:
    """Of two model folders, against how far both are from what they began with."""
    file = "model.safetensors"
    w = [load_file(folder / file) for folder in (expected, found)]
    began = load_file(Path(before) / file)
    assert w[0].keys() == w[1].keys()
    moved = distance(w[0], began)
    assert moved > 0.1
    assert distance(w[0], w[1]) < SAME_WEIGHTS * moved


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over the tensors that both have."""
    both = one.keys() & other.keys()
    parts = [(one[key].double() - other[key].double()).square().sum() for key in both]
    return float(torch.stack(parts).sum().sqrt())
