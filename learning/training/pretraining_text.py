"""Real text that is on every machine: for the pretraining term, and to measure retention on.

The pretraining mix comes from the reference topics of the Python language (`pydoc_data.topics`).
Retention is measured on another kind of English, far from it: the prose of the licences that come
with packages this project always installs, each paragraph once. So what the mix teaches does not
show there, and what is forgotten does. Who has text of the kind that their model was trained on
names it (`learning.pretraining_text`), and it takes the place of the mix. All are cut into
sequences of token ids, the same ones wherever the locked versions are installed. Knows no model;
learning/policy/train.py and learning/evaluation/evaluate.py read it.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow.parquet as parquet

from core.errors import InstructLoopError

Encode = Callable[[str], list[int]]

HELD_OUT_DISTRIBUTIONS = (
    "accelerate", "matplotlib", "numpy", "orjson", "pyarrow", "python-stdnum",
)  # fmt: skip
"""Their licences differ: Apache, fonts and PSF, GPL with an exception, MPL, a collection, LGPL."""
_LICENCE = re.compile(r"\.dist-info/.*(licen[cs]e|notice|copying)", re.IGNORECASE)
_NOT_PROSE = re.compile(r"://|::|[<>|{}=\\]|-{3}|\*{2}")
_WORD = re.compile(r"[(\"“‘']*[A-Za-z][A-Za-z'’-]*[.,;:!?)\"”’']*")
_FEWEST_WORDS = 25
_SHARE_OF_WORDS = 0.9
_OPENING = 60
"""Letters by which a paragraph is known again: licences repeat each other with other names."""


MOST_CHARACTERS = 32_000_000
"""Of a text of one's own; more would fill the memory, and no run of ours comes round to it."""
_AT_ONE_TIME = 1_000_000
_READERS = ("*.txt", "*.md", "*.jsonl", "*.parquet")


def mix_texts(own: str | Path | None = None) -> list[str]:
    """The texts of the pretraining mix, in a fixed order: those of a file or folder, or ours.

    One text is a `.txt` or `.md` file, the field `text` of a line of `.jsonl`, the column `text` of
    a row of `.parquet`; in a folder files go by name. Texts are joined, so that short ones count,
    too, and beyond 32 million characters nothing is read. Raises InstructLoopError without text.
    """
    if own is None:
        return [topics[name] for name in sorted(topics)]
    texts = [*_joined(_texts_in(Path(own)))]
    if not texts:
        raise InstructLoopError(
            f"learning.pretraining_text: no text in {own} (.txt and .md files, lines of .jsonl and "
            "rows of .parquet with a field `text`)"
        )
    return texts


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """The first `MOST_CHARACTERS` of all texts, a blank line between two, in pieces that a
    tokeniser takes at one time."""
    parts: list[str] = []
    size, room = 0, MOST_CHARACTERS
    for text in texts:
        parts.append(text[:room])
        size, room = size + len(parts[-1]), room - len(parts[-1])
        if size >= _AT_ONE_TIME or room == 0:
            yield "\n\n".join(parts)
            parts, size = [], 0
        if room == 0:
            return
    if any(parts):
        yield "\n\n".join(parts)


def _texts_in(own: Path) -> Iterator[str]:
    files = sorted(f for kind in _READERS for f in own.rglob(kind)) if own.is_dir() else [own]
    for file in files:
        try:
            yield from _texts_of(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InstructLoopError(
                f"learning.pretraining_text: {file} cannot be read ({type(error).__name__}): "
                "UTF-8 text, or `text` in each line of .jsonl and row of .parquet"
            ) from error


def _texts_of(file: Path) -> Iterator[str]:
    if file.suffix == ".parquet":
        for batch in parquet.ParquetFile(file).iter_batches(columns=["text"]):
            yield from (str(text) for text in batch.column("text").to_pylist() if text)
    elif file.suffix == ".jsonl":
        with file.open() as lines:
            found = (json.loads(line)["text"] for line in lines if line.strip())
            yield from (str(text) for text in found if text)
    else:
        with file.open() as text:
            while part := text.read(_AT_ONE_TIME):  # all of a file may not fit into the memory
                yield part


def held_out_texts() -> list[str]:
    """Prose that is never in the mix, one text for each distribution, in a fixed order."""
    seen: set[str] = set()
    texts = []
    for name in HELD_OUT_DISTRIBUTIONS:
        new = []
        for paragraph in _paragraphs(name):
            opening = re.sub(r"[^a-z]", "", paragraph.lower())[:_OPENING]
            if is_prose(paragraph) and opening not in seen:
                seen.add(opening)
                new.append(paragraph)
        texts.append("\n\n".join(new))
    return texts


def _paragraphs(name: str) -> Iterator[str]:
    """Every paragraph of a distribution's licences on one line, files by name."""
    files = [file for file in distribution(name).files or [] if _LICENCE.search(str(file))]
    for file in sorted(files, key=str):
        text = file.read_binary().decode(errors="replace")
        yield from (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is sentences: long enough, and almost all of it plain words."""
    pieces = paragraph.split()
    if len(pieces) < _FEWEST_WORDS or _NOT_PROSE.search(paragraph):
        return False
    words = sum(_WORD.fullmatch(piece) is not None for piece in pieces)
    return words >= _SHARE_OF_WORDS * len(pieces)


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
