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

OURS: Final[dict[str, Schema]] = {
    "model": _TEXT | {"examples": ["instructloop", "instructloop@v0000"]},
    "n": _INT | {"minimum": 1},
    "stream": _BOOL,
    "stream_options": _OBJECT,
    "user": _TEXT | {"maxLength": 256},
    "safety_identifier": _TEXT | {"maxLength": 256},
    "store": _BOOL,
    "metadata": {"type": "object", "additionalProperties": _TEXT, "maxProperties": 16},
}
MESSAGES: Final[Schema] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": _TEXT}},
}
PROMPT: Final[Schema] = {
    "anyOf": [_TEXT, _TEXTS, _INTS, {"type": "array", "items": _INTS}],
    "description": "Batches and token ids are answered, but not logged: they take no feedback.",
}
HINTS: Final[dict[str, Schema]] = {
    "service_tier": _TEXT,
    "prompt_cache_key": _TEXT,
    "prompt_cache_retention": _TEXT,
    "prediction": _OBJECT,
}

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
}
"""With another value than this the messages alone are not what the model saw, or the text is not
its answer: the reply is logged and can be rated, but never trains."""

RECORDED: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
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
