"""Every function and test that docs/implementation-details.md names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \|.*\| `([\w/]+\.py):(\w+)` \| `(\w+\.py)::(\w+)` \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "implementation-details.md").read_text())


def names_in(path: Path) -> set[str]:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, definitions)}


def test_the_details_are_numbered_from_one_without_a_gap() -> None:
    text = (ROOT / "docs" / "implementation-details.md").read_text()
    lines = re.findall(r"^\| \d+ \|", text, re.MULTILINE)
    assert len(lines) > 40
    assert [int(row[0]) for row in ROWS] == list(range(1, len(lines) + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_details_function_and_test_exist(row: tuple[str, ...]) -> None:
    _, module, function, test_file, test = row
    assert function in names_in(ROOT / module)
    assert test in names_in(ROOT / "tests" / "learning" / test_file)
