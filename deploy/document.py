"""The table of settings in the README, made from the code so that it cannot fall behind.

python -m deploy.document        rewrites the table between its two marks in README.md
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from core.hyperparameters import PAPER
from core.settings import PREFIX, Settings

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


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


def main() -> None:
    """Rewrite the table in the README."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{settings_table()}\n{END}{after}")


if __name__ == "__main__":
    main()
