"""What a completion request may say, field by field, and who each field is for.

An allowlist: what is not here is refused by name. `ENGINE` fields pass through to the engine, which
checks their values; `OURS` are read by the gateway and go no further; `HINTS` are OpenAI's hints
about cost and caching, taken and ignored. Each has its JSON schema for the OpenAPI document. What
steers the engine (priority, request_id, cache_salt, kv_transfer_params, templates, media) is named
here only to be refused with a reason. Data alone: the reading is in serving/requests.py.
"""

from typing import Any, Final

Schema = dict[str, Any]

_BOOL: Final[Schema] = {"type": "boolean"}
_INT: Final[Schema] = {"type": "integer"}
_NUMBER: Final[Schema] = {"type": "number"}
_TEXT: Final[Schema] = {"type": "string"}
_OBJECT: Final[Schema] = {"type": "object"}
_INTS: Final[Schema] = {"type": "array", "items": _INT}
_TEXTS: Final[Schema] = {"type": "array", "items": _TEXT}
_TEXT_OR_TEXTS: Final[Schema] = {"anyOf": [_TEXT, _TEXTS]}

SAMPLING: Final[dict[str, Schema]] = {
    "frequency_penalty": _NUMBER,
    "logit_bias": _OBJECT,
    "presence_penalty": _NUMBER,
    "seed": _INT,
    "stop": _TEXT_OR_TEXTS,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "max_tokens": _INT,
    "response_format": _OBJECT,
    # vLLM's extensions
    "use_beam_search": _BOOL,
    "top_k": _INT,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "length_penalty": _NUMBER,
    "stop_token_ids": _INTS,
    "include_stop_str_in_output": _BOOL,
    "ignore_eos": _BOOL,
    "min_tokens": _INT,
    "skip_special_tokens": _BOOL,
    "spaces_between_special_tokens": _BOOL,
    "truncate_prompt_tokens": _INT,
    "truncation_side": _TEXT,
    "prompt_logprobs": _INT,
    "logprob_token_ids": _INTS,
    "allowed_token_ids": _INTS,
    "bad_words": _TEXTS,
    "add_special_tokens": _BOOL,
    "echo": _BOOL,
    "structured_outputs": _OBJECT,
    "return_tokens_as_token_ids": _BOOL,
    "return_token_ids": _BOOL,
    "repetition_detection": _OBJECT,
    "thinking_token_budget": _INT,
    "stream_interval": _INT,
}
CHAT_ENGINE: Final[dict[str, Schema]] = SAMPLING | {
    "logprobs": _BOOL,
    "top_logprobs": _INT,
    "max_completion_tokens": _INT,
    "tools": {"type": "array", "items": _OBJECT},
    "tool_choice": {"anyOf": [_TEXT, _OBJECT]},
    "parallel_tool_calls": _BOOL,
    "reasoning_effort": _TEXT,
    "include_reasoning": _BOOL,
    "documents": {"type": "array", "items": _OBJECT},
    "chat_template_kwargs": _OBJECT,
    "add_generation_prompt": _BOOL,
    "continue_final_message": _BOOL,
    "return_prompt_text": _BOOL,
}
TEXT_ENGINE: Final[dict[str, Schema]] = SAMPLING | {"logprobs": _INT, "suffix": _TEXT}

_TAGS: Final[Schema] = {"type": "object", "additionalProperties": _TEXT, "maxProperties": 16}
RESPONSES_ENGINE: Final[dict[str, Schema]] = {
    "include": _TEXTS,
    "instructions": _TEXT,
    "max_output_tokens": _INT,
    "max_tool_calls": _INT,
    "metadata": _TAGS,  # the reply repeats it
    "parallel_tool_calls": _BOOL,
    "reasoning": _OBJECT,
    "temperature": _NUMBER,
    "text": _OBJECT,
    "tool_choice": {"anyOf": [_TEXT, _OBJECT]},
    "tools": {"type": "array", "items": _OBJECT},
    "top_logprobs": _INT,
    "top_p": _NUMBER,
    "truncation": _TEXT,
    # vLLM's extensions
    "chat_template_kwargs": _OBJECT,
    "frequency_penalty": _NUMBER,
    "ignore_eos": _BOOL,
    "include_reasoning": _BOOL,
    "include_stop_str_in_output": _BOOL,
    "logit_bias": _OBJECT,
    "min_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "repetition_penalty": _NUMBER,
    "seed": _INT,
    "skip_special_tokens": _BOOL,
    "stop": _TEXT_OR_TEXTS,
    "stop_token_ids": _INTS,
    "structured_outputs": _OBJECT,
    "top_k": _INT,
}
MESSAGES_ENGINE: Final[dict[str, Schema]] = {
    "max_tokens": _INT,
    "output_config": _OBJECT,
    "stop_sequences": _TEXTS,
    "system": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}]},
    "temperature": _NUMBER,
    "thinking": _OBJECT,
    "tool_choice": _OBJECT,
    "tools": {"type": "array", "items": _OBJECT},
    "top_k": _INT,
    "top_p": _NUMBER,
    "chat_template_kwargs": _OBJECT,  # vLLM's extension
}

