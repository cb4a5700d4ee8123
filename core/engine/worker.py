"""What runs inside vLLM's worker: new weights beside the old ones, and checksums of live weights.

vLLM mixes `SwapExtension` into its worker class (`--worker-extension-cls`); the agent calls its
methods by name through `/collective_rpc`. The only file of `core` that imports torch. It knows
neither versions nor traffic: core/engine/client.py is its caller.

On CPU vLLM packs the weight of every linear layer into oneDNN's format, and three things follow:

* A model whose output layer shares its weight with the embedding would keep the packed copy of the
  old weight after a reload, because only what a checkpoint has under its own name is packed again:
  new layers, but tokens chosen by the old output layer. So it is packed again here.
* vLLM's own `/weight_checker` would not notice, nor any other linear layer that was not loaded: it
  looks at the empty tensors that packing leaves behind. So a packed weight is read back here
  through the layer itself. A linear layer applied to the identity matrix gives its weight,
  exactly, because each sum has one term that is not zero.
* What a layer computes with is a few Python attributes. So a second set can be checked, loaded,
  packed and hashed while the first one answers, and exchanging the two takes no time. That long
  work is cut into slices between which the engine generates (`begin`, `go_on`).
"""

import copy
import hashlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from core.engine.checkpoint import Tensor as Entry
from core.engine.checkpoint import (
    check_candidate,
    check_same_layout,
    finite_checks,
    read_layout,
)
from core.errors import CorruptVersion
from core.process import die_with_parent

# vLLM starts this process and does not tie it to its own life; if the server is killed, 2 GB and
# a busy core would stay behind
die_with_parent()

_ROWS = 64  # of the identity matrix at a time: some milliseconds of the largest layer
_HASHED_ROWS = 8192  # of a plain weight at a time
_PROOF_ROWS = 4
# how vLLM keeps a linear layer and an embedding that nothing quantised
_EXCHANGEABLE = frozenset({"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"})
Checksums = dict[str, str]
Slices = Generator[None, None, Checksums]
"""Work that may stop at each `yield`; its result is checksums."""


@dataclass(slots=True)
class Staged:
    """A second set of weights: modules like the live ones, and what they compute."""

    modules: dict[str, nn.Module]
    proofs: dict[str, str] = field(default_factory=dict)


class Unsupported(Exception):
    """These weights cannot be exchanged; reload them instead."""


