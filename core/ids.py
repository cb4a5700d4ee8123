"""Completion ids that carry their own proof, so that feedback needs no lookup.

An id is `PREFIX-TOKEN`; the prefix (`chatcmpl`, `cmpl`, ...) is the API's, the token is ours:
base64url of `version(1) key_id(4) milliseconds(6) random(6) choices(1) flags(1) prompt_tag(8)
mac(12)`. The MAC covers all of it and the tenant. So a reply can be rated the moment it arrives:
whether the id is ours, of this tenant, stored, and how many choices it has, is in the id, and
answers of one prompt share its tag. Knows no Redis.
"""

import base64
import binascii
import hashlib
import hmac
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

from core.errors import NotFound

_FORMAT = struct.Struct(">B4s6s6sBB8s")
_MAC_BYTES = 12
_VERSION = 1
_STORED = 1
TOKEN_CHARS = 52


def token_of(completion_id: str) -> str:
    """The token of an id: what records are kept under, whatever the API's prefix."""
    return completion_id[-TOKEN_CHARS:]


@dataclass(frozen=True, slots=True)
class CompletionToken:
    """What a completion id says."""

    key_id: str
    """Eight hex digits: the API key that asked."""
    milliseconds: int
    choices: int
    stored: bool
    prompt_tag: str
    """Sixteen hex digits, equal for equal prompts of one tenant."""


def prompt_tag(secret: bytes, tenant: str, prompt: bytes) -> str:
    """The keyed tag of a prompt (its canonical bytes) within a tenant."""
    message = b"prompt\x00" + tenant.encode() + b"\x00" + prompt
    return hmac.new(secret, message, hashlib.sha256).hexdigest()[:16]


def new_token(
    secret: bytes, *, tenant: str, key_id: str, choices: int, stored: bool, tag: str
) -> str:
    """A fresh token; `choices` is n of the request (1..255)."""
    body = _FORMAT.pack(
        _VERSION,
        bytes.fromhex(key_id),
        int(time.time() * 1000).to_bytes(6, "big"),
        os.urandom(6),
        choices,
        _STORED if stored else 0,
        bytes.fromhex(tag),
    )
    return base64.urlsafe_b64encode(body + _mac(secret, tenant, body)).decode().rstrip("=")


def content_token(secret: bytes, *, tenant: str, key_id: str, seed: bytes, tag: str) -> str:
    """The token of an answer that came from elsewhere: the same each time for the same `seed`.

    `seed` is a hash of what it is, 12 bytes of it count; it stands in place of time and chance.
    """
    body = _FORMAT.pack(
        _VERSION, bytes.fromhex(key_id), seed[:6], seed[6:12], 1, _STORED, bytes.fromhex(tag)
    )
    return base64.urlsafe_b64encode(body + _mac(secret, tenant, body)).decode().rstrip("=")


def read_id(secrets: Iterable[bytes], tenant: str, completion_id: str) -> CompletionToken:
    """Check an id, which any of these may have authenticated, and say what it carries.

    Raises NotFound when it is not ours, altered, or another tenant's: the three look the same
    from outside.
    """
    token = token_of(completion_id)
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    body, mac = raw[: _FORMAT.size], raw[_FORMAT.size :]
    if len(raw) != _FORMAT.size + _MAC_BYTES or not any(
        hmac.compare_digest(mac, _mac(secret, tenant, body)) for secret in secrets
    ):
        raise NotFound(
            "no such completion: quote the id of a reply that this key's tenant received",
            param="completion_id",
        )
    _, key_id, millis, _, choices, flags, tag = _FORMAT.unpack(body)
    return CompletionToken(
        key_id=key_id.hex(),
        milliseconds=int.from_bytes(millis, "big"),
        choices=choices,
        stored=bool(flags & _STORED),
        prompt_tag=tag.hex(),
    )


def _mac(secret: bytes, tenant: str, body: bytes) -> bytes:
    return hmac.new(secret, tenant.encode() + b"\x00" + body, hashlib.sha256).digest()[:_MAC_BYTES]
