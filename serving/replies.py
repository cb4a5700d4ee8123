"""Reading what an engine says in the words of each API, into one transcript. Pure.

A reader takes the parsed JSON of a unary body or of one event, adds what it says to the transcript
(serving/transcript.py), and says what kind of event it was. Finish reasons become those of chat
completions, so that what reads the log need not know which API asked.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from serving.transcript import Answer, Kind, Transcript

Said = Mapping[str, Any]
_STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_INCOMPLETE = {"max_output_tokens": "length", "content_filter": "content_filter"}
_CALL_KINDS = {"function_call": "arguments", "custom_tool_call": "input"}


def read_choices(transcript: Transcript, said: Said) -> Kind:
    """Chat and text completions: choices with a message, a delta or a text, and the usage."""
    if said.get("error"):
        return Kind.ERROR
    transcript.named(said.get("id"))
    choices = said.get("choices") or []
    for choice in choices:
        _read_choice(transcript.answer(choice.get("index", 0)), choice)
    if usage := said.get("usage"):
        transcript.prompt_tokens = _count(usage.get("prompt_tokens"))
        transcript.completion_tokens = _count(usage.get("completion_tokens"))
    return Kind.USAGE if usage and not choices else Kind.DATA


def read_response(transcript: Transcript, said: Said) -> Kind:
    """A response, or an event about one."""
    if said.get("object") == "response":
        _read_whole_response(transcript, said)
        return Kind.DATA
    kind = said.get("type")
    match kind:
        case "response.created" | "response.in_progress" | "response.queued":
            transcript.named(said["response"].get("id"))
            return Kind.PRELUDE  # vLLM says these before it has asked its engine anything
        case "response.completed" | "response.incomplete":
            _read_whole_response(transcript, said["response"])
            return Kind.DONE
        case "response.output_text.delta":
            transcript.answer(0).text.append(said["delta"])
        case "response.output_item.added" if said["item"].get("type") in _CALL_KINDS:
            item = said["item"]
            call = {"id": item.get("call_id"), "name": item.get("name"), "arguments": ""}
            transcript.answer(0).tool_calls[said["output_index"]] = call
        case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
            transcript.answer(0).tool_calls[said["output_index"]]["arguments"] += said["delta"]
        case "error" | "response.failed":
            return Kind.ERROR
        case None:
            return Kind.ERROR if said.get("error") else Kind.DATA
    return Kind.DATA


def read_message(transcript: Transcript, said: Said) -> Kind:
    """A message of Anthropic's API, or an event about one."""
    match said.get("type"):
        case "message":
            _read_whole_message(transcript, said)
        case "message_start":
            transcript.named(said["message"].get("id"))
            transcript.answer(0)
            _read_usage(transcript, said["message"].get("usage"))
        case "content_block_start":
            _start_block(transcript.answer(0), said["index"], said["content_block"])
        case "content_block_delta":
            _grow_block(transcript.answer(0), said["index"], said["delta"])
        case "message_delta":
            reason = said["delta"].get("stop_reason")
            transcript.answer(0).finish_reason = _stop_reason(reason)
            _read_usage(transcript, said.get("usage"))
        case "ping":
            return Kind.PRELUDE
        case "message_stop":
            return Kind.DONE
        case "error":
            return Kind.ERROR
        case None:
            return Kind.ERROR if said.get("error") else Kind.DATA
    return Kind.DATA


def _read_choice(answer: Answer, choice: Said) -> None:
    if reason := choice.get("finish_reason"):
        answer.finish_reason = reason
    part = choice.get("delta") or choice.get("message") or {}
    text = choice.get("text") or part.get("content")
    if isinstance(text, str):
        answer.text.append(text)
    for position, call in enumerate(part.get("tool_calls") or ()):
        _see_call(answer.tool_calls, call.get("index", position), call)
    answer.tokens += _tokens_in(choice)


def _tokens_in(choice: Said) -> int:
    """How many tokens a choice, or its next piece, shows: by their ids, else by their scores."""
    if ids := choice.get("token_ids"):
        return len(ids)
    scores = choice.get("logprobs") or {}
    return len(scores.get("content") or scores.get("tokens") or ())


def _see_call(calls: dict[int, dict[str, Any]], index: int, call: Said) -> None:
    """Add a tool call, or the next piece of one: its arguments come bit by bit."""
    function = call.get("function") or {}
    known = calls.setdefault(index, {"id": None, "name": None, "arguments": ""})
    known["id"] = call.get("id") or known["id"]
    known["name"] = function.get("name") or known["name"]
    known["arguments"] += function.get("arguments") or ""


def _read_whole_response(transcript: Transcript, response: Said) -> None:
    """A response that has ended; what its stream said before is in it again."""
    transcript.named(response.get("id"))
    answer = transcript.answer(0)
    items = response.get("output") or []
    if items:
        answer.text, answer.tool_calls = [], {}
    for position, item in enumerate(items):
        if (kind := item.get("type")) in _CALL_KINDS:
            given = item.get(_CALL_KINDS[kind]) or ""
            call = {"id": item.get("call_id"), "name": item.get("name"), "arguments": given}
            answer.tool_calls[position] = call
        elif kind == "message":
            answer.text += [part.get("text") or "" for part in item.get("content") or ()]
    answer.finish_reason = _how_it_ended(response, bool(answer.tool_calls))
    if usage := response.get("usage"):
        transcript.prompt_tokens = _count(usage.get("input_tokens"))
        transcript.completion_tokens = _count(usage.get("output_tokens"))


def _how_it_ended(response: Said, calls: bool) -> str:
    match response.get("status"):
        case "completed":
            return "tool_calls" if calls else "stop"
        case "incomplete":
            why = (response.get("incomplete_details") or {}).get("reason")
            return _INCOMPLETE.get(str(why), "length")
        case "failed":
            return "error"
        case _:
            return "abort"


def _read_whole_message(transcript: Transcript, message: Said) -> None:
    transcript.named(message.get("id"))
    answer = transcript.answer(0)
    for index, block in enumerate(message.get("content") or ()):
        _start_block(answer, index, block)
        if block.get("type") == "tool_use":
            arguments = orjson.dumps(block.get("input") or {}).decode()
            answer.tool_calls[index]["arguments"] = arguments
    answer.finish_reason = _stop_reason(message.get("stop_reason"))
    _read_usage(transcript, message.get("usage"))


def _start_block(answer: Answer, index: int, block: Said) -> None:
    if block.get("type") == "text":
        answer.text.append(block.get("text") or "")
    elif block.get("type") == "tool_use":
        call = {"id": block.get("id"), "name": block.get("name"), "arguments": ""}
        answer.tool_calls[index] = call


def _grow_block(answer: Answer, index: int, delta: Said) -> None:
    if delta.get("type") == "text_delta":
        answer.text.append(delta["text"])
    elif delta.get("type") == "input_json_delta":
        answer.tool_calls[index]["arguments"] += delta["partial_json"]


def _stop_reason(reason: str | None) -> str:
    """No reason is what vLLM gives an answer that it cut off."""
    return "abort" if reason is None else _STOP_REASONS.get(reason, reason)


def _read_usage(transcript: Transcript, usage: Said | None) -> None:
    """Tokens read from a cache, and written to one, are part of the prompt too."""
    if not usage:
        return
    parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    transcript.prompt_tokens = sum(_count(usage.get(part)) or 0 for part in parts)
    transcript.completion_tokens = _count(usage.get("output_tokens"))


def _count(said: Any) -> int | None:
    """A number of tokens; None for what is none, which limits and usage could not reckon with."""
    return said if isinstance(said, int) and said >= 0 else None
