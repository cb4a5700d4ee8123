"""`instructloop reproduce`: the paper in miniature, from the base model to one table.

The order is that of deploy/reproduce/plan.py; this file holds the folder, shows progress, and
writes the report when all steps are done. The folder is the state: the same command goes on where
an earlier one stopped, and other options need another folder.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from core.errors import StartError
from core.settings import Settings
from deploy.base_model import base_model_folder
from deploy.reproduce.plan import Machine, Step, Wanted, seconds_left, steps_of
from deploy.reproduce.steps import OnStep, only_one, run_steps, stopping
from learning.rounds.child import Progress as Said
from learning.training.stage import write_json

Say = Callable[[str], None]
_SEED_BYTES = 4 << 30
"""What one seed leaves in the folder with the default model, and needs while PPO runs."""


def reproduce(wanted: Wanted, settings: Settings, *, out: Path, say: Say) -> Path:
    """Run what is not done yet and write the report; returns its path.

    Raises StartError for a folder of other options or without room; InstructLoopError when a step
    fails or the process is told to stop.
    """
    out = out.resolve()
    with only_one(out):
        _keep_options(out, wanted, settings.model)
        _require_room(out, wanted)
        model = base_model_folder(settings, say=say, alive=lambda: True).resolve()
        steps = steps_of(wanted, root=out, machine=_machine(out, model, settings))
        with stopping() as asked, _bar() as show:
            run_steps(steps, out, asked=asked, say=say, show=show)
        return write_report(wanted, out)


def print_plan(wanted: Wanted, *, out: Path, say: Say) -> None:
    """Say what would run, what is done already, and how long the rest may take."""
    out = out.resolve()
    machine = Machine(out / "models" / "smollm2", socket_of(out))
    steps = steps_of(wanted, root=out, machine=machine)
    for step in steps:
        done = "done" if step.is_done(out) else f"~{step.seconds / 60:.1f} min"
        say(f"{done:>9}  {step.name}: {step.does}")
    minutes = seconds_left(steps, out) / 60
    say(
        f"about {minutes:.0f} minutes left on two quiet cores with the default model; "
        f"up to {_SEED_BYTES * len(wanted.seeds) >> 30} GiB in {out}"
    )


def write_report(wanted: Wanted, out: Path) -> Path:
    """`report.json`, `report.md` and the plots, from the folders of finished steps."""
    # matplotlib and the statistics are not needed before
    from deploy.reproduce.markdown import markdown
    from deploy.reproduce.plots import draw_all
    from deploy.reproduce.scoring import read_seed
    from deploy.reproduce.table import document

    report = document(wanted, [read_seed(out, wanted, seed) for seed in wanted.seeds])
    write_json(out / "report.json", report)
    path = out / "report.md"
    path.write_text(markdown(report, draw_all(report, out)), encoding="utf-8")
    return path


def socket_of(out: Path) -> Path:
    """The engine's socket: its path has to be short, whatever the folder's is."""
    name = hashlib.sha256(str(out).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"instructloop-reproduce-{name}" / "engine.sock"


def _machine(out: Path, model: Path, settings: Settings) -> Machine:
    learning = settings.learning
    return Machine(
        model=model,
        socket=socket_of(out),
        device=learning.device,
        rollout_engine=learning.rollout_engine,
        threads=learning.threads,
    )


def _keep_options(out: Path, wanted: Wanted, model: str) -> None:
    """Write down what was asked for; raises StartError where the folder has something else."""
    path = out / "wanted.json"
    asked = asdict(wanted) | {"model": model, "numbers": asdict(wanted.numbers)}
    ours: dict[str, Any] = json.loads(json.dumps(asked))
    if not path.exists():
        write_json(path, ours)
        return
    theirs = {"numbers": ours["numbers"], **json.loads(path.read_text())}
    other = sorted(name for name in ours if ours[name] != theirs.get(name))
    if other:
        said = ", ".join(f"{name} {theirs.get(name)!r}" for name in other)
        raise StartError(f"{out} holds a reproduction with {said}: choose another --out")


def _require_room(out: Path, wanted: Wanted) -> None:
    begun = sum((out / f"seed-{seed}").exists() for seed in wanted.seeds)
    needed = _SEED_BYTES * max(1, len(wanted.seeds) - begun)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise StartError(
            f"{out} has {free >> 30} GiB free, and {needed >> 30} GiB are needed: free some, or "
            "choose another --out"
        )


@contextmanager
def _bar() -> Iterator[OnStep]:
    """A progress bar of the step that runs, where there is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def show(step: Step, said: Said) -> None:
            if step.name not in tasks:
                for task in tasks.values():
                    progress.update(task, visible=False)
                tasks[step.name] = progress.add_task("", total=1.0)
            shown = f"{step.name}: {said.message[:50]}"
            progress.update(tasks[step.name], completed=said.fraction, description=shown)

        yield show
