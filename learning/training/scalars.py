"""Figures of a training as TensorBoard's event files: `tensorboard --logdir STATE_DIR/runs`.

They lie in `RUN/STAGE/tensorboard`, with a folder below it for each part of a stage that counts its
steps anew. A part that is taken up again hides what an earlier process wrote of the steps from
there on. Every figure is on the disk before the next step. Numbers only, never a word of anybody.
Knows no training; learning/training/stage.py calls.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

FOLDER = "tensorboard"


@dataclass(slots=True)
class Scalars:
    """The event files of one process, each opened with the first figures of its part."""

    folder: Path
    _files: dict[str, Any] = field(default_factory=dict)

    def add(self, step: int, figures: Mapping[str, object], *, part: str = "") -> None:
        """Write the numbers among the figures of a step, counted from 1."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        if part not in self._files:
            self._files[part] = _opened(self.folder / part, step)
        file = self._files[part]
        for name, value in scalars(figures):
            summary = scalar(name, value)
            file.write_event(Event(wall_time=time(), step=step, summary=summary))
        file.flush()


def scalars(figures: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers among figures; what is one level down is named `outer/inner`."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


def _opened(folder: Path, first_step: int) -> Any:
    """A new event file. Its session start tells readers to drop later steps of older files."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(parents=True, exist_ok=True)
    # the library's own writer hands events to a thread, and a killed stage would lose the last
    file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
    start = SessionLog(status=SessionLog.START)
    file.write_event(Event(wall_time=time(), step=first_step, session_log=start))
    return file
