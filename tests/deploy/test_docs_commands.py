"""Commands and codes that the documents name are those that there are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from deploy.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("deploy/**/*.md"))
CODE = re.compile(r"```.*?\n(.*?)```|`([^`\n]+)`", re.DOTALL)
CALLED = re.compile(r"(?:^|[\s(/$;|])instructloop ((?:[a-z][\w-]*|--?[a-z]).*)")
_STOPS = ("|", "&&", ";", "#", ">", "<", "…")
_OTHERS = ("docker ", "helm ", "kubectl ", "SETUSER ", "user ", "image:", "User=", "Description=")


def commands_in(document: Path) -> Iterator[str]:
    """What follows `instructloop` wherever a document shows code."""
    for block, span in CODE.findall(document.read_text()):
        for line in (block or span).replace("\\\n", " ").splitlines():
            if not any(other in line for other in _OTHERS) and (found := CALLED.search(line)):
                yield found[1]


def fault(said: str, root: Any) -> str | None:
    """What of a command there is not: a word, or an option of where the words lead."""
    command, known = root, set(options(root))
    words = said.split()
    while words and hasattr(command, "commands"):
        word = words.pop(0).strip(",.")
        following = command.commands.get(word.partition("|")[0])
        if following is None:
            return word
        command, known = following, known | options(following)
    for word in words:
        if word.startswith(_STOPS):
            break
        option = re.match(r"\[?(--[a-z][a-z-]+)", word)
        if option and option[1] not in known:
            return option[1]
    return None


def options(command: Any) -> set[str]:
    named = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
    return {"--help", *named}


def test_every_command_that_a_document_shows_is_one_that_there_is():
    root = typer.main.get_command(app)
    shown = [(path, said) for path in DOCUMENTS for said in commands_in(path)]
    assert len(shown) > 60
    wrong = [
        f"{path.relative_to(ROOT)}: instructloop {said}: {missing}"
        for path, said in shown
        if (missing := fault(said, root))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ("labeling held", "held"),
        ("nonsense", "nonsense"),
        ("keys create --name N --scoop S", "--scoop"),
        ("keys create --name N --scope S", None),
        ("up --port 8010", None),
    ],
)
def test_the_test_itself_finds_what_is_not_there(said, missing):
    assert fault(said, typer.main.get_command(app)) == missing


def test_every_code_of_an_error_is_explained():
    rooms = ("core", "serving", "feedback")
    sources = [path for room in rooms for path in ROOT.glob(f"{room}/**/*.py")]
    codes = {code for path in sources for code in re.findall(r"\bcode=\"(\w+)\"", path.read_text())}
    assert len(codes) > 10
    explained = (ROOT / "docs" / "errors.md").read_text()
    assert {code for code in codes if f"`{code}`" not in explained} == set()
