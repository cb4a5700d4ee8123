"""The prompt of a completion request: how much text it holds, and whether it can be logged. Pure.

Only text is taken: a media URL would make the engine fetch what a client names. A batch of prompts
and token ids are answered, but there is no one text that a log entry could show.
"""

from typing import Any

from core.errors import BadRequest, TooLarge
from serving import fields

_MAX_PROMPTS = 128
_TEMPLATE_KEYWORDS = frozenset({"chat_template", "tokenize", "conversation", "tools", "documents"})


def read_messages(messages: Any, max_chars: int) -> list[dict[str, Any]]:
    """The messages as they came. Raises BadRequest for anything but text, TooLarge."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("`messages` must be a list with at least one message", param="messages")
    chars = 0
    for index, message in enumerate(messages):
        chars += _message_chars(message, f"messages[{index}]")
    refuse_long(chars, max_chars, "messages")
    return messages


def _message_chars(message: Any, where: str) -> int:
    """How much text a message holds. Raises BadRequest for anything but text."""
    if not isinstance(message, dict):
        raise BadRequest(f"{where} must be an object", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in fields.ROLES:
        raise BadRequest(
            f"{where}.role must be one of {', '.join(sorted(fields.ROLES))}", param=f"{where}.role"
        )
    for name, value in message.items():
        if name in fields.EMPTY_MESSAGE_FIELDS and not value:
            continue
        if name not in fields.MESSAGE_FIELDS:
            raise BadRequest(f"{where} has an unknown field `{name[:100]}`", param=where)
    content = message.get("content")
    if content is None or isinstance(content, str):
        return len(content or "")
    if not isinstance(content, list):
        raise BadRequest(f"{where}.content must be text", param=f"{where}.content")
    return sum(_part_chars(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part_chars(part: Any, where: str) -> int:
    """Text and refusals only: media would make the engine fetch what a client names."""
    if isinstance(part, dict):
        kind = part.get("type")
        if kind in ("text", "refusal") and part.keys() == {"type", kind}:
            text = part[kind]
            if isinstance(text, str):
                return len(text)
    raise BadRequest(f"{where}: only parts of type text are taken, no media", param=where)


def check_template_keywords(keywords: Any) -> None:
    """Switches of the model's own template only. Raises BadRequest."""
    if keywords is None:
        return
    simple = isinstance(keywords, dict) and all(
        isinstance(value, bool | int | float | str) for value in keywords.values()
    )
    if not simple or _TEMPLATE_KEYWORDS & keywords.keys():
        raise BadRequest(
            "`chat_template_kwargs` takes switches of the model's own template, no templates",
            param="chat_template_kwargs",
        )


def read_text_prompt(prompt: Any, max_chars: int) -> tuple[int, dict[str, str] | None]:
    """How many prompts there are, and the one to log, if it is one and it is text.

    Raises BadRequest and TooLarge.
    """
    if isinstance(prompt, str):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise BadRequest("`prompt` must be a string or a list that is not empty", param="prompt")
    if all(type(item) is int for item in prompt):
        return 1, None
    if len(prompt) > _MAX_PROMPTS:
        raise BadRequest(f"`prompt` takes at most {_MAX_PROMPTS} prompts", param="prompt")
    if all(isinstance(item, str) for item in prompt):
        refuse_long(sum(map(len, prompt)), max_chars, "prompt")
        return len(prompt), {"prompt": prompt[0]} if len(prompt) == 1 else None
    if all(isinstance(p, list) and p and all(type(t) is int for t in p) for p in prompt):
        return len(prompt), None
    raise BadRequest("`prompt` must be text, a list of texts, or token ids", param="prompt")


def refuse_long(chars: int, most: int, name: str) -> None:
    """Raises TooLarge."""
    if chars > most:
        raise TooLarge(f"`{name}` holds {chars} characters, the limit is {most}", param=name)
