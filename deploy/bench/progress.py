"""A progress bar of a measurement, on a terminal only, that does not disturb what it shows.

It is drawn between loads, never beside one: a thread that draws would take time from the clients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Tick = Callable[[str], None]
"""Says what comes next, once everything before it is done."""


@contextmanager
def progress(steps: int) -> Iterator[Tick]:
    """A bar over so many steps; without a terminal, nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:34s}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=steps)
        done = -1

        def tick(what: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done, description=what, refresh=True)

        yield tick
        bar.update(task, completed=steps, refresh=True)
