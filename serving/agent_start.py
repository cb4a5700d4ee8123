"""What has to hold before an engine's agent lives: a name, a folder of its own, a free port.

Each failure is one line that says what to do. Knows files and addresses; knows no engine.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.canary import SECOND_ENGINE
from core.engine.address import check_free, read_listen
from core.errors import StartError
from core.settings import Settings


def replica_name(settings: Settings, *, number: int) -> str:
    """The name that the settings give, or `engine-0` and so on. Raises StartError."""
    name = settings.engine.name or f"engine-{number}"
    if name == SECOND_ENGINE:
        raise StartError(
            f"{SECOND_ENGINE} is the engine that `up` runs for a canary: choose another name with "
            "INSTRUCTLOOP_ENGINE__NAME"
        )
    return name


@contextmanager
def prepared(settings: Settings, name: str) -> Iterator[Path]:
    """The folder of sockets, for as long as no other agent of the name may use it.

    Raises StartError when one does, or when the engine's port is taken.
    """
    folder = settings.state_dir.resolve() / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (settings.state_dir / "logs").mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(
                f"another engine called {name} runs from {settings.state_dir}: give this one a "
                "name with INSTRUCTLOOP_ENGINE__NAME, or another --state-dir"
            ) from None
        if settings.engine.listen is not None:
            check_free(read_listen(settings.engine.listen))
        yield folder
