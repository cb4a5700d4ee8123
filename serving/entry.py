"""The log entry of a completion, as feedback/ingest.py reads it. Pure but for the clock.

Raw text and the end user's name are in it: it leaves this process only sealed (serving/inbox.py).
"""

import time
from typing import Any

from core.records import ApiKey
from serving.limits import estimated_tokens
from serving.requests import Asked
from serving.transcript import Transcript


def completion_id(asked: Asked, token: str) -> str:
    """The id that the engine is asked to give, and the client sees."""
    return f"{asked.api.id_prefix}{token}"


def tokens_used(asked: Asked, said: Transcript) -> tuple[int, int]:
    """Tokens of prompt and answers: as the engine counted, or by length if it had no time to.

    A reply that never began took none.
    """
    prompt, completion = said.prompt_tokens, said.completion_tokens
    if prompt is None:
        prompt = estimated_tokens(len(asked.canonical), 0, None, 0) if said.begun else 0
    if completion is None:
        shown = sum(len(part) for answer in said.answers.values() for part in answer.text)
        completion = estimated_tokens(shown, 0, None, 0)
    return prompt, completion


def log_entry(
    asked: Asked, key: ApiKey, said: Transcript, *, token: str, tag: str, error: str | None
) -> dict[str, Any]:
    """What was asked by whom, and what was sent; `error` says why it is not a whole reply."""
    return {
        "token": token,
        "id": completion_id(asked, token),
        "tenant": key.tenant,
        "key_id": key.id,
        "user": asked.end_user(key),
        "prompt_tag": tag,
        "messages": asked.prompt,
        "choices": said.choices(),
        "policy_versions": said.versions,
        "created_at": time.time(),
        "error": error,
        "sampling": {
            **asked.sampling(),
            "prompt_tokens": said.prompt_tokens,
            "completion_tokens": said.completion_tokens,
        },
        "metadata": asked.metadata,
        "trains": asked.trains and key.trains,
    }
