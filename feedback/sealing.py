"""Raw words on their way to the filter: sealed into a record, and opened again by ingest.

Names of texts in, one string out that fits into JSON. Knows no filter and no Redis.
"""

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from core.keyring import Keyring, day_of


def seal_texts(texts: Mapping[str, Any], keyring: Keyring) -> str:
    """Texts by name, as a record keeps them until the filter has cleared them."""
    return base64.b64encode(keyring.seal(orjson.dumps(texts))).decode()


def open_texts(sealed: str, keyring: Keyring) -> dict[str, Any]:
    """The opposite. Raises SealBroken, ValueError."""
    texts: dict[str, Any] = orjson.loads(keyring.open(base64.b64decode(sealed)))
    return texts


def texts_day(sealed: str) -> int:
    """The day whose key opens it."""
    return day_of(base64.b64decode(sealed[:8]))
