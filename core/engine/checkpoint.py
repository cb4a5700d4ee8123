"""What is in a checkpoint: names, types and shapes of its tensors, and whether all are finite.

vLLM's reload accepts a checkpoint that lacks a layer or holds NaN, and loses the old weights when
a shape is wrong. So both the agent, before a swap, and the worker (core/engine/worker.py), right
before loading, ask this file first. It reads safetensors files with numpy only: bfloat16 has no
numpy type, but finiteness is a question about bits.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import CorruptVersion

# the bits of the exponent, all set in infinities and NaN, and the integer type to look at them
_EXPONENT = {
    "BF16": ("uint16", 0x7F80),
    "F16": ("uint16", 0x7C00),
    "F32": ("uint32", 0x7F800000),
    "F64": ("uint64", 0x7FF0000000000000),
}
_MAX_HEADER = 100_000_000
_PIECE = 2_000_000  # numbers that are looked at in one go


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor is: its file, its type and shape, and its bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def kind(self) -> tuple[str, tuple[int, ...]]:
        """What has to be the same in two checkpoints of one model."""
        return self.dtype, self.shape


def read_layout(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files by name.

    Raises CorruptVersion when there is no such file, a header is broken, a tensor is in two files,
    or a file is shorter or longer than its header says.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CorruptVersion(f"{folder} has no safetensors file.")
    layout: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read_header(file):
            if name in layout:
                raise CorruptVersion(f"{name} is in both {layout[name].file.name} and {file.name}.")
            layout[name] = tensor
    return layout


def check_same_layout(candidate: dict[str, Tensor], served: dict[str, Tensor]) -> None:
    """Raise CorruptVersion unless both hold the same names with the same types and shapes."""
    missing = sorted(served.keys() - candidate.keys())
    if missing:
        raise CorruptVersion(f"{len(missing)} tensors are missing, the first {missing[0]}.")
    unknown = sorted(candidate.keys() - served.keys())
    if unknown:
        raise CorruptVersion(f"{len(unknown)} tensors are unknown, the first {unknown[0]}.")
    for name, tensor in candidate.items():
        if tensor.kind != served[name].kind:
            raise CorruptVersion(f"{name} is {tensor.kind}, but {served[name].kind} is served.")


def check_finite(layout: dict[str, Tensor]) -> None:
    """Raise CorruptVersion if any number is infinite or not a number."""
    for _ in finite_checks(layout):
        pass


def finite_checks(layout: dict[str, Tensor]) -> Iterator[None]:
    """The same in pieces of some milliseconds: each step looks at one."""
    import numpy as np  # the gateway, which imports this file, has no use for it

    for name, tensor in layout.items():
        if tensor.dtype not in _EXPONENT or tensor.begin == tensor.end:
            continue
        kind, exponent = _EXPONENT[tensor.dtype]
        integer = np.dtype(kind)
        count = (tensor.end - tensor.begin) // integer.itemsize
        bits = np.memmap(tensor.file, integer, mode="r", offset=tensor.begin, shape=(count,))
        for begin in range(0, count, _PIECE):
            piece = bits[begin : begin + _PIECE]
            if np.any((piece & integer.type(exponent)) == exponent):
                raise CorruptVersion(f"{name} holds an infinity or NaN.")
            yield


def check_candidate(folder: Path, served: dict[str, Tensor]) -> dict[str, Tensor]:
    """All checks in order of cost; returns the candidate's layout.

    >>> check_candidate(Path("policies/v0004"), read_layout(Path("policies/v0003")))
    """
    candidate = read_layout(folder)
    check_same_layout(candidate, served)
    check_finite(candidate)
    return candidate


def _read_header(file: Path) -> Iterator[tuple[str, Tensor]]:
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(size, _MAX_HEADER):
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, dict[str, object]] = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        tensors = [
            (name, _tensor(file, entry, data_begin=8 + length)) for name, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise CorruptVersion(f"{file} is not a safetensors file: {error}.") from error
    if max((tensor.end for _, tensor in tensors), default=8 + length) != size:
        raise CorruptVersion(f"{file} is {size} bytes long, which its header contradicts.")
    yield from tensors


def _tensor(file: Path, entry: dict[str, object], *, data_begin: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            sizes = tuple(int(str(size)) for size in shape)
            return Tensor(file, dtype, sizes, data_begin + begin, data_begin + end)
    raise ValueError(f"an entry {entry}")
