"""What a stage is given to work with, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from core.keyring import Keyring
from core.records import Outcome, Run
from core.redis_client import Redis
from core.settings import Settings
from learning.rounds.folders import Folders


@dataclass(frozen=True, slots=True)
class Work:
    """The collaborators of whoever runs stages: a Celery worker, or a command."""

    redis: Redis
    redis_url: str
    settings: Settings
    keyring: Keyring
    folders: Folders
    stopping: Callable[[], bool]
    """Whether this process was told to end: a stage then checkpoints and leaves."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an attempt at a stage ended.

    `waiting` and `again` are taken up later and are no failure: votes are missing, or somebody
    asked the stage to leave. `impossible` is a failure that no second attempt can change.
    """

    kind: Literal[
        "done", "waiting", "again", "failed", "impossible", "not_enough_data", "cancelled"
    ]
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    """Of the run: the gate's stage says it."""
    run: Run | None = None
    """The run's record, where the stage has changed it."""
