"""Server-sent events as bytes: cut into events, never rewritten. Pure.

An event keeps its bytes, the blank line that ends it included, so that what is passed on is what
came. Knows nothing of completions; `serving/transcript.py` reads what is in the events.
"""

import re

_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
DONE = b"[DONE]"


def split(buffer: bytes) -> tuple[list[bytes], bytes]:
    """The complete events at the front of `buffer`, and what is left of it."""
    if b"\r" in buffer:
        ends = [match.end() for match in _BLANK_LINE.finditer(buffer)]
        starts = [0, *ends]
        return [buffer[a:b] for a, b in zip(starts, ends, strict=False)], buffer[starts[-1] :]
    *events, rest = buffer.split(b"\n\n")
    return [event + b"\n\n" for event in events], rest


def data_of(event: bytes) -> bytes | None:
    """The data of an event; None when it holds only comments or other fields."""
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]
    if not lines:
        return None
    return b"\n".join(line[6:] if line.startswith(b"data: ") else line[5:] for line in lines)


def comments_of(event: bytes) -> list[bytes]:
    """The comments of an event, without colon and spaces."""
    return [line[1:].strip() for line in event.splitlines() if line.startswith(b":")]


def event_of(data: bytes) -> bytes:
    """An event of our own."""
    return b"data: " + data + b"\n\n"