class SwapExtension:
    """Mixed into vLLM's worker, whose `model_runner` and `reload_weights` it uses."""

    # vLLM's types are not known where this is checked
    model_runner: Any
    reload_weights: Any
    served_layout: dict[str, Entry] | None = None
    staged: Staged | None = None
    second: Staged | None = None
    """What is being staged, or was; its memory is given back by the next `begin`."""
    work: Slices | None = None

    def begin(self, work: Literal["stage", "checksums"], folder: str = "") -> dict[str, str]:
        """Say what `go_on` shall do; what was begun or staged before is forgotten.

        "stage" loads the checkpoint in `folder` beside the live weights, touching none of them, and
        gives the checksums of what it loaded; "checksums" gives those of the live weights.
        """
        if self.second is not None:
            _free(self.second)
        self.second = self.staged = None
        self.work = self._stage(Path(folder)) if work == "stage" else self._live_checksums()
        return {}

    def go_on(self, seconds: float) -> dict[str, Any]:
        """Work for about so long, and always get on.

        Returns {} when there is more to do, {"done": checksums} at the end, {"refused": why} for a
        checkpoint that must not be loaded, {"unread": why} for one that could not be read, and
        {"unsupported": why} where a reload is the only way.
        """
        until = time.perf_counter() + seconds
        work, self.work = self.work, None
        if work is None:  # this rank is done and another is not
            return {}
        try:
            with torch.no_grad():
                next(work)
                while time.perf_counter() < until:
                    next(work)
        except StopIteration as end:
            return {"done": end.value}
        except CorruptVersion as error:
            return {"refused": str(error)}
        except OSError as error:  # says nothing of the checkpoint
            return {"unread": str(error)}
        except Unsupported as error:
            return {"unsupported": str(error)}
        self.work = work
        return {}

    def install(self) -> dict[str, str]:
        """Exchange the live weights for the staged ones; pause first.

        Returns {} when every layer then computes as it did when it was staged, or {"wrong": which}:
        then nothing may be generated before another load. The old weights stay in memory until the
        next `begin`, because freeing them takes time.
        """
        staged = self.staged
        if staged is None:
            raise RuntimeError("nothing is staged")
        live = dict(self.model_runner.get_model().named_modules())
        _exchange(live, staged.modules)
        self.model_runner.reset_lora_state()
        self.model_runner.reset_encoder_cache()
        self.model_runner.reset_mm_cache()
        with torch.no_grad():
            wrong = [name for name, proof in staged.proofs.items() if _proof(live[name]) != proof]
        return {"wrong": ", ".join(wrong[:3])} if wrong else {}

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
        with torch.no_grad():
            return _finish(self._live_checksums())

    def _live_checksums(self) -> Slices:
        yield
        return (yield from _checksums(dict(self.model_runner.get_model().named_modules())))

    def _stage(self, folder: Path) -> Slices:
        """Check, load, pack, hash and prove a checkpoint beside the live weights."""
        layout = read_layout(folder)
        check_same_layout(layout, self._served())
        for _ in finite_checks(layout):
            yield
        model = self.model_runner.get_model()
        _check_exchangeable(model)
        second = _second_set(model)
        modules = dict(second.named_modules())
        self.second = Staged(modules)
        loaded: set[str] = set()
        for name, tensor in _tensors(layout):
            loaded |= second.load_weights([(name, tensor)])
            yield
        parameters = {name for name, _ in second.named_parameters()}
        if loaded != parameters:
            raise Unsupported(f"it does not load {sorted(loaded ^ parameters)[:3]} by name")
        for name, parameter in second.named_parameters():
            if not torch.isfinite(parameter).all():  # the checkpoint is finite
                raise Unsupported(f"nothing was loaded into {name}")
            yield
        for module in modules.values():
            if type(getattr(module, "quant_method", None)).__name__ in _EXCHANGEABLE:
                module.quant_method.process_weights_after_loading(module)
                yield
        checksums = yield from _checksums(modules)
        for name, module in modules.items():
            self.second.proofs[name] = _proof(module)
            yield
        self.staged = self.second
        return checksums

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


def _check_exchangeable(model: nn.Module) -> None:
    """Raise Unsupported unless all weights are what `_exchange` knows how to exchange."""
    for name, module in model.named_modules():
        if any(parameter.device.type != "cpu" for parameter in module.parameters(recurse=False)):
            raise Unsupported("its weights are not in this machine's own memory")  # CUDA graphs
        method = getattr(module, "quant_method", None)
        if hasattr(module, "cpu_linear") and type(method).__name__ not in _EXCHANGEABLE:
            raise Unsupported(f"{name} is packed by {type(method).__name__}")


