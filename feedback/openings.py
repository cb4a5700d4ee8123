"""How the openings of prompts are remembered: a few bytes for each, for the length of the window.

Openings share 4,096 sorted sets, which Redis packs; a digest is cut to 80 bits of the 116 that its
set does not say. The score is the moment of the prompt times 4,096, plus a mark of its token, by
which an erasure finds what was whose. Pure.
"""

import zlib

from core import keys

_BUCKET_CHARS = 3
_MEMBER = slice(4, 24)
_MARKS = 4096


def all_buckets() -> list[str]:
    """The keys of all of the sets."""
    return [keys.openings(f"{number:03x}") for number in range(16**_BUCKET_CHARS)]


def openings_key(digest: str) -> str:
    """The set that an opening is in, by its keyed digest (hex)."""
    return keys.openings(digest[:_BUCKET_CHARS])


def opening_member(digest: str) -> bytes:
    """What stands for the opening there."""
    return bytes.fromhex(digest[_MEMBER])


def owner_mark(token: str) -> int:
    """Twelve bits of a token."""
    return zlib.crc32(token.encode()) % _MARKS


def opening_score(token: str, milliseconds: int) -> int:
    """The score of an opening whose first prompt is this."""
    return milliseconds * _MARKS + owner_mark(token)
