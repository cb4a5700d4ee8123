"""A short PPO run on a tiny model: `python -m tests.learning.many_policy FOLDER`, also by torchrun.

`changes.json` in the folder has settings.

Its engine samples with the first weights for ever: else one token that another rounding tips over
would make two runs incomparable. Leaves `midway`, a checkpoint after two of three iterations.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from learning.policy import train as train_policy
from learning.policy.checkpoints import best_checkpoint, take_back
from learning.policy.run import PolicyRun, export, load_checkpoint, save_checkpoint
from learning.policy.updates import text_loss
from learning.training.distributed import is_first, num_processes, processes
from learning.training.models import load_policy
from learning.training.rollouts import Prompt
from learning.training.stage import Stage
from tests.learning.packing_cases import tiny_llama
from tests.learning.ppo_loop import SamplingEngine, make_run, make_setup


class SteadyEngine(SamplingEngine):
    """Looks at the weights it is given, and does not take them."""

    def load_model(self, model, *, version: str) -> None:
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        given = model.state_dict()
        assert {name: tensor.shape for name, tensor in given.items()} == shapes
        assert not all(torch.equal(given[name], t) for name, t in self.model.state_dict().items())
        self.loads.append(version)

    def load_folder(self, folder: Path, *, version: str) -> None:
        assert (folder / "model.safetensors").exists()
        self.loads.append(version)


def play(folder: Path, *, resume: Path | None = None, **changes) -> PolicyRun:
    """All iterations, or those after a checkpoint, the choice of weights and the export."""
    prompts = [Prompt(f"v{i}", f"v{i}", "[]", (7 + i, 40, 12)) for i in range(3)]
    setup = make_setup(prompts_per_iteration=5, token_budget=30, checkpoints_kept=2, **changes)
    setup = replace(setup, validation=prompts)
    models = {name: folder.parent / "models" / name for name in ("policy", "reward")}
    run = make_run(models, setup)
    engine = SteadyEngine(tiny_llama().to(torch.bfloat16)) if is_first() else None
    if engine is not None:
        engine.model.load_state_dict(load_policy(models["policy"]).state_dict())
    if resume is not None:
        assert load_checkpoint(run, resume)
    stage = Stage(folder=folder, inputs={})
    while run.iteration < setup.settings.iterations:
        train_policy._iterate(stage, setup, run, engine)
        if run.iteration == 2:
            save_checkpoint(run, folder / "midway")
    take_back(run, folder / "kept", best_checkpoint(setup, run, engine, folder / "kept"))
    changed = export(run, folder / "model", parent=models["policy"])
    after = text_loss(run.models.policy, setup.retention)
    if is_first():
        told = {"history": run.history, "changed": changed, "text_loss": after}
        told |= {"loads": engine.loads, "ptx_coef": run.ptx_coef, "processes": num_processes()}
        (folder / "told.json").write_text(json.dumps(told))
    return run


if __name__ == "__main__":
    with processes():
        named = Path(sys.argv[1])
        play(named, **json.loads((named / "changes.json").read_text()))
