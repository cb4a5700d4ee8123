"""Merkle trees as RFC 6962 (Certificate Transparency) defines them, over SHA-256.

Leaves and nodes are hashed with different first bytes, so that no node passes for a leaf. Pure:
bytes in, bytes out. What the leaves are is core/lineage.py's to say.
"""

import hashlib
from collections.abc import Sequence

_LEAF, _NODE = b"\x00", b"\x01"


def root(leaves: Sequence[bytes]) -> bytes:
    """The tree's hash (RFC 6962, section 2.1); of no leaves it is that of the empty string."""
    return _root([_leaf(leaf) for leaf in leaves])


def proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The siblings on the way from a leaf to the root, the nearest first (section 2.1.1).

    Raises IndexError when there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    return _path([_leaf(leaf) for leaf in leaves], index)


def verify(leaf: bytes, *, index: int, count: int, siblings: Sequence[bytes], root: bytes) -> bool:
    """Whether `leaf` is the one at `index` of the `count` leaves below `root`.

    Needs nothing but these (RFC 9162, section 2.1.3.2).
    """
    if not 0 <= index < count:
        return False
    place, last, known = index, count - 1, _leaf(leaf)
    for sibling in siblings:
        if last == 0:
            return False
        if place % 2 or place == last:
            known = _node(sibling, known)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            known = _node(known, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and known == root


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(_LEAF + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _root(hashes: list[bytes]) -> bytes:
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    cut = _cut(len(hashes))
    return _node(_root(hashes[:cut]), _root(hashes[cut:]))


def _path(hashes: list[bytes], index: int) -> list[bytes]:
    if len(hashes) == 1:
        return []
    cut = _cut(len(hashes))
    if index < cut:
        return [*_path(hashes[:cut], index), _root(hashes[cut:])]
    return [*_path(hashes[cut:], index - cut), _root(hashes[:cut])]


def _cut(count: int) -> int:
    """The largest power of two below `count`, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1
