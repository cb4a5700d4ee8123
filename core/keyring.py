"""Secrets of one installation: files of mode 0600 in one folder, made once.

- `mac.key` authenticates completion ids; `tag.key` (a copy of the first `mac.key`) marks prompts
  and, like `user.key`, which hashes users and raters, never changes;
- `signing.key` (Ed25519) signs cards, `signing-*.pub` check what keys before it signed;
- `inbox/DAY.key` seals one day's raw text and is destroyed when nothing sealed with it is left, so
  that old append-only files become unreadable;
- `redis.password`, `engine-data.token` keep others out of Redis and engines; `webhook.secret`
  signs webhooks.

`mac.key` and `engine-data.token` have successors, `mac-MILLISECONDS.key`: everybody believes one
from when it is there, and uses it from the moment that its name says. By then every process has
read the folder again, so none meets one that it does not know. The old one is good until its file
is deleted.

The folder is STATE_DIR/secrets, or the one that all machines of an installation share.
Knows files and ciphers; knows nothing of Redis or requests.
"""

import base64
import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.errors import InstructLoopError, StartError

log = logging.getLogger(__name__)
IDS, ENGINE_DATA = "mac.key", "engine-data.token"
"""Secrets that have successors."""
LEAD_SECONDS = 300.0
"""From when a successor is believed until it is used: far longer than it takes all processes to
read it, folders on a network to show it and engines to be told, and than clocks differ."""
REREAD_SECONDS = 30.0
PATIENCE_SECONDS = 0.5
"""How long who serves waits for a folder that is slow; then goes on with what was read before."""
KEY_BYTES = 32
NONCE_BYTES = 12
DAY_SECONDS = 86_400


