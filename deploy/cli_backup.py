"""`instructloop backup` and `restore`: options in, a line that says what to know out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from core.errors import InstructLoopError
from core.redis_client import Redis
from core.schema import SCHEMA
from deploy.backup_files import REDIS, SETTINGS, Manifest, Told
from deploy.cli_loop import with_redis
from deploy.options import RedisUrl, StateDir, settings_from

if TYPE_CHECKING:
    from deploy.backup import Begin


def backup(
    out: Annotated[Path, typer.Option(help="A new folder, or a new file that ends in .tar.")],
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Copy a running installation: Redis at one moment, versions, archive, keys, settings.

    Whoever has the backup can sign as this installation: keep it as its secrets.

    Example: instructloop backup --out backups/monday.tar
    """
    from deploy.backup import make_backup

    settings = settings_from(state_dir, redis_url)

    async def act(redis: Redis) -> Manifest:
        with _bars() as begin:
            return await make_backup(redis, settings, out, begin)

    manifest = with_redis(settings, act)
    print(f"{out}: {_size(manifest)}")
    for name, count in manifest.unreadable.items():
        if count:
            print(f"not readable after a restore: {count} {name} (the keys of days stay here)")
    for name in manifest.left_out:
        print(f"not in it: {name}")


def restore(
    source: Annotated[Path, typer.Option("--in", help="What `backup` wrote.")],
    erasures: Annotated[
        Path | None, typer.Option(help="The newest erasures.log: who was erased stays erased.")
    ] = None,
    audit: Annotated[Path | None, typer.Option(help="The newest audit.jsonl.")] = None,
    without_erasures: Annotated[
        bool, typer.Option("--without-erasures", help="There is no such log.")
    ] = False,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make a new state folder of a backup; every file is proven before anything is there.

    A Redis that is not ours gets the file redis/appendonly.aof by whoever runs it.

    Example: instructloop restore --in monday.tar --erasures erasures.log --state-dir new
    """
    from deploy.backup import AUDIT, ERASURES
    from deploy.backup import restore as restore_from

    settings = settings_from(state_dir, redis_url)
    given = {ERASURES: erasures, AUDIT: audit}
    for name, path in given.items():
        if path is not None and (path.name != name or not path.is_file()):
            raise InstructLoopError(f"{path} is not a file that is called {name}")
    with _bars() as begin:
        manifest = restore_from(
            source,
            settings.state_dir,
            [path for path in given.values() if path is not None],
            begin,
            without_erasures=without_erasures,
        )
    print(f"{settings.state_dir}: {_size(manifest)}, of {manifest.made_at}")
    if manifest.schema_version and int(manifest.schema_version) < SCHEMA:
        print("of an earlier release: `up`, or `instructloop migrate`, brings Redis forward")
    if any(line.path == SETTINGS for line in manifest.files):
        print(f"settings: copy {settings.state_dir / SETTINGS} to where you start the service")
    if settings.redis_url:
        path = settings.state_dir / "redis" / "appendonly.aof"
        print(f"Redis: give {path} ({REDIS}) to yours before it starts")


def _size(manifest: Manifest) -> str:
    size = sum(line.bytes for line in manifest.files)
    return f"{len(manifest.files)} files, {size / 2**20:.1f} MiB"


@contextmanager
def _bars() -> Iterator["Begin"]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:

        def begin(what: str, total: int) -> Told:
            task = bar.add_task(what, total=total or None)
            return lambda done: bar.update(task, advance=done)

        yield begin
