"""What rows of all exports have in common: who said it and when, prompts as conversations, tags.

Pure. export.py and export_ratings.py make rows of it; the importers read the same columns.
"""

import json
from datetime import UTC, datetime
from typing import Any, Literal

from core.records import Completion

What = Literal["comparisons", "ratings", "demonstrations", "prompts"]
Row = dict[str, Any]


def told(row: Row, moment: float | None) -> Row:
    """Who said it of whose prompt, and when: the columns that all that people say has."""
    return {
        "rater": row["rater"],
        "user": row["user"],
        "split": row["split"],
        "heldout_rater": row["heldout_rater"],
        "created_at": iso(moment) if moment is not None else None,
    }


def iso(moment: float) -> str:
    """Seconds since 1970 as ISO 8601, UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat()


def metadata_of(completion: Completion | None) -> str:
    """The tags of a request as JSON: columns of readers have no room for free names."""
    tags = completion.metadata if completion else {}
    return json.dumps(tags, sort_keys=True, ensure_ascii=False)


def messages_of(text: str) -> list[dict[str, str]]:
    """A prompt as a conversation; one of a text completion has the role `prompt`."""
    read = json.loads(text)
    return [{"role": "prompt", "content": read["prompt"]}] if isinstance(read, dict) else read
