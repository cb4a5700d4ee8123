"""Real text that is on every machine: for the pretraining term, and to measure retention on.

The pretraining mix comes from the reference topics of the Python language (`pydoc_data.topics`);
retention is measured on docstrings of standard-library modules, which are never in the mix. Both
are cut into sequences of token ids, the same ones on every machine with this Python version.
Knows no model; learning/train_policy.py and learning/evaluate.py read it.
"""

import ast
import importlib.util
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

Encode = Callable[[str], list[int]]

HELD_OUT_MODULES = (
    "argparse", "asyncio.events", "collections", "concurrent.futures._base", "configparser",
    "contextlib", "csv", "dataclasses", "datetime", "decimal", "difflib", "doctest",
    "email.message", "enum", "fractions", "ftplib", "functools", "gettext", "heapq",
    "http.client", "imaplib", "inspect", "ipaddress", "json", "logging", "logging.handlers",
    "mailbox", "multiprocessing.managers", "optparse", "os", "pathlib", "pickle", "plistlib",
    "random", "shutil", "smtplib", "socket", "socketserver", "statistics", "string", "subprocess",
    "tarfile", "tempfile", "textwrap", "threading", "tokenize", "traceback", "types", "typing",
    "unittest.case", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip
_SHORTEST_DOCSTRING = 200


def mix_texts() -> list[str]:
    """The texts of the pretraining mix, in a fixed order."""
    return [topics[name] for name in sorted(topics)]


def held_out_texts() -> list[str]:
    """Docstrings that are never in the mix, in a fixed order, each at least 200 characters."""
    texts: list[str] = []
    for module in HELD_OUT_MODULES:
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        texts += _docstrings(tree)
    return texts


def _docstrings(tree: ast.Module) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return [text for text in found if text and len(text) >= _SHORTEST_DOCSTRING]


def sequences(texts: Sequence[str], encode: Encode, *, length: int) -> list[list[int]]:
    """Every text cut into pieces of exactly `length` tokens; a shorter rest is dropped.

    `encode` turns text into ids without special tokens. A piece never spans two texts.
    """
    pieces: list[list[int]] = []
    for text in texts:
        ids = encode(text)
        pieces += [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    return pieces


def draw(pieces: Sequence[list[int]], *, count: int, seed: int) -> list[list[int]]:
    """`count` different sequences (fewer if there are fewer), chosen by the seed alone."""
    order = random.Random(seed)
    return order.sample(list(pieces), min(count, len(pieces)))
