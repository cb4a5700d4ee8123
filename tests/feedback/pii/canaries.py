# ruff: noqa: E501 - data, a row a line
"""Personal data of shapes that the rules must cover without exception, each unlike all others."""

import random
import string
from collections.abc import Callable

from tests.feedback.pii.labelled import card, iban, ssn

_LETTERS = string.ascii_letters + string.digits


def _token(draw: random.Random, count: int) -> str:
    return (
        "".join(draw.choices(_LETTERS, k=count - 2))
        + draw.choice("0123456789")
        + draw.choice("QXZ")
    )


def _email(draw: random.Random) -> str:
    return f"{''.join(draw.choices(string.ascii_lowercase, k=9))}.{draw.randint(10, 99)}@mail{draw.randint(1, 99)}.example.org"


def _phone(draw: random.Random) -> str:
    d = "".join(draw.choices("0123456789", k=10))
    return draw.choice(
        [
            f"+44 20 {d[:4]} {d[4:8]}",
            f"+1 {draw.randint(201, 989)} {d[:3]} {d[3:7]}",
            f"+49 30 {d[:8]}",
            f"({draw.randint(201, 989)}) {d[:3]}-{d[3:7]}",
        ]
    )


def _secret(draw: random.Random) -> str:
    return draw.choice([
        "sk-" + _token(draw, 40), "ghp_" + _token(draw, 36), "AKIA" + "".join(draw.choices(string.ascii_uppercase, k=15)) + "7", "xoxb-" + _token(draw, 30),
        "glpat-" + _token(draw, 20), "hf_" + _token(draw, 34), "AIza" + _token(draw, 35), "npm_" + _token(draw, 36), "eyJhbGciOiJIUzI1NiJ9." + _token(draw, 30) + "." + _token(draw, 43),
        "SG." + _token(draw, 22) + "." + _token(draw, 43),
    ])  # fmt: skip


def _key_value(draw: random.Random) -> str:
    return f"{draw.choice(['DB_PASSWORD', 'api_key', 'client_secret'])}={_token(draw, 14)}"


def _user_info(draw: random.Random) -> str:
    return f"postgres://shop:{_token(draw, 12)}@db.example.org/shop"


def _ipv6(draw: random.Random) -> str:
    return "2a02:" + ":".join(f"{draw.randint(4096, 65535):x}" for _ in range(7))


SHAPES: dict[str, Callable[[random.Random], str]] = {
    "email": _email, "card": card, "iban": iban, "ssn": ssn, "phone": _phone, "secret": _secret,
    "key-value": _key_value, "user-info": _user_info, "ipv6": _ipv6,
}  # fmt: skip


def canaries(count: int, *, seed: int) -> list[str]:
    """So many different canaries, of all shapes in turn."""
    draw = random.Random(seed)
    shapes = list(SHAPES.values())
    found: dict[str, None] = {}
    while len(found) < count:
        found[shapes[len(found) % len(shapes)](draw)] = None
    return list(found)


def probes(canary: str) -> tuple[str, ...]:
    """What must be nowhere: how the secret part begins and, where nobody else ends so, its end.

    Of `key=value` the value counts, of a URL the password.
    """
    if canary.startswith("postgres://"):
        canary = canary.split("shop:")[1].split("@")[0]
    elif "=" in canary:
        canary = canary.split("=", 1)[1]
    bare = "".join(c for c in canary if c.isascii() and c.isalnum())
    return (bare[:10],) if "@" in canary else (bare[:10], bare[-10:])
