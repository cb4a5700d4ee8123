"""What a reply said: choices, token counts, versions, errors, read beside the bytes. Pure.

A unary body or the events of a stream go in; what is logged comes out, so that what is recorded is
what was sent. Never changes a byte. Knows the shapes of OpenAI's replies and vLLM's marks (errors
inside a stream under HTTP 200, `: policy-version` comments); knows no connection.
"""

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

    id: str | None = None
    begun: bool = False
    """Whether anything but errors and comments was said."""
    answers: dict[int, Answer] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    versions: list[str] = field(default_factory=list)
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
        if said.get("error"):
            self.error = "engine"
            return Kind.ERROR
        self.begun = True
        if self.id is None:
            self.id = said.get("id")
        choices = said.get("choices") or []
        for choice in choices:
            self._see_choice(choice)
        if usage := said.get("usage"):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.completion_tokens = usage.get("completion_tokens")
        return Kind.USAGE if usage and not choices else Kind.DATA

    def choices(self) -> list[dict[str, Any]]:
        """All answers, by index, as they are logged."""
        alone = len(self.answers) == 1
        return [
            self.answers[index].recorded(self.completion_tokens if alone else None)
            for index in sorted(self.answers)
        ]

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

    def _see_choice(self, choice: dict[str, Any]) -> None:
        answer = self.answers.setdefault(choice.get("index", 0), Answer())
        if reason := choice.get("finish_reason"):
            answer.finish_reason = reason
        part = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or part.get("content")
        if isinstance(text, str):
            answer.text.append(text)
        for position, call in enumerate(part.get("tool_calls") or ()):
            _see_call(answer.tool_calls, call.get("index", position), call)


def _ran_dry(answer: Answer) -> bool:
    """All its tokens and no text: what vLLM answers when the weights give NaN."""
    return answer.finish_reason == "length" and not any(answer.text) and not answer.tool_calls


def _see_call(calls: dict[int, dict[str, Any]], index: int, call: dict[str, Any]) -> None:
    """Add a tool call, or the next piece of one: its arguments come bit by bit."""
    function = call.get("function") or {}
    known = calls.setdefault(index, {"id": None, "name": None, "arguments": ""})
    known["id"] = call.get("id") or known["id"]
    known["name"] = function.get("name") or known["name"]
    known["arguments"] += function.get("arguments") or ""
