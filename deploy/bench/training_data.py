"""Preferences to train on in a measurement: pieces of real text, ranked by a taste.

Prompts and answers are pieces of the pretraining mix (learning/training/pretraining_text.py) of
exactly so many tokens; the taste for short words (deploy/simulate/judges.py) ranks them, which a
model can learn and which goes on for unseen pieces. Knows no torch: token ids come from the
tokeniser's file.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from deploy.simulate.judges import plainness
from learning.training.pretraining_text import mix_texts, sequences

TOKENS = 56
"""Of each prompt, and of each answer."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A prompt, its answers as token ids, and the rank of each, 1 for the best."""

    prompt: list[int]
    answers: list[list[int]]
    ranks: list[int]

    def pairs(self) -> Iterator[tuple[list[int], list[int]]]:
        """(better, worse) of all comparisons, prompt and answer together."""
        order = sorted(zip(self.ranks, self.answers, strict=True))
        for place, (rank, better) in enumerate(order):
            for other, worse in order[place + 1 :]:
                if rank < other:
                    yield self.prompt + better, self.prompt + worse

    def document(self) -> dict[str, Any]:
        """For a child process."""
        return asdict(self)


def ranked_pieces(
    pieces: Sequence[Sequence[int]], scores: Sequence[float], *, answers: int
) -> list[Ranked]:
    """Groups of a prompt and so many answers from pieces in their order; a rest is dropped.

    Equal scores get equal ranks.
    """
    groups = []
    size = answers + 1
    for at in range(0, len(pieces) - size + 1, size):
        likes = scores[at + 1 : at + size]
        better = sorted(set(likes), reverse=True)
        groups.append(
            Ranked(
                prompt=list(pieces[at]),
                answers=[list(piece) for piece in pieces[at + 1 : at + size]],
                ranks=[better.index(like) + 1 for like in likes],
            )
        )
    return groups


@dataclass(frozen=True, slots=True)
class Preferences:
    """Training groups by their number of answers, and others of which nothing is trained."""

    train: dict[int, list[Ranked]]
    heldout: list[Ranked]

    def document(self) -> dict[str, Any]:
        """For a child process."""
        return {
            "train": {
                str(k): [group.document() for group in groups] for k, groups in self.train.items()
            },
            "heldout": [group.document() for group in self.heldout],
        }


def preferences(
    model: Path, *, prompts: dict[int, int], heldout: int, seed: int = 0
) -> Preferences:
    """`prompts` groups of each number of answers, and `heldout` groups of 9 from other text."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    pieces = sequences(
        mix_texts(),
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        length=TOKENS,
    )
    random.Random(seed).shuffle(pieces)
    given = iter(pieces)

    def groups(count: int, answers: int) -> list[Ranked]:
        taken = [next(given) for _ in range(count * (answers + 1))]
        likes = [plainness("", tokenizer.decode(piece)) for piece in taken]
        return ranked_pieces(taken, likes, answers=answers)

    unseen = groups(heldout, 9)
    return Preferences({k: groups(count, k) for k, count in prompts.items()}, unseen)
