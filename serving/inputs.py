"""The prompts of OpenAI's Responses API and of Anthropic's Messages API, as chat messages. Pure.

Their requests go to the engine as they came; what is made here is what the log, the raters and the
prompt's tag see, in one form for all chat APIs, so that answers to one conversation can be compared
whichever API asked. The forms are those that vLLM itself makes of such requests. Only text, tool
calls and their results are taken: media would make the engine fetch what a client names, and
hosted tools would act for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from core.errors import BadRequest
from serving import fields

Said = Mapping[str, Any]
_INPUT_PARTS = frozenset({"input_text", "output_text", "text"})
_PART_FIELDS = frozenset({"type", "text", "annotations", "logprobs", "citations", "cache_control"})
_ITEM_FIELDS: Mapping[str, frozenset[str]] = {
    "message": frozenset({"role", "content", "phase"}),
    "function_call": frozenset({"call_id", "name", "arguments"}),
    "custom_tool_call": frozenset({"call_id", "name", "input"}),
    "function_call_output": frozenset({"call_id", "output"}),
    "custom_tool_call_output": frozenset({"call_id", "output"}),
    "reasoning": frozenset({"summary", "content", "encrypted_content"}),
}
_EVERY_ITEM = frozenset({"type", "id", "status"})
_BLOCK_FIELDS: Mapping[str, frozenset[str]] = {
    "text": _PART_FIELDS,
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control", "caller"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
}
_PARTIAL = frozenset({"in_progress", "incomplete"})


@dataclass(slots=True)
class Conversation:
    """Chat messages as they come together, and how much text they hold."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    chars: int = 0

    def add(self, role: str, content: Any, **more: Any) -> None:
        """One more message."""
        self.messages.append({"role": role, "content": content, **more})

    def assistant(self) -> dict[str, Any]:
        """The assistant's message that is being said: the last one, or a new one."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.add("assistant", None)
        return self.messages[-1]

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """A tool call of the assistant."""
        self.chars += len(arguments)
        function = {"name": name, "arguments": arguments}
        calls = self.assistant().setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})


def read_input(said: Said) -> tuple[list[dict[str, Any]], int, bool]:
    """Messages of a Responses request, their characters, whether the last is to be continued.

    Raises BadRequest for anything but text and tool calls.
    """
    talk = Conversation()
    if instructions := _text(said.get("instructions") or "", "instructions"):
        talk.add("system", instructions)
        talk.chars += len(instructions)
    items = said["input"]
    if isinstance(items, str):
        talk.add("user", items)
        talk.chars += len(items)
        return talk.messages, talk.chars, False
    if not isinstance(items, list) or not items:
        raise BadRequest("`input` must be text or a list that is not empty", param="input")
    for index, item in enumerate(items):
        _add_item(talk, item, f"input[{index}]")
    last = items[-1]
    partial = last.get("type", "message") in ("message", "reasoning")
    return talk.messages, talk.chars, partial and last.get("status") in _PARTIAL


def read_anthropic(said: Said) -> tuple[list[dict[str, Any]], int]:
    """Messages of an Anthropic request, and their characters. Raises BadRequest."""
    talk = Conversation()
    if system := said.get("system"):
        text = "".join(_texts(talk, system, "system"))
        talk.add("system", text)
    messages = said["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadRequest("`messages` must be a list with at least one message", param="messages")
    for index, message in enumerate(messages):
        _add_message(talk, message, f"messages[{index}]")
    return talk.messages, talk.chars


def check_tools(tools: Any, kinds: frozenset[str | None]) -> None:
    """Tools that the client runs itself only. Raises BadRequest for hosted ones."""
    if tools is None:
        return
    if not isinstance(tools, list):
        raise BadRequest("`tools` must be a list", param="tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise BadRequest(f"tools[{index}] must be an object", param=f"tools[{index}]")
        kind = tool.get("type")
        if kind is not None and not isinstance(kind, str) or kind not in kinds:
            raise BadRequest(
                f"tools[{index}]: there are no hosted tools such as `{str(kind)[:50]}`; "
                "only functions that the client runs itself",
                param=f"tools[{index}].type",
            )


def _add_item(talk: Conversation, item: Any, where: str) -> None:
    kind = _object(item, where).get("type", "message")
    if kind == "item_reference":
        raise BadRequest(f"{where}: nothing is kept to refer to; send the item", param=where)
    if not isinstance(kind, str) or kind not in _ITEM_FIELDS:
        raise BadRequest(
            f"{where}: items of type `{str(kind)[:50]}` are not taken", param=f"{where}.type"
        )
    _check_names(item, _ITEM_FIELDS[kind] | _EVERY_ITEM, where)
    match kind:
        case "message":
            role = _role(item, fields.ROLES - {"tool"}, where)
            talk.add(role, _content(talk, item.get("content"), f"{where}.content"))
        case "function_call" | "custom_tool_call":
            given = item.get("arguments" if kind == "function_call" else "input")
            call_id, name = _name(item, "call_id", where), _name(item, "name", where)
            talk.call(call_id, name, _text(given, where))
        case "reasoning":
            _add_reasoning(talk, item, where)
        case _:
            output = _content(talk, item.get("output"), f"{where}.output")
            talk.add("tool", output, tool_call_id=_name(item, "call_id", where))


def _add_reasoning(talk: Conversation, item: Said, where: str) -> None:
    if item.get("encrypted_content"):
        raise BadRequest(f"{where}: encrypted reasoning cannot be read", param=where)
    thoughts = item.get("content") or item.get("summary") or []
    if not isinstance(thoughts, list):
        raise BadRequest(f"{where} must hold a list of texts", param=where)
    for part in thoughts[:1]:
        thought = _text(_object(part, where).get("text"), where)
        talk.chars += len(thought)
        talk.assistant()["reasoning"] = thought


def _add_message(talk: Conversation, message: Any, where: str) -> None:
    _check_names(_object(message, where), frozenset({"role", "content"}), where)
    role = _role(message, frozenset({"user", "assistant", "system"}), where)
    blocks = message.get("content")
    if isinstance(blocks, str):
        talk.chars += len(blocks)
        return talk.add(role, blocks)
    if not isinstance(blocks, list):
        raise BadRequest(f"{where}.content must be text or blocks", param=f"{where}.content")
    texts: list[str] = []
    calls: list[tuple[str, str, str]] = []
    more: dict[str, Any] = {}
    for index, block in enumerate(blocks):
        _see_block(talk, block, texts, calls, more, where=f"{where}.content[{index}]")
    if texts or calls or more:
        talk.add(role, _joined(texts) if texts else None, **more)
        for call in calls:
            talk.call(*call)


def _see_block(
    talk: Conversation,
    block: Any,
    texts: list[str],
    calls: list[tuple[str, str, str]],
    more: dict[str, Any],
    *,
    where: str,
) -> None:
    kind = _object(block, where).get("type")
    if not isinstance(kind, str) or kind not in _BLOCK_FIELDS:
        raise BadRequest(
            f"{where}: blocks of type `{str(kind)[:50]}` are not taken, only text, thinking and "
            "tools",
            param=f"{where}.type",
        )
    _check_names(block, _BLOCK_FIELDS[kind], where)
    match kind:
        case "text":
            texts += _texts(talk, [block], where)
        case "thinking":
            thought = _text(block.get("thinking"), where)
            talk.chars += len(thought)
            more["reasoning"] = more.get("reasoning", "") + thought
        case "tool_use":
            arguments = _json(_object(block.get("input") or {}, where), where)
            calls.append((_name(block, "id", where), _name(block, "name", where), arguments))
        case "tool_result":
            content = block.get("content")
            result = "\n".join(_texts(talk, content, where)) if content else ""
            talk.add("tool", result, tool_call_id=_name(block, "tool_use_id", where))


def _content(talk: Conversation, content: Any, where: str) -> Any:
    return _joined(_texts(talk, content, where))


def _texts(talk: Conversation, content: Any, where: str) -> list[str]:
    """The texts of a content, which is one or a list of parts."""
    if isinstance(content, str):
        talk.chars += len(content)
        return [content]
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be text or parts of text", param=where)
    found = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        kind = _object(part, at).get("type")
        if not isinstance(kind, str) or kind not in _INPUT_PARTS:
            raise BadRequest(f"{at}: only parts of text are taken, no media", param=at)
        _check_names(part, _PART_FIELDS, at)
        found.append(_text(part.get("text"), at))
    talk.chars += sum(map(len, found))
    return found


def _joined(texts: list[str]) -> Any:
    """One text as it is, several as parts: the same as a chat client would send."""
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{where} must be an object", param=where)
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{where} must hold text", param=where)
    return value


def _json(value: Any, where: str) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise BadRequest(f"{where} is nested too deeply", param=where) from None


def _name(item: Said, name: str, where: str) -> str:
    return _text(item.get(name), f"{where}.{name}")


def _role(message: Said, roles: frozenset[str], where: str) -> str:
    role = message.get("role")
    if not isinstance(role, str) or role not in roles:
        raise BadRequest(
            f"{where}.role must be one of {', '.join(sorted(roles))}", param=f"{where}.role"
        )
    return role


def _check_names(item: Said, names: frozenset[str], where: str) -> None:
    """What a client's library adds with no value passes; what says something has to be known."""
    for name, value in item.items():
        if name not in names and value is not None:
            raise BadRequest(f"{where} has an unknown field `{name[:100]}`", param=where)
