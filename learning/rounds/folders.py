"""Where learning keeps things under the state folder. Pure paths; nothing is made here.

- `runs/RUN/sources.json`: which runs' outputs this run builds on;
- `runs/RUN/STAGE/`: stage.json, progress.json, checkpoint, log, lock, out/;
- `policies/VERSION/`: a model folder with its card.json; `reward_models/rmNNNN/` likewise;
- `anchors/VERSION/`: what supervised fine-tuning made beside that version, for PPO to start from;
- `learner/`: the socket of the engine that a stage starts.
"""

from dataclasses import dataclass
from pathlib import Path

from core.records import ALL_STAGES


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one installation."""

    state_dir: Path
    """Absolute, because stages are other processes."""

    @classmethod
    def of(cls, state_dir: Path) -> "Folders":
        """From the setting."""
        return cls(state_dir.resolve())

    @property
    def policies(self) -> Path:
        return self.state_dir / "policies"

    @property
    def reward_models(self) -> Path:
        return self.state_dir / "reward_models"

    @property
    def engine_socket(self) -> Path:
        """Short, because the kernel allows a socket's path 107 bytes. One stage runs at a time."""
        return self.state_dir / "learner" / "engine.sock"

    def policy(self, version: str) -> Path:
        return self.policies / version

    def anchor(self, version: str) -> Path:
        return self.state_dir / "anchors" / version

    def run(self, run_id: str) -> Path:
        return self.state_dir / "runs" / run_id

    def stage(self, run_id: str, stage: str) -> Path:
        return self.run(run_id) / stage

    def out(self, run_id: str, stage: str) -> Path:
        """What a stage made; it is there when the stage is done, and never half."""
        return self.stage(run_id, stage) / "out"

    def log(self, run_id: str, stage: str) -> Path:
        return self.stage(run_id, stage) / "log"

    def logs(self, run_id: str) -> list[tuple[str, Path]]:
        """The logs that a run has so far, as (stage, path) in the order of the stages."""
        found = [(stage, self.log(run_id, stage)) for stage in ALL_STAGES]
        return [(stage, path) for stage, path in found if path.is_file()]
