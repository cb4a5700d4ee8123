"""Whether a version is what its card says, and came from where it says: for people who ask.

Signature, weights, the list of what it learned from, and all of it up the chain of parents to the
first version. What an agent proves before it serves is core/versions.py. Knows files and cards.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from core.errors import CorruptVersion, NotFound
from core.keyring import Verifier
from core.lineage import read_ids
from core.records import Card
from core.versions import verify_signature, weights_sha256

ROOT = "v0000"


def prove(
    version: str,
    *,
    cards: Mapping[str, Card],
    policies: Path,
    gone: Collection[str],
    public_key: Verifier,
) -> list[str]:
    """What was proven of a registered version, a line each.

    `cards` are those of the registry, `policies` the folder of versions, `gone` the versions whose
    weights were removed. Raises CorruptVersion with what is wrong, NotFound for an unknown one.
    """
    if version not in cards:
        raise NotFound(f"no policy {version}: `instructloop policies list` shows them")
    card = cards[version]
    verify_signature(card, public_key)
    proven = ["its card carries our signature"]
    proven += [_file(card, policies), _weights(card, policies, gone), _feedback(card, policies)]
    chain = _chain(card, cards, public_key)
    proven.append(f"its parents are signed, too: {' from '.join(chain)}" if card.parent else "")
    return [line for line in proven if line]


def _file(card: Card, policies: Path) -> str:
    path = policies / card.version / "card.json"
    if not path.exists():
        return ""
    if path.read_bytes() and Card.model_validate_json(path.read_bytes()) != card:
        raise CorruptVersion(f"{card.version}: its card.json is not the card of the registry.")
    return "its card.json is the card of the registry"


def _weights(card: Card, policies: Path, gone: Collection[str]) -> str:
    if card.version in gone or not card.weights_sha256:
        return "its weights are not here any more, by the registry" if card.weights_sha256 else ""
    folder = policies / card.version
    if not folder.is_dir():
        raise CorruptVersion(f"{card.version}: its folder is missing.")
    if weights_sha256(folder) != card.weights_sha256:
        raise CorruptVersion(f"{card.version}: the files are not those that its card names.")
    return f"its files have the hash of its card, {card.weights_sha256[:16]}…"


def _feedback(card: Card, policies: Path) -> str:
    if "feedback_root" not in card.data:
        return ""
    try:
        ids = read_ids(policies / card.version, card)
    except NotFound as error:
        raise CorruptVersion(f"{card.version}: {error.message}.") from None
    root = card.data["feedback_root"]
    return (
        f"the {len(ids)} pieces of feedback it learned from have the root of its card, {root[:16]}…"
    )


def _chain(card: Card, cards: Mapping[str, Card], public_key: Verifier) -> list[str]:
    """The versions from this one to the first. Raises CorruptVersion where it breaks."""
    chain = [card.version]
    while card.parent is not None:
        if card.parent not in cards:
            raise CorruptVersion(f"{card.version}: its parent {card.parent} is not registered.")
        if card.parent >= card.version:
            raise CorruptVersion(f"{card.version}: its parent {card.parent} is not older.")
        card = cards[card.parent]
        verify_signature(card, public_key)
        chain.append(card.version)
    if card.version != ROOT:
        raise CorruptVersion(f"{card.version} has no parent and is not {ROOT}.")
    return chain
