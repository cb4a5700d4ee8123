"""A version's folder on disk: hashing it, and proving that it can be served.

Runs outside the engine, because a failed load leaves an engine without weights. What is in a
checkpoint is core/engine/checkpoint.py's to say; here are the card's hash and signature. Knows no
Redis and no engine.
"""

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature

from core import lineage
from core.engine.checkpoint import check_finite, check_same_layout, read_layout
from core.errors import CorruptVersion
from core.keyring import Verifier
from core.records import Card
from core.registry import card_bytes

BESIDE = frozenset({"card.json", lineage.FILE})
"""Files of a version that have a proof of their own: a signature, a Merkle root."""


def weights_sha256(folder: Path) -> str:
    """One hash over names and contents of all files of a version but its card and its lineage."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name not in BESIDE):
        digest.update(path.name.encode() + b"\x00")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def verify(folder: Path, card: Card, *, like: Path | None, public_key: Verifier) -> None:
    """Prove that `folder` is what `card` says and can replace the version in `like`.

    Raises CorruptVersion with the reason.
    """
    verify_signature(card, public_key)
    if not folder.is_dir():
        raise CorruptVersion(f"{card.version}: its folder is missing.")
    candidate = read_layout(folder)
    if like is not None:
        check_same_layout(candidate, read_layout(like))
    check_finite(candidate)
    if weights_sha256(folder) != card.weights_sha256:
        raise CorruptVersion(f"{card.version}: the files are not those that its card names.")


def verify_signature(card: Card, public_key: Verifier) -> None:
    """Raises CorruptVersion when the card was not signed by this installation."""
    try:
        public_key.verify(base64.b64decode(card.signature), card_bytes(card))
    except (InvalidSignature, ValueError):
        raise CorruptVersion(f"{card.version}: its card's signature does not match.") from None
