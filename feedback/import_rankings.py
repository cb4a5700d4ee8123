"""Pairs of one ranking, put together again: ties and all, as it was before it was exported.

An export writes the pairs of a ranking one after the other, each with the ranks of its two answers
and with how many pairs and answers there are. Where all of them are there, they are one ranking
again; where some are missing, changed or elsewhere in the file, each pair counts for itself. Pure;
import_data.py takes in what comes out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from feedback.imported import Item
from feedback.schemas import MAX_OUTPUTS

_MOST_PAIRS = MAX_OUTPUTS * (MAX_OUTPUTS - 1) // 2


@dataclass(frozen=True, slots=True)
class Understood:
    """What one or more lines say, or why one says nothing."""

    number: int
    """Of the first line."""
    item: Item | ValueError
    lines: int = 1


def whole_rankings(understood: Iterable[Understood]) -> Iterator[Understood]:
    """The same in the same order, with pairs that follow each other as the ranking they were."""
    pairs: list[Understood] = []
    for one in understood:
        if pairs and (_ranking_of(one) != _ranking_of(pairs[0]) or len(pairs) == _MOST_PAIRS):
            yield from _together(pairs)
            pairs = []
        if _ranking_of(one) is None:
            yield one
        else:
            pairs.append(one)
    yield from _together(pairs)


def _ranking_of(one: Understood) -> tuple[object, ...] | None:
    item = one.item
    if isinstance(item, ValueError) or item.part is None or not item.known_as:
        return None
    return item.known_as, item.rater, item.user, item.part.answers, item.part.pairs


def _together(pairs: list[Understood]) -> list[Understood]:
    items = [one.item for one in pairs if isinstance(one.item, Item)]
    whole = _ranking(items) if items else None
    return [Understood(pairs[0].number, whole, len(pairs))] if whole else pairs


def _ranking(items: list[Item]) -> Item | None:
    """The ranking of these pairs, if they are all of it and agree."""
    ranks: dict[str, int] = {}
    ended: dict[str, str] = {}
    for item in items:
        assert item.part is not None
        for text, rank, reason in zip(
            item.answers, item.part.ranks, item.finish_reasons, strict=True
        ):
            if ranks.setdefault(text, rank) != rank:
                return None
            ended[text] = reason
    first = items[0]
    assert first.part is not None
    if any(item.prompt != first.prompt for item in items) or len(ranks) != first.part.answers:
        return None
    if len({item.answers for item in items}) != first.part.pairs or len(ranks) > MAX_OUTPUTS:
        return None
    answers = tuple(sorted(ranks, key=lambda text: (ranks[text], text)))
    ties = [
        tuple(at for at, text in enumerate(answers) if ranks[text] == rank)
        for rank in sorted(set(ranks.values()))
    ]
    return replace(
        first,
        answers=answers,
        ranking=tuple(ties),
        finish_reasons=tuple(ended[text] for text in answers),
    )