OURS: Final[dict[str, Schema]] = {
    "model": _TEXT | {"examples": ["instructloop", "instructloop@v0000"]},
    "n": _INT | {"minimum": 1},
    "stream": _BOOL,
    "stream_options": _OBJECT,
    "user": _TEXT | {"maxLength": 256},
    "safety_identifier": _TEXT | {"maxLength": 256},
    "store": _BOOL,
    "metadata": _TAGS,
}
RESPONSES_OURS: Final = {name: OURS[name] for name in OURS.keys() - {"n"}}
MESSAGES_OURS: Final = {name: OURS[name] for name in RESPONSES_OURS.keys() - {"stream_options"}}
MESSAGES: Final[Schema] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": _TEXT}},
}
PROMPT: Final[Schema] = {
    "anyOf": [_TEXT, _TEXTS, _INTS, {"type": "array", "items": _INTS}],
    "description": "Batches and token ids are answered, but not logged: they take no feedback.",
}
INPUT: Final[Schema] = {
    "anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _OBJECT}],
    "description": "Text, or messages, function calls and their outputs; no media.",
}
HINTS: Final[dict[str, Schema]] = {
    "service_tier": _TEXT,
    "prompt_cache_key": _TEXT,
    "prompt_cache_retention": _TEXT,
    "prediction": _OBJECT,
}
MESSAGES_HINTS: Final[dict[str, Schema]] = {"service_tier": _TEXT, "cache_control": _OBJECT}

STATEFUL: Final = {
    "background": "a reply ends with its request",
    "conversation": "send the whole conversation as `input`",
    "previous_response_id": "send the whole conversation as `input`",
    "previous_input_messages": "send the whole conversation as `input`",
    "prompt": "there are no stored prompt templates",
    "enable_response_messages": "what the model read is not shown",
    "container": "there are no containers",
    "context_management": "the context is the client's to manage",
    "mcp_servers": "there are no hosted tools",
}
"""What needs a server that remembers or acts, and what to do instead; false and null pass."""

STEERING: Final = frozenset(
    {
        "priority",
        "request_id",
        "session_id",
        "cache_salt",
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        "chat_template",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "mm_payload",
        "return_mm_kwargs",
        "prompt_embeds",
        "routed_experts_prompt_start",
        "return_token_offsets",
        "watermarking",
    }
)
"""Fields of vLLM that are the gateway's to set, or nobody's."""

BESIDE_PROMPT: Final[dict[str, Any]] = {
    "tools": [],
    "documents": [],
    "chat_template_kwargs": {},
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": None,
    "truncate_prompt_tokens": None,
    "echo": False,
    "suffix": None,
    "truncation": "disabled",
    "reasoning": None,
    "reasoning_effort": None,
    "thinking": None,
}
"""With another value than this the messages alone are not what the model saw, or the text is not
its answer: the reply is logged and can be rated, but never trains."""

MOST_TOKENS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""How long an answer may be, as the APIs call it."""

RECORDED: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "min_tokens",
    "ignore_eos",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
"""How the answer was drawn, kept beside it: numbers only, so that no text slips past the filter."""

MESSAGE_FIELDS: Final = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning"}
)
EMPTY_MESSAGE_FIELDS: Final = frozenset({"annotations", "audio", "function_call"})
"""What OpenAI's client adds, empty, to a reply that is sent back as a message."""

ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
