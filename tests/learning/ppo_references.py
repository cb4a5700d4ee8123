"""Other people's PPO, loaded without the machinery around it, to check ours against.

TRL's trainer needs `datasets` and OpenRLHF's losses need DeepSpeed, so the functions wanted are
taken from their source files alone.
"""

import ast
import importlib.metadata
import importlib.util
import sys
import types
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


def _installed(distribution: str, relative: str) -> Path:
    return Path(str(importlib.metadata.distribution(distribution).locate_file(relative)))


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def trl_core() -> ModuleType:
    """`trl/core.py` of TRL 0.11.4."""
    return _load("reference_trl_core", _installed("trl", "trl/core.py"))


def trl_method(name: str, *, core: ModuleType) -> Any:
    """One method of TRL's PPOTrainer as a plain function of (self, ...)."""
    tree = ast.parse(_installed("trl", "trl/trainer/ppo_trainer.py").read_text())
    found = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert len(found) == 1
    found[0].decorator_list = []
    scope: dict[str, Any] = {"torch": torch, **vars(core)}
    code = compile(ast.Module(body=[found[0]], type_ignores=[]), name, "exec")
    exec(code, scope)
    return scope[name]


def trl_trainer(*, core: ModuleType, **config: Any) -> SimpleNamespace:
    """What TRL's methods expect of `self`, with the given configuration."""
    trainer = SimpleNamespace(
        config=SimpleNamespace(kl_penalty="kl", ratio_threshold=1e9, whiten_rewards=False, **config)
    )
    trainer._kl_penalty = lambda p, q: trl_method("_kl_penalty", core=core)(trainer, p, q)
    return trainer


def openrlhf_losses() -> ModuleType:
    """`openrlhf/models/loss.py` of OpenRLHF 0.9.10, with its package and DeepSpeed stubbed."""
    package = types.ModuleType("reference_openrlhf")
    package.__path__ = [str(_installed("openrlhf", "openrlhf/models"))]
    sys.modules["reference_openrlhf"] = package
    sys.modules["deepspeed"] = types.ModuleType("deepspeed")
    try:
        return _load("reference_openrlhf.loss", _installed("openrlhf", "openrlhf/models/loss.py"))
    finally:  # transformers asks the interpreter whether DeepSpeed is there
        del sys.modules["deepspeed"]


def trl_adaptive_controller(kl_coef: float, *, target: float, horizon: int) -> Any:
    """TRL's AdaptiveKLController, without the rest of its file."""
    import numpy as np

    tree = ast.parse(_installed("trl", "trl/trainer/utils.py").read_text())
    found = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "AdaptiveKLController"
    ]
    assert len(found) == 1
    scope: dict[str, Any] = {"np": np}
    code = compile(ast.Module(body=[found[0]], type_ignores=[]), "controller", "exec")
    exec(code, scope)
    return scope["AdaptiveKLController"](kl_coef, target, horizon)
