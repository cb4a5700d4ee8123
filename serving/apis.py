"""The four completion APIs, a row each: what differs between them, and nothing else does.

A row says what a request may hold (serving/fields.py), how its prompt is read (serving/prompts.py,
serving/inputs.py), how the engine is told our id, how replies are read (serving/replies.py), and
how errors look (serving/error_bodies.py). Whoever handles a completion takes a row and asks no more
which API it is. Knows no HTTP and no engine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from core.errors import InstructLoopError
from serving import error_bodies, fields, replies
from serving.inputs import check_tools, read_anthropic, read_input
from serving.prompts import read_messages, read_text_prompt, refuse_long
from serving.transcript import Reader

Said = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a request."""

    recorded: list[dict[str, Any]] | dict[str, str] | None
    """As it is logged; None for what cannot be (batches, token ids)."""
    seen: Any
    """What stands for it in the prompt's tag."""
    count: int = 1
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What else changed what the model saw, as in `fields.BESIDE_PROMPT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One completion API."""

    path: str
    id_prefix: str
    """What the engine puts before our token to make the id, or what we tell it to."""
    prompt_field: str
    prompt_schema: fields.Schema
    tag_field: str
    """Under which name the prompt's tag holds it: APIs that share one share tags."""
    reply_kind: str
    """What a reply calls itself: its `object`, or its `type`."""
    engine_fields: Mapping[str, fields.Schema]
    our_fields: Mapping[str, fields.Schema] = field(default_factory=lambda: fields.OURS)
    hints: Mapping[str, fields.Schema] = field(default_factory=lambda: fields.HINTS)
    required: tuple[str, ...] = ()
    """Fields besides the prompt that the engine insists on."""
    steering: frozenset[str] = frozenset({"cache_salt", "priority"})
    """What the engine takes from us beside the client's fields."""
    always: Mapping[str, Any] = field(default_factory=dict)
    """What every body says to the engine."""
    asks_usage: bool = False
    """Whether a stream carries token counts only if asked with `stream_options`."""
    metadata_user: str | None = None
    """The entry of `metadata` that names the end user."""
    read_prompt: Callable[[Said, int], Prompt]
    read_reply: Reader
    error_event: Callable[[InstructLoopError], bytes] = error_bodies.openai_event


def _chat(said: Said, max_chars: int) -> Prompt:
    messages = read_messages(said["messages"], max_chars)
    return Prompt(messages, messages)


def _text(said: Said, max_chars: int) -> Prompt:
    count, recorded = read_text_prompt(said["prompt"], max_chars)
    return Prompt(recorded, said["prompt"], count)


def _input(said: Said, max_chars: int) -> Prompt:
    check_tools(said.get("tools"), frozenset({"function", "custom"}))
    messages, chars, continued = read_input(said)
    refuse_long(chars, max_chars, "input")
    beside = {"continue_final_message": True} if continued else {}
    return Prompt(messages, messages, beside=beside)


def _anthropic(said: Said, max_chars: int) -> Prompt:
    check_tools(said.get("tools"), frozenset({None, "custom"}))
    messages, chars = read_anthropic(said)
    refuse_long(chars, max_chars, "messages")
    return Prompt(messages, messages)


CHAT: Final = Api(
    path="/v1/chat/completions",
    id_prefix="chatcmpl-",
    prompt_field="messages",
    prompt_schema=fields.MESSAGES,
    tag_field="messages",
    reply_kind="chat.completion",
    engine_fields=fields.CHAT_ENGINE,
    asks_usage=True,
    read_prompt=_chat,
    read_reply=replies.read_choices,
)
TEXT: Final = Api(
    path="/v1/completions",
    id_prefix="cmpl-",
    prompt_field="prompt",
    prompt_schema=fields.PROMPT,
    tag_field="prompt",
    reply_kind="text_completion",
    engine_fields=fields.TEXT_ENGINE,
    asks_usage=True,
    read_prompt=_text,
    read_reply=replies.read_choices,
)
RESPONSES: Final = Api(
    path="/v1/responses",
    id_prefix="resp_",
    prompt_field="input",
    prompt_schema=fields.INPUT,
    tag_field="messages",
    reply_kind="response",
    engine_fields=fields.RESPONSES_ENGINE,
    our_fields=fields.RESPONSES_OURS,
    steering=frozenset({"cache_salt", "priority", "request_id"}),  # it takes no id from headers
    always={"store": False},  # `store` is about our log; the engine keeps nothing
    read_prompt=_input,
    read_reply=replies.read_response,
    error_event=error_bodies.response_event,
)
MESSAGES: Final = Api(
    path="/v1/messages",
    id_prefix="chatcmpl-",  # vLLM answers it as a chat
    prompt_field="messages",
    prompt_schema=fields.MESSAGES,
    tag_field="messages",
    reply_kind="message",
    engine_fields=fields.MESSAGES_ENGINE,
    our_fields=fields.MESSAGES_OURS,
    hints=fields.MESSAGES_HINTS,
    required=("max_tokens",),
    steering=frozenset({"cache_salt"}),
    metadata_user="user_id",
    read_prompt=_anthropic,
    read_reply=replies.read_message,
    error_event=error_bodies.anthropic_event,
)
