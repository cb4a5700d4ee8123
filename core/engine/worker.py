"""What runs inside vLLM's worker: a reload that checks first, and checksums of live weights.

vLLM mixes `SwapExtension` into its worker class (`--worker-extension-cls`); the agent calls its
methods by name through `/collective_rpc`. The only file of `core` that imports torch. It knows
neither versions nor traffic: core/engine/client.py is its caller.

On CPU vLLM packs the weight of every linear layer into oneDNN's format, and two things follow:

* A model whose output layer shares its weight with the embedding would keep the packed copy of the
  old weight after a reload, because only what a checkpoint has under its own name is packed again:
  new layers, but tokens chosen by the old output layer. So it is packed again here.
* vLLM's own `/weight_checker` would not notice, nor any other linear layer that was not loaded: it
  looks at the empty tensors that packing leaves behind. So a packed weight is read back here
  through the layer itself. A linear layer applied to the identity matrix gives its weight,
  exactly, because each sum has one term that is not zero.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from core.engine.checkpoint import Tensor as Entry
from core.engine.checkpoint import check_candidate, read_layout
from core.errors import CorruptVersion
from core.process import die_with_parent

# vLLM starts this process and does not tie it to its own life; if the server is killed, 2 GB and
# a busy core would stay behind
die_with_parent()

_ROWS = 512  # of the identity matrix at a time


class SwapExtension:
    """Mixed into vLLM's worker, whose `model_runner` and `reload_weights` it uses."""

    # vLLM's types are not known where this is checked
    model_runner: Any
    reload_weights: Any
    served_layout: dict[str, Entry] | None = None

    def safe_reload(self, folder: str) -> dict[str, str]:
        """Load the checkpoint in `folder`, if it is one of the served model and finite.

        Returns {} when loaded, {"refused": why} when nothing was touched. Raises when loading
        itself failed: then the engine has no usable weights until another reload succeeds. The
        folder must not change meanwhile (it is mapped into memory).
        """
        try:
            candidate = check_candidate(Path(folder), self._served())
        except (CorruptVersion, OSError) as error:
            return {"refused": str(error)}
        self.reload_weights(weights_iterator=_tensors(candidate))
        for module in self.model_runner.get_model().modules():
            if hasattr(module, "cpu_linear") and module.weight.numel():
                module.quant_method.process_weights_after_loading(module)
        return {}

    def parameter_checksums(self) -> dict[str, str]:
        """SHA-256 of every parameter as it computes now, by vLLM's name of it.

        A packed weight appears as `NAME.packed`, so that engines whose checksums cannot be
        compared (one on CPU, one on GPU) have no such names in common.
        """
        return {
            name: hashlib.sha256(memoryview(_bytes(value))).hexdigest()
            for prefix, module in self.model_runner.get_model().named_modules()
            for name, value in _live_weights(prefix, module)
        }

    def _served(self) -> dict[str, Entry]:
        """The layout of the checkpoint that the engine was started with."""
        if self.served_layout is None:
            self.served_layout = read_layout(Path(self.model_runner.model_config.model))
        return self.served_layout


def _tensors(layout: dict[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, one file after the other."""
    for file in sorted({entry.file for entry in layout.values()}):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                yield name, opened.get_tensor(name)


def _live_weights(prefix: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters, those packed away included.

    An embedding that is also the output layer has both: the weight and a packed copy of it.
    """
    for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
        if parameter.numel():
            yield name, parameter
        if name.endswith("weight") and hasattr(module, "cpu_linear"):
            yield f"{name}.packed", _read_back(module)


def _read_back(module: Any) -> Tensor:
    """The weight of a packed linear layer, (inputs, outputs)."""
    identity = torch.eye(_input_width(module), dtype=module.weight.dtype)  # (inputs, inputs)
    rows = torch.split(identity, _ROWS)
    return torch.cat([module.cpu_linear(some, module.weight, None) for some in rows])


def _input_width(module: Any) -> int:
    for name in ("input_size_per_partition", "embedding_dim"):
        if hasattr(module, name):
            return int(getattr(module, name))
    raise TypeError(f"vLLM packed a {type(module).__name__}, which this file cannot read back")


def _bytes(value: Tensor) -> Any:
    """The values of a tensor as a numpy array of bytes."""
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
