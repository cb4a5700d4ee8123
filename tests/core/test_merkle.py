"""Merkle trees: against hashes put together by hand, and by what must hold of every tree."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import merkle


def leaf(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


A, B, C, D, E = (leaf(name) for name in (b"a", b"b", b"c", b"d", b"e"))
BY_HAND = {
    0: bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    1: A,
    2: node(A, B),
    3: node(node(A, B), C),
    5: node(node(node(A, B), node(C, D)), E),
}
LEAVES = [b"a", b"b", b"c", b"d", b"e"]
trees = st.lists(st.binary(max_size=6), min_size=1, max_size=40, unique=True)


@pytest.mark.parametrize("count", BY_HAND)
def test_the_root_is_the_one_put_together_by_hand(count):
    assert merkle.root(LEAVES[:count]) == BY_HAND[count]


def test_the_published_root_of_the_certificate_transparency_test_tree():
    """The eight inputs, and their root, that implementations of RFC 6962 are tested with."""
    inputs = ["", "00", "10", "2021", "3031", "40414243"]
    inputs += ["5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    assert merkle.root([bytes.fromhex(text) for text in inputs]).hex() == (
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    )


def test_the_siblings_of_a_leaf_are_the_ones_found_by_hand():
    assert merkle.proof(LEAVES, 2) == [D, node(A, B), E]
    assert merkle.proof(LEAVES, 4) == [node(node(A, B), node(C, D))]
    assert merkle.proof([b"a"], 0) == []
    with pytest.raises(IndexError):
        merkle.proof(LEAVES, 5)


@given(trees, st.data())
def test_every_leaf_has_a_proof_and_no_other_leaf_or_place_has(leaves, data):
    root, count = merkle.root(leaves), len(leaves)
    index = data.draw(st.integers(0, count - 1))
    siblings = merkle.proof(leaves, index)

    def holds(leaf, index=index, siblings=siblings, root=root):
        return merkle.verify(leaf, index=index, count=count, siblings=siblings, root=root)

    assert holds(leaves[index])
    other = data.draw(st.binary(max_size=6).filter(lambda drawn: drawn != leaves[index]))
    assert not holds(other)
    elsewhere = data.draw(st.integers(-1, count).filter(lambda place: place != index))
    assert not holds(leaves[index], index=elsewhere)
    assert not holds(leaves[index], root=merkle.root([*leaves, b"one more"]))
    assert not holds(leaves[index], siblings=[*siblings, b"0" * 32])
    if siblings:
        assert not holds(leaves[index], siblings=siblings[:-1])


def test_a_node_does_not_pass_for_a_leaf():
    root = merkle.root([b"a", b"b", b"c"])
    forged = A + B  # what the left node was hashed from
    assert not merkle.verify(forged, index=0, count=2, siblings=[C], root=root)
