"""Tables in the documents that are made from the code, so that they cannot fall behind.

python -m deploy.document        rewrites each table between its two marks
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from core import keys
from core.hyperparameters import PAPER
from core.settings import PREFIX, Settings
from deploy.monitoring.reference import labels_table, metrics_table

ROOT = Path(__file__).parent.parent


def settings_table() -> str:
    """All settings as a Markdown table, one row each, in the order of the code."""
    rows = ["| variable | default | what it does |", "|---|---|---|"]
    for name, default, says in _rows(Settings):
        rows.append(f"| `{PREFIX}{name}` | {default} | {says} |")
    return "\n".join(rows)


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}", _default(f"{prefix}{name}", field), _says(field)


def _default(path: str, field: FieldInfo) -> str:
    default = "unset" if field.default is None else f"`{field.default}`"
    paper = _paper_value(path.lower().split("__"))
    return default if paper is None else f"{default}, `paper`: `{paper}`"


def _paper_value(path: list[str]) -> object:
    if path[0] != "learning":
        return None
    value: object = PAPER
    for part in path[1:]:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _says(field: FieldInfo) -> str:
    return re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")


def keys_table() -> str:
    """All Redis keys as a Markdown table, from the docstrings of core/keys.py."""
    rows = ["| key | type, life, who writes and reads it |", "|---|---|"]
    for name, function in inspect.getmembers(keys, inspect.isfunction):
        arguments = {
            argument: argument.upper() for argument in inspect.signature(function).parameters
        }
        says = " ".join((function.__doc__ or "").split())
        rows.append(f"| `{function(**arguments)}` ({name}) | {says} |")
    return "\n".join(rows)


def documents() -> dict[Path, str]:
    """Each document with a table of ours, as it should be."""
    made = {
        path: _with_table(path.read_text(), mark, table)
        for path, mark, table in (
            (ROOT / "README.md", "settings", settings_table()),
            (ROOT / "docs" / "settings.md", "settings", settings_table()),
            (ROOT / "docs" / "architecture.md", "keys", keys_table()),
            (ROOT / "docs" / "metrics.md", "metrics", metrics_table()),
        )
    }
    path = ROOT / "docs" / "metrics.md"
    return made | {path: _with_table(made[path], "labels", labels_table())}


def _with_table(text: str, mark: str, table: str) -> str:
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    """Rewrite the tables."""
    for path, text in documents().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
