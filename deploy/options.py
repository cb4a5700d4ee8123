"""The two options that every sub-command takes, and how options become settings."""

import getpass
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from core.errors import InstructLoopError
from core.settings import PREFIX, Settings, load_settings

StateDir = Annotated[Path | None, typer.Option(help="Folder of keys, logs, policies, Redis data.")]
RedisUrl = Annotated[str | None, typer.Option(help="A Redis to use instead of our own.")]


def settings_from(state_dir: Path | None, redis_url: str | None, **more: Any) -> Settings:
    """Settings with the options of a command line on top. Raises StartError."""
    chosen = {"state_dir": state_dir, "redis_url": redis_url, **more}
    return load_settings(**{name: value for name, value in chosen.items() if value is not None})


def override(name: str, value: object) -> None:
    """An option given on the command line overrides the nested setting, here and in children."""
    if value is not None:
        os.environ[PREFIX + name] = str(value)


def caller() -> str:
    """Who runs this command, for the audit log."""
    return f"{getpass.getuser()} (command line)"


def read_admin_key(settings: Settings) -> str:
    """The admin key of the state folder. Raises InstructLoopError."""
    path = settings.state_dir / "admin.key"
    try:
        return path.read_text().strip()
    except OSError:
        raise InstructLoopError(
            f"no key in {path}: start the service first, or give --api-key"
        ) from None