class SealBroken(InstructLoopError):
    """Sealed text cannot be opened: its key was destroyed, or it was altered."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """The secrets of one installation."""

    folder: Path

    def key(self, name: str) -> bytes:
        """A named key of 32 bytes, made at its first use. Safe against two makers at once."""
        return read_or_make(_path(self.folder, f"{name}.key"), lambda: os.urandom(KEY_BYTES))

    def token(self, name: str) -> str:
        """A named random string for a password or a bearer token, made at its first use."""
        return read_or_make(self.folder / name, _random_token).decode()

    def accepted(self, name: str) -> tuple[bytes, ...]:
        """A secret and its successors, the newest first: all are good."""
        return tuple(content for _, content in _line(_path(self.folder, name)))

    def files(self, name: str) -> list[str]:
        """The names of the files of `accepted`, the oldest first."""
        path = self.folder / name
        _line(path)  # the first one, if there was none
        return sorted(_files(path), key=lambda file: _begins(path, file))

    def present(self, name: str) -> bytes:
        """The newest of `accepted` whose moment has come; the first before that."""
        line, now = _line(_path(self.folder, name)), time.time()
        return next((content for begins, content in line if begins <= now), line[-1][1])

    def succeed(self, name: str, *, now: float, lead: float = LEAD_SECONDS) -> float:
        """Make a successor; returns when it will be used, in seconds since 1970."""
        path = self.folder / name
        _line(path)  # the first one, if there was none
        self._kept_tag_key()
        begins = int((now + lead) * 1000)
        _write_private(path.with_name(f"{path.stem}-{begins}{path.suffix}"), _fresh(path))
        _lines.pop(path, None)
        return begins / 1000

    def tag_key(self) -> bytes:
        """What marks prompts, so that marks stay equal when ids get another key.

        A copy of the first of these, because with that they were marked before; where the copy
        cannot be made (a full disk, a folder that is only read) the first itself.
        """
        try:
            return self._kept_tag_key()
        except OSError as error:
            path = _path(self.folder, "tag.key")
            if path.exists():
                raise
            log.warning("prompts are marked with the first key of ids, without a copy: %s", error)
            return _cache.setdefault(path, self.accepted(IDS)[-1])

    def _kept_tag_key(self) -> bytes:
        """Raises OSError where it cannot be made."""
        return read_or_make(_path(self.folder, "tag.key"), lambda: self.accepted(IDS)[-1])

    def hashed(self, tenant: str, kind: str, name: str) -> str:
        """A user or rater as a keyed hash; equal names of two tenants do not match."""
        text = "\x00".join((kind, tenant, name)).encode()
        return hmac.new(self.key("user"), text, hashlib.sha256).hexdigest()[:32]

    def seal(self, text: bytes, *, now: float | None = None) -> bytes:
        """Encrypt raw text with the key of the day: `day(4) | nonce(12) | ciphertext`."""
        day = day_at(time.time() if now is None else now)
        header = day.to_bytes(4, "big")
        nonce = os.urandom(NONCE_BYTES)
        return header + nonce + AESGCM(self._day_key(day)).encrypt(nonce, text, header)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt what `seal` gave. Raises SealBroken."""
        header, nonce, body = sealed[:4], sealed[4:16], sealed[16:]
        path = self._day_path(day_of(sealed))
        if not path.exists():
            raise SealBroken("the key of that day was destroyed: the text cannot be read any more")
        try:
            return AESGCM(path.read_bytes()).decrypt(nonce, body, header)
        except InvalidTag:
            raise SealBroken("sealed text was altered or belongs to another installation") from None

    def sealed_days(self) -> set[int]:
        """The days whose keys are there: what was sealed on them can be opened."""
        return {int(path.stem) for path in (self.folder / "inbox").glob("[0-9]*.key")}

    def destroy_days(self, days: Iterable[int]) -> None:
        """Delete the keys of days; what they sealed is gone everywhere at once."""
        for day in days:
            self._day_path(day).unlink(missing_ok=True)
            _cache.pop(self._day_path(day), None)

    def sign(self, message: bytes) -> str:
        """An Ed25519 signature, base64."""
        private = Ed25519PrivateKey.from_private_bytes(self.key("signing"))
        return base64.b64encode(private.sign(message)).decode()

    def public_key(self) -> "Verifier":
        """What checks `sign`: by the key as it is on the disk now, and by those before it.

        A process that signs may know only the one before.
        """
        path = self.folder / "signing.key"
        private = path.read_bytes() if path.exists() else self.key("signing")
        now = Ed25519PrivateKey.from_private_bytes(private).public_key()
        before = [path.read_bytes() for path in sorted(self.folder.glob("signing-*.pub"))]
        return Verifier((now, *map(Ed25519PublicKey.from_public_bytes, before)))

    def rotate_signing(self, *, now: float) -> None:
        """Sign with a new key from now on; what was signed before stays good.

        Other processes sign with the old one until they start again, which is as good. `now` in
        seconds names the old one's file.
        """
        public = Ed25519PrivateKey.from_private_bytes(self.key("signing")).public_key()
        _write_private(self.folder / f"signing-{int(now * 1000)}.pub", public.public_bytes_raw())
        _cache[self.folder / "signing.key"] = os.urandom(KEY_BYTES)
        _write_private(self.folder / "signing.key", _cache[self.folder / "signing.key"])

    def _day_path(self, day: int) -> Path:
        return _path(self.folder, "inbox", f"{day}.key")

    def _day_key(self, day: int) -> bytes:
        path = self._day_path(day)
        if path not in _cache:  # a new day: no process remembers the keys of others
            for other in [known for known in _cache if known.parent == path.parent]:
                _cache.pop(other, None)
        return read_or_make(path, lambda: os.urandom(KEY_BYTES))


@dataclass(frozen=True, slots=True)
class Verifier:
    """Public keys, any of which may have signed; the newest first."""

    keys: tuple[Ed25519PublicKey, ...]

    def verify(self, signature: bytes, message: bytes) -> None:
        """Raises InvalidSignature unless one of them made the signature."""
        for key in self.keys:
            try:
                key.verify(signature, message)
            except InvalidSignature:
                continue
            return
        raise InvalidSignature