def _second_set(model: nn.Module) -> Any:
    """The same modules with parameters of their own, as large as a checkpoint's and all NaN.

    vLLM remembers how each module's parameters were before they were packed.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    copies: dict[nn.Module, nn.Module] = {}
    shared: dict[Tensor, Any] = {}
    for module in model.modules():
        twin = copies[module] = copy.copy(module)
        twin._parameters = dict(module._parameters)
        unpacked = get_layerwise_info(module).restore_metadata[0]
        for name, value in module._parameters.items():
            if value is not None:
                if value not in shared:
                    shared[value] = _unloaded(unpacked.get(name, value), twin)
                twin._parameters[name] = shared[value]
        twin._buffers = dict(module._buffers)
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                twin._buffers[name] = buffer.clone()
    for module, twin in copies.items():
        twin._modules = {
            name: None if child is None else copies[child]
            for name, child in module._modules.items()
        }
    return copies[model]


def _unloaded(like: Tensor, owner: nn.Module) -> Any:
    """A parameter of the same kind, all NaN, that loads itself for `owner`."""
    own: Any = torch.empty_strided(like.size(), like.stride(), dtype=like.dtype)
    own.fill_(float("nan") if own.is_floating_point() else 0)
    own.__class__ = like.__class__
    own.__dict__ = like.__dict__.copy()
    for name, value in like.__dict__.items():
        while getattr(value, "__name__", "") == "online_process_loader":  # left by a reload
            value = value.__wrapped__
        if isinstance(value, MethodType):
            value = value.__func__.__get__(owner)
        own.__dict__[name] = value
    return own


def _free(staged: Staged) -> None:
    """Give its memory back at once: modules and the loaders of their parameters hold each other."""
    for module in staged.modules.values():
        module._parameters.clear()
        module.__dict__.pop("cpu_linear", None)


def _exchange(live: dict[str, nn.Module], staged: dict[str, Any]) -> None:
    """Let two sets of modules compute with each other's weights."""
    done: set[Tensor] = set()  # an output layer may share the embedding's
    for name, module in live.items():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter not in done:
                other = staged[name]._parameters[parameter_name]
                parameter.data, other.data = other.data, parameter.data
                done.add(parameter)
        if hasattr(module, "cpu_linear"):
            mine = module.cpu_linear
            module.cpu_linear, staged[name].cpu_linear = staged[name].cpu_linear, mine


def _proof(module: Any) -> str:
    """A hash of what a packed layer makes of fixed inputs, and of where other parameters are."""
    digest = hashlib.sha256()
    for _, parameter in module.named_parameters(recurse=False):
        digest.update(f"{parameter.data_ptr()} {tuple(parameter.shape)}".encode())
    if hasattr(module, "cpu_linear"):
        width = _input_width(module)
        inputs = torch.linspace(-1, 1, _PROOF_ROWS * width, dtype=module.weight.dtype)
        outputs = module.cpu_linear(inputs.view(_PROOF_ROWS, width), module.weight, None)
        digest.update(memoryview(_bytes(outputs)))
    return digest.hexdigest()


def _checksums(modules: dict[str, nn.Module]) -> Slices:
    """SHA-256 of every parameter of these modules, as they compute."""
    checksums: Checksums = {}
    for prefix, module in modules.items():
        for name, blocks in _weights(prefix, module):
            digest = hashlib.sha256()
            for block in blocks:
                digest.update(memoryview(_bytes(block)))
                yield
            checksums[name] = digest.hexdigest()
    return checksums


def _finish(slices: Slices) -> Checksums:
    """Do all the work at once."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            checksums: Checksums = end.value
            return checksums


def _weights(prefix: str, module: nn.Module) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """A module's own parameters in blocks of rows, those packed away included.

    An embedding that is also the output layer has both: the weight and a packed copy of it.
    """
    for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
        if parameter.numel():
            yield name, iter(torch.split(parameter, _HASHED_ROWS))
        if name.endswith("weight") and hasattr(module, "cpu_linear"):
            yield f"{name}.packed", _read_back(module)


def _read_back(module: Any) -> Iterator[Tensor]:
    """The weight of a packed linear layer, (inputs, outputs), some rows at a time."""
    identity = torch.eye(_input_width(module), dtype=module.weight.dtype)  # (inputs, inputs)
    for rows in torch.split(identity, _ROWS):
        yield module.cpu_linear(rows, module.weight, None)


def _input_width(module: Any) -> int:
    for name in ("input_size_per_partition", "embedding_dim"):
        if hasattr(module, name):
            return int(getattr(module, name))
    raise TypeError(f"vLLM packed a {type(module).__name__}, which this file cannot read back")


def _bytes(value: Tensor) -> Any:
    """The values of a tensor as a numpy array of bytes."""
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
