import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from core.engine.checkpoint import check_candidate, check_finite, check_same_layout, read_layout
from core.errors import CorruptVersion


def write(folder, tensors=None, **changes):
    """A checkpoint of three tensors of three types, in two files, with some replaced."""
    folder.mkdir()
    tensors = tensors or {
        "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "b": torch.linspace(-1, 1, 5),
        "ids": torch.arange(4),
    }
    tensors |= changes
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:2]}, folder / "model-1.safetensors")
    save_file({name: tensors[name] for name in names[2:]}, folder / "model-2.safetensors")
    return folder


@pytest.fixture
def served(tmp_path):
    return read_layout(write(tmp_path / "served"))


def test_the_layout_is_what_safetensors_wrote(served):
    assert {name: tensor.kind for name, tensor in served.items()} == {
        "a": ("BF16", (2, 3)),
        "b": ("F32", (5,)),
        "ids": ("I64", (4,)),
    }
    begin, end = served["b"].begin, served["b"].end
    content = served["b"].file.read_bytes()[begin:end]
    assert struct.unpack("<5f", content) == (-1, -0.5, 0, 0.5, 1)


def test_a_checkpoint_of_the_same_layout_passes_however_it_is_cut_into_files(tmp_path, served):
    folder = tmp_path / "candidate"
    folder.mkdir()
    zeros = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(5)}
    save_file(zeros | {"ids": torch.zeros(4, dtype=torch.int64)}, folder / "model.safetensors")
    assert check_candidate(folder, served).keys() == served.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_value_that_is_not_finite_is_found_in_every_type(tmp_path, value, dtype):
    good = torch.tensor([0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny], dtype=dtype)
    check_finite(read_layout(write(tmp_path / "good", a=good)))
    bad = good.clone()
    bad[3] = value
    layout = read_layout(write(tmp_path / "bad", a=bad))
    with pytest.raises(CorruptVersion, match="a holds an infinity or NaN"):
        check_finite(layout)


def test_a_missing_tensor_is_refused(served):
    with pytest.raises(CorruptVersion, match="1 tensors are missing, the first b"):
        check_same_layout({"a": served["a"], "ids": served["ids"]}, served)


def test_an_unknown_tensor_is_refused(tmp_path, served):
    folder = write(tmp_path / "candidate", lm_head=torch.zeros(2))
    with pytest.raises(CorruptVersion, match="1 tensors are unknown, the first lm_head"):
        check_candidate(folder, served)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 2, dtype=torch.bfloat16), torch.zeros(2, 3), torch.zeros(6).bfloat16()]
)
def test_a_wrong_shape_or_type_is_refused(tmp_path, served, wrong):
    folder = write(tmp_path / "candidate", a=wrong)
    with pytest.raises(CorruptVersion, match="is served"):
        check_candidate(folder, served)


@pytest.mark.parametrize("length", [0, 7, 8, 50, -1])
def test_a_file_that_was_cut_off_is_refused(tmp_path, length):
    folder = write(tmp_path / "candidate")
    file = folder / "model-1.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CorruptVersion):
        read_layout(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        json.dumps({"a": {"dtype": "F32", "shape": [1]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}).encode(),
    ],
)
def test_a_broken_header_is_refused(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    with pytest.raises(CorruptVersion):
        read_layout(tmp_path)


def test_a_header_longer_than_its_file_is_refused_without_reading_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CorruptVersion, match="header"):
        read_layout(tmp_path)


def test_trailing_bytes_are_refused(tmp_path):
    folder = write(tmp_path / "candidate")
    with (folder / "model-2.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptVersion, match="contradicts"):
        read_layout(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    folder = write(tmp_path / "candidate")
    save_file({"a": torch.zeros(1)}, folder / "model-3.safetensors")
    with pytest.raises(CorruptVersion, match="both"):
        read_layout(folder)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CorruptVersion, match="no safetensors"):
        read_layout(tmp_path)