def day_at(moment: float) -> int:
    """The day, counted from 1970 in UTC, of a moment in seconds."""
    return int(moment // DAY_SECONDS)


def day_of(sealed: bytes) -> int:
    """The day whose key sealed this."""
    return int.from_bytes(sealed[:4], "big")


_cache: dict[Path, bytes] = {}
_Line = tuple[tuple[float, bytes], ...]
"""When each begins, in seconds since 1970, and what it is; the newest first."""
_lines: dict[Path, tuple[float, _Line]] = {}
_looks: dict[Path, threading.Thread] = {}


@lru_cache(maxsize=256)
def _path(folder: Path, *names: str) -> Path:
    """Of a secret; to put it together takes longer than to look the secret up."""
    return folder.joinpath(*names)


def read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of a secret file; made with mode 0600 by whoever is first."""
    if path in _cache:
        return _cache[path]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = _write_beside(path, make())
        try:
            os.link(beside, path)  # fails when another process was first: its secret counts
        except FileExistsError:
            pass
        finally:
            beside.unlink()
    _refuse_open_mode(path)
    _cache[path] = path.read_bytes()
    return _cache[path]


def _line(path: Path) -> _Line:
    """A secret and its successors, as of at most REREAD_SECONDS ago, if the folder can be read.

    Whoever serves knows them already, so a disk on a network that hangs stops nobody.
    """
    read_at, known = _lines.get(path, (-math.inf, ()))
    if time.monotonic() - read_at < REREAD_SECONDS:
        return known
    if not known:
        return _look(path, known)
    _lines[path] = (time.monotonic(), known)
    if path not in _looks or not _looks[path].is_alive():
        _looks[path] = threading.Thread(target=_look, args=(path, known), daemon=True)
        _looks[path].start()
    _looks[path].join(PATIENCE_SECONDS)
    return _lines.get(path, (0.0, known))[1]


def _look(path: Path, known: _Line) -> _Line:
    """Read it again; what cannot be read is as it was."""
    try:
        found = _read_line(path)
    except (OSError, StartError) as error:
        if not known:
            raise
        log.warning("goes on with the secrets that it knows: %s", error)
        found = ()
    if not (found or known):
        found = ((0.0, read_or_make(path, lambda: _fresh(path))),)
    _lines[path] = (time.monotonic(), found or known)
    return found or known


def _read_line(path: Path) -> _Line:
    found = []
    for name in _files(path):
        with suppress(FileNotFoundError):  # deleted just now
            _refuse_open_mode(path.with_name(name))
            found.append((_begins(path, name), path.with_name(name).read_bytes()))
    return tuple(sorted(found, reverse=True))


def _files(path: Path) -> list[str]:
    """The names of a secret and its successors that are there."""
    form = re.compile(rf"{re.escape(path.stem)}(-[0-9]{{1,15}})?{re.escape(path.suffix)}")
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    return [name for name in names if form.fullmatch(name)]


def _begins(path: Path, name: str) -> float:
    """In seconds since 1970, as the name says: 0 for the first."""
    said = name.removeprefix(path.stem).removesuffix(path.suffix)
    return int(said.removeprefix("-") or 0) / 1000


def _fresh(path: Path) -> bytes:
    """A random secret of the kind that its name says."""
    return _random_token() if path.suffix == ".token" else os.urandom(KEY_BYTES)


def _write_private(path: Path, content: bytes) -> None:
    """A file that only its owner may read, whole or not at all."""
    _write_beside(path, content).replace(path)


def _write_beside(path: Path, content: bytes) -> Path:
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return beside


def _refuse_open_mode(path: Path) -> None:
    """Only its owner may read it; on a volume that a cluster gave to a group, the group, too."""
    of_a_group = path.parent.stat().st_mode & stat.S_ISGID
    if path.stat().st_mode & (0o007 if of_a_group else 0o077):
        raise StartError(f"{path} can be read by others: run  chmod 600 {path}")


def _random_token() -> bytes:
    return secrets.token_urlsafe(32).encode()
