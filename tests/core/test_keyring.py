"""The signing key: made once, changed without a moment in which something true is refused."""

import base64
import stat
import subprocess
import sys

import pytest
from cryptography.exceptions import InvalidSignature

from core.keyring import Keyring


def check(keyring: Keyring, message: bytes, signature: str) -> None:
    keyring.public_key().verify(base64.b64decode(signature), message)


def test_what_an_old_key_signed_stays_good_and_a_forgery_does_not(keyring):
    before = keyring.sign(b"a card")
    keyring.rotate_signing(now=1_000.0)
    between = keyring.sign(b"a card")
    keyring.rotate_signing(now=2_000.0)
    after = keyring.sign(b"a card")
    assert len({before, between, after}) == 3
    for signature in (before, between, after):
        check(keyring, b"a card", signature)
        with pytest.raises(InvalidSignature):
            check(keyring, b"another card", signature)
    old = sorted(keyring.folder.glob("signing-*.pub"))
    assert [path.name for path in old] == ["signing-1000000.pub", "signing-2000000.pub"]
    old[0].unlink()  # a key that was stolen
    with pytest.raises(InvalidSignature):
        check(keyring, b"a card", before)
    mode = (keyring.folder / "signing.key").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_processes_that_know_the_old_key_and_the_new_one_believe_each_other(keyring):
    keyring.sign(b"this process remembers its key")
    code = (
        "import sys; from pathlib import Path; from core.keyring import Keyring;"
        "ring = Keyring(Path(sys.argv[1])); ring.rotate_signing(now=5.0);"
        "print(ring.sign(b'by another process'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(keyring.folder)],
        capture_output=True,
        check=True,
        text=True,
    )
    check(keyring, b"by another process", done.stdout)
    check(Keyring(keyring.folder), b"by this one", keyring.sign(b"by this one"))
