"""Which feedback made a version: the list of its ids, the root in its card, proofs of one id.

The list lies beside the version as `feedback.ids`, one id a line, sorted; the card holds its Merkle
root, and the card is signed, so the list cannot be changed. It outlives the weights, and the
records that it names: an id is a keyed hash that says nothing of anybody. An answer to a labeling
task is named by the task. Knows files and hashes; knows no Redis.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import merkle
from core.errors import CorruptVersion, NotFound
from core.records import Card, Record

FILE = "feedback.ids"


class Inclusion(Record):
    """Proof that a version learned from a piece of feedback; core/merkle.py's `verify` checks it.

    `index` counts from 0, `siblings` (hex) are the nearest first, and `root` is in the card, which
    `signature` (Ed25519, base64) covers.
    """

    version: str
    feedback_id: str
    index: int
    count: int
    siblings: tuple[str, ...]
    root: str
    signature: str


def card_data(trained_on: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a card's `data` for feedback ids and the kind of each."""
    return {
        "feedback_count": len(trained_on),
        "feedback_root": root_of(trained_on),
        "feedback_kinds": dict(sorted(Counter(trained_on.values()).items())),
    }


def root_of(ids: Iterable[str]) -> str:
    """The Merkle root over the sorted ids, hex."""
    return merkle.root(_leaves(ordered(ids))).hex()


def ordered(ids: Iterable[str]) -> list[str]:
    """Each id once, in the order of the tree."""
    return sorted(set(ids))


def as_text(ids: Iterable[str]) -> str:
    """The content of the file."""
    return "".join(f"{feedback_id}\n" for feedback_id in ordered(ids))


def read_ids(folder: Path, card: Card) -> list[str]:
    """The ids that a version learned from, proven by its card.

    Raises NotFound when the list is not where this process can read it, or the version has none,
    and CorruptVersion when it is not the list of the card.
    """
    expected = card.data.get("feedback_root")
    if expected is None:
        raise NotFound(f"{card.version} names no feedback in its card")
    try:
        ids = (folder / FILE).read_text().split()
    except OSError:
        raise NotFound(
            f"the list of what {card.version} learned from is not on this machine"
        ) from None
    if root_of(ids) != expected or len(ids) != card.data.get("feedback_count"):
        raise CorruptVersion(f"{card.version}: {FILE} is not the list that its card names.")
    return ids


def inclusion(card: Card, ids: Sequence[str], feedback_id: str) -> Inclusion:
    """Prove that `feedback_id` is one of the ids. Raises NotFound when it is not."""
    index = bisect_left(ids, feedback_id)
    if index == len(ids) or ids[index] != feedback_id:
        raise NotFound(f"{card.version} did not learn from this feedback")
    siblings = merkle.proof(_leaves(ids), index)
    return Inclusion(
        version=card.version,
        feedback_id=feedback_id,
        index=index,
        count=len(ids),
        siblings=tuple(sibling.hex() for sibling in siblings),
        root=str(card.data["feedback_root"]),
        signature=card.signature,
    )


def is_proven(said: Inclusion) -> bool:
    """Whether a proof holds for the root that it names."""
    return merkle.verify(
        said.feedback_id.encode(),
        index=said.index,
        count=said.count,
        siblings=[bytes.fromhex(sibling) for sibling in said.siblings],
        root=bytes.fromhex(said.root),
    )


def _leaves(ids: Iterable[str]) -> list[bytes]:
    return [feedback_id.encode() for feedback_id in ids]
