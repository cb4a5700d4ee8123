"""Which layout of records and folders this release reads: one number, kept with the data.

It is in Redis (`keys.schema()`) and in the state folder (`schema`), and is looked at whenever a
process starts. It grows only when a release writes what the one before cannot read; that release
then reads the old layout, too, or says here how to come from it. A release meets data of a later
one after a downgrade: it refuses, because it would misread or spoil them.
"""

import os
import secrets
from pathlib import Path

from core.errors import StartError

SCHEMA = 1
FILE = "schema"
_DATA = ("secrets", "policies", "runs")
"""What a folder in use has: without a mark it is of the first release, or out of a backup of it."""


def check_folder(state_dir: Path) -> None:
    """Mark a new state folder with this release's schema. Raises StartError for another one's."""
    path = state_dir / FILE
    if path.exists():
        check(path.read_text().strip(), f"the state folder {state_dir}")
        return
    if any((state_dir / name).exists() for name in _DATA):
        check("1", f"the state folder {state_dir}")
    _mark(path)


def check(said: str, where: str) -> None:
    """Raise StartError unless `said` is the schema that this release reads; `where` it stands."""
    if not (said.isascii() and said.isdigit()):
        raise StartError(
            f"{where} does not say which schema it holds: restore it from a backup, or use another"
        )
    if int(said) > SCHEMA:
        raise StartError(
            f"{where} holds schema {said}, a later release's; this one reads {SCHEMA}: run the "
            "release that wrote it, or restore a backup from before the upgrade"
        )
    if int(said) < SCHEMA:
        raise StartError(
            f"{where} holds schema {said}, an earlier release's; this one reads {SCHEMA}: run the "
            "releases between the two first, one after the other, which bring it forward"
        )


def _mark(path: Path) -> None:
    """Durably, so that no later release meets a folder of this one without it."""
    beside = path.with_name(f".{FILE}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with beside.open("w") as file:
            file.write(f"{SCHEMA}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError as error:
        raise StartError(
            f"cannot write to {path.parent} ({error.strerror}): choose another --state-dir"
        ) from None
