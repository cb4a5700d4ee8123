"""Tastes that text shows: judges for demonstrations and simulated raters.

A judge is a function `(prompt, completion) -> float`; higher is better, and its scale is its own.
An answer without a word loses to every other. Knows no service, no model and no training.
deploy/simulate/raters.py turns a judge into people; deploy/demo/scoring.py compares two policies by
it.
"""

import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from core.errors import StartError

Score = Callable[[str, str], float]
EMPTY = -1000.0
"""The score of an answer without a word, under each built-in judge."""
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*|\d+")
_TRIAL = ("How was your day?", "It was a good day, thank you.")


@dataclass(frozen=True, slots=True)
class Judge:
    """A taste, and the setting in which a small model can show it."""

    name: str
    description: str
    score: Score
    form: Literal["open", "short"]
    """The form of prompts (deploy/simulate/prompt_sets.py) that leaves room for this taste."""
    max_tokens: int
    """The cap on answers; tastes of form need one at which most answers end."""


def sentiment(prompt: str, completion: str) -> float:  # noqa: ARG001
    """VADER's compound score of the answer, -1 (negative) to 1 (positive)."""
    if not words(completion):
        return EMPTY
    return float(_vader().polarity_scores(completion)["compound"])


def brevity(prompt: str, completion: str) -> float:  # noqa: ARG001
    """Fewer words are better: minus the number of words."""
    return -float(len(words(completion))) or EMPTY


def plainness(prompt: str, completion: str) -> float:  # noqa: ARG001
    """Short words are better: minus the mean number of letters of a word."""
    found = words(completion)
    return -sum(map(len, found)) / len(found) if found else EMPTY


def address(prompt: str, completion: str) -> float:  # noqa: ARG001
    """Speaking to the reader is better: the share of words that are a form of `you`."""
    found = [word.lower().replace("\u2019", "'") for word in words(completion)]
    if not found:
        return EMPTY
    return sum(word.split("'")[0] in _YOU for word in found) / len(found)


_YOU = frozenset({"you", "your", "yours", "yourself", "yourselves"})

BUILT_IN = (
    Judge("sentiment", "likes a positive tone (VADER's compound score)", sentiment, "open", 40),
    Judge("brevity", "likes few words; an empty answer loses", brevity, "short", 40),
    Judge("plain", "likes short, common words (letters per word)", plainness, "open", 40),
    Judge("address", "likes to be spoken to (share of `you` and `your`)", address, "open", 40),
)


def words(text: str) -> list[str]:
    """The words and numbers of a text."""
    return _WORD.findall(text)


def load_judge(spec: str) -> Judge:
    """A built-in judge by name, or `FILE.py:FUNCTION` of one's own.

    The function takes (prompt: str, completion: str) and returns a finite number. It is tried
    once. Raises StartError, in one line, for whatever stands in the way.
    """
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), name)
    for judge in BUILT_IN:
        if judge.name == spec:
            return judge
    names = ", ".join(judge.name for judge in BUILT_IN)
    raise StartError(f"there is no judge {spec!r}: name one of {names}, or FILE.py:FUNCTION")


def _from_file(path: Path, name: str) -> Judge:
    where = f"{path}:{name}"
    if not path.is_file():
        raise StartError(f"there is no file {path} to take the judge {name!r} from")
    function = getattr(_import(path), name, None)
    if not callable(function):
        raise StartError(f"{path} has no function {name!r}: a judge is given as FILE.py:FUNCTION")
    try:
        inspect.signature(function).bind(*_TRIAL)
    except (TypeError, ValueError):
        raise StartError(f"the judge {where} must take (prompt, completion)") from None

    def score(prompt: str, completion: str) -> float:
        return _call(function, where, prompt, completion)

    score(*_TRIAL)
    described = (inspect.getdoc(function) or "").partition("\n")[0]
    return Judge(name, described or f"the function {name} of {path.name}", score, "open", 40)


def _import(path: Path) -> ModuleType:
    name = f"instructloop_judge_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StartError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling in the file look themselves up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the edge: the file is somebody else's code
        raise StartError(f"the judge's file {path} fails: {_brief(error)}") from error
    return module


def _call(function: Callable[..., Any], where: str, prompt: str, completion: str) -> float:
    try:
        value = function(prompt, completion)
    except Exception as error:  # the edge: the function is somebody else's code
        raise StartError(f"the judge {where} fails: {_brief(error)}") from error
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise StartError(f"the judge {where} must return a finite number, not {value!r:.60}")
    return number


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


@cache
def _vader() -> Any:  # the library has no types
    # imported here: `instructloop --help` should not wait for a lexicon
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
