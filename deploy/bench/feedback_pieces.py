"""What the measured clients say: pieces of feedback, as requests on the wire. Pure but for new ids.

Each client says its own sequence, in order: thumbs, ratings, flags, comments and signals; about
answers that are in the log, about ones that are not there yet, about one whose reply came this
very moment, and now and then a second word about the same. The same numbers give the same words.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.keyring import Keyring
from core.records import FLAGS, Feedback
from feedback.sealing import open_texts

About = Literal["new", "logged", "reply", "again"]
CYCLE = 20
_REPLY_AT, _AGAIN_AT = 9, 19
_SIGNAL_AT, _COMMENT_EVERY = 5, 10
PATH = "/v1/feedback"
Said = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """One thing that a client says."""

    about: About
    """An answer that is not in the log, one that is, one that the gateway gives right before, or
    the one that the client's last piece was about."""
    completion_id: str
    """Empty where the client has it: `reply` and `again`."""
    rater: str
    said: Said
    once: str
    """Its Idempotency-Key."""

    def request(self, completion_id: str, secret: str) -> bytes:
        """It, about this answer, as bytes of HTTP."""
        body = json.dumps({"completion_id": completion_id, "rater": self.rater, **self.said})
        return (
            "POST /v1/feedback HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {secret}\r\nidempotency-key: {self.once}\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}"
        ).encode()


def pieces(
    client: int, *, run: str, mint: Callable[[], str], logged: Sequence[str]
) -> Iterator[Piece]:
    """Everything that a client will say, without an end; `mint` makes the id of a new answer."""
    number = 0
    while True:
        step = number % CYCLE
        rater = f"{run} {client} {number - 1 if step == _AGAIN_AT else number}"
        about = _about(step)
        if about == "new":
            completion_id = mint()
        else:
            completion_id = logged[(client + number) % len(logged)] if about == "logged" else ""
        yield Piece(about, completion_id, rater, said_at(number), f"{run}-{client}-{number}")
        number += 1


def said_at(number: int) -> Said:
    """What the piece of this number says; a second word differs from the first."""
    step = number % CYCLE
    if step == _AGAIN_AT:
        return {"thumb": "down"}
    if step == _SIGNAL_AT:
        return {"signal": "copy"}
    if step % _COMMENT_EVERY == 3:
        return {"thumb": "up", "comment": f"Comment {number}: it says what it is known for."}
    if step % 4 == 0:
        return {"thumb": "up" if number % 3 else "down"}
    if step % 4 == 2:
        return {"rating": 1 + number % 7, "flags": {FLAGS[number % len(FLAGS)]: True}}
    return {"rating": 1 + number % 7}


def held_as(feedback: Feedback, keyring: Keyring) -> Said:
    """What a record says, in the words of the request it came from."""
    said: Said = {
        name: value
        for name in ("thumb", "rating", "signal")
        if (value := getattr(feedback, name)) is not None
    }
    if feedback.flags:
        said["flags"] = feedback.flags
    if feedback.sealed:
        said |= open_texts(feedback.sealed, keyring)
    return said


def _about(step: int) -> About:
    if step == _REPLY_AT:
        return "reply"
    if step == _AGAIN_AT:
        return "again"
    return "logged" if step % 2 else "new"
