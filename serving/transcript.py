"""What a reply said: choices, token counts, versions, errors, read beside the bytes. Pure.

A unary body or the events of a stream go in; what is logged comes out, so that what is recorded is
what was sent. Never changes a byte. The words of each API are read by serving/replies.py; what all
share is here: vLLM's marks (errors inside a stream under HTTP 200, `: policy-version` comments),
and whether the reply is fit to be rated. Knows no connection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import orjson

from serving import sse

_VERSION_COMMENT = b"policy-version "
_CUT_REASONS = frozenset({"abort", "error"})


class Kind(Enum):
    """What an event of a stream is to the gateway."""

    COMMENT = "comment"
    PRELUDE = "prelude"
    """Said before the engine has generated anything: an error may still come first."""
    DATA = "data"
    USAGE = "usage"
    """The last event before the end, that carries usage and no choice."""
    ERROR = "error"
    DONE = "done"


@dataclass(slots=True)
class Answer:
    """One choice as it grows."""

    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    tokens: int = 0
    """Tokens that the reply showed one by one, which it does only if asked to."""

    def recorded(self, tokens: int | None) -> dict[str, Any]:
        """As it is logged."""
        calls = [self.tool_calls[index] for index in sorted(self.tool_calls)]
        return {
            "text": "".join(self.text),
            "finish_reason": self.finish_reason,
            "tokens": tokens,
            "tool_calls": calls or None,
        }


@dataclass(slots=True)
class Transcript:
    """What was said so far."""

    reader: "Reader"
    id: str | None = None
    begun: bool = False
    """Whether anything but errors, comments and preludes was said."""
    answers: dict[int, Answer] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    versions: list[str] = field(default_factory=list)
    first_version: str | None = None
    """Of the first token of a stream; what is said before is no token of any version."""
    error: str | None = None
    """Why no answer of this reply may be rated; None when it is whole."""

    def served_by(self, version: str) -> None:
        """From here on the text is this version's."""
        if not self.versions or self.versions[-1] != version:
            self.versions.append(version)

    def see(self, event: bytes) -> Kind:
        """Take in one event of a stream."""
        if event.startswith(b":"):
            self._see_comments(event)
        data = sse.data_of(event)
        if data is None:
            return Kind.COMMENT
        if data == sse.DONE:
            return Kind.DONE
        return self.read(data)

    def read(self, data: bytes) -> Kind:
        """Take in a unary body, or the data of one event."""
        try:
            said = orjson.loads(data)
        except orjson.JSONDecodeError:
            said = None
        if not isinstance(said, dict):
            self.error = "unreadable"
            return Kind.DATA
        try:
            kind = self.reader(self, said)
        except (AttributeError, LookupError, TypeError):  # no engine that we know says this
            self.error = "unreadable"
            kind = Kind.DATA
        if kind is Kind.ERROR:
            self.error = "engine"
        elif kind is not Kind.PRELUDE and not self.begun:
            self.begun = True
            self.first_version = self.versions[-1] if self.versions else None
        return kind

    def named(self, given: Any) -> None:
        """The reply's id, as the engine says it first."""
        if self.id is None and isinstance(given, str):
            self.id = given

    def answer(self, index: int) -> Answer:
        """The choice with this index."""
        return self.answers.setdefault(index, Answer())

    def choices(self) -> list[dict[str, Any]]:
        """All answers, by index, as they are logged."""
        return [self.answers[i].recorded(self._tokens_of(i)) for i in sorted(self.answers)]

    def _tokens_of(self, index: int) -> int | None:
        """The tokens of one choice: engines give only the total, unless each token was shown."""
        if len(self.answers) == 1:
            return self.completion_tokens
        shown = sum(answer.tokens for answer in self.answers.values())
        return self.answers[index].tokens if shown and shown == self.completion_tokens else None

    @property
    def finished(self) -> bool:
        """Whether every answer has said why it ended."""
        return bool(self.answers) and all(a.finish_reason for a in self.answers.values())

    @property
    def verdict(self) -> str | None:
        """Why this reply may not be rated, if so."""
        if self.error:
            return self.error
        if any(answer.finish_reason in _CUT_REASONS for answer in self.answers.values()):
            return "aborted"
        return "no_text" if any(map(_ran_dry, self.answers.values())) else None

    def _see_comments(self, event: bytes) -> None:
        for comment in sse.comments_of(event):
            if comment.startswith(_VERSION_COMMENT):
                self.served_by(comment.removeprefix(_VERSION_COMMENT).decode("ascii", "replace"))


Reader = Callable[[Transcript, Mapping[str, Any]], Kind]
"""Adds a parsed body or event to the transcript, and says what it was."""


def _ran_dry(answer: Answer) -> bool:
    """All its tokens and no text: what vLLM answers when the weights give NaN."""
    return answer.finish_reason == "length" and not any(answer.text) and not answer.tool_calls
