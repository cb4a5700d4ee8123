"""How commands print tables: names are never cut, and a pipe gets whole lines.

Knows no content.
"""

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 240  # what is not a terminal has no width


def listing(*columns: str, whole: int = 1) -> Table:
    """An empty table whose first `whole` columns, names to copy, are never cut or wrapped."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number < whole, overflow="fold")
    return table


def show(table: Table) -> None:
    """Print it as wide as the terminal; wide enough for anything where there is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS)
    console.print(table)
