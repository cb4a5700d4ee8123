"""Any value anywhere in a line: it is understood, or a ValueError says why not. Nothing else."""

import copy
import json
from datetime import UTC, datetime

import pytest

from feedback.import_langfuse import langfuse, with_texts_of
from feedback.import_open_webui import open_webui
from feedback.imported import parse

ASKED = [{"role": "user", "content": "Name a river."}]
SAID = [{"role": "assistant", "content": "Elbe"}]
DEEP = "[" * 100_000
GARBAGE = (
    None,
    True,
    -1,
    1.5,
    1e300,
    float("nan"),
    float("inf"),
    1_700_000_000_000,
    10**400,
    "",
    "x",
    DEEP,
    '{"a": 1}',
    '{"a": "\\ud800"}',
    '["\\ud800"]',
    "0001-01-01",
    "9999-12-31T23:59:59+00:00",
    [],
    [1],
    [None],
    [[]],
    {},
    {"a": 1},
    {"value": 1},
)
PAIR = {
    "prompt": ASKED,
    "chosen": SAID,
    "rejected": "Rhine",
    "created_at": 1.0,
    "user": "u",
    "rater": "r",
    "heldout_rater": "true",
    "feedback_id": "fb-1",
    "chosen_finish_reason": "stop",
    "chosen_rank": 1,
    "rejected_rank": 2,
    "ranked_answers": 2,
    "ranked_pairs": 1,
    "metadata": {"tag": "x"},
}
ARGILLA = {
    "fields": {"prompt": "p", "response_a": "a", "response_b": "b"},
    "metadata": {"user": "u"},
    "suggestions": {"preference": {"value": "response_a"}},
    "responses": {"preference": [{"value": "response_b"}]},
}
RATED = {
    "prompt": "p",
    "completion": "c",
    "rating": 3,
    "thumb": "up",
    "flags": {"hallucination": True},
    "comment": "no",
}
PROMPT = {"messages": ASKED, "completion": "c", "other_completions": '["d"]', "metadata": "{}"}
SCORE = {
    "name": "thumb",
    "value": 1,
    "comment": "no",
    "timestamp": "2024-01-01T00:00:00Z",
    "trace": {
        "id": "t",
        "input": json.dumps({"messages": ASKED}),
        "output": {"choices": [{"message": SAID[0]}]},
        "userId": "u",
    },
}
WEBUI = {
    "user_id": "u",
    "data": {"rating": 1, "comment": "c", "sibling_model_ids": ["n"]},
    "meta": {"arena": True, "message_id": "2"},
    "created_at": 1,
    "snapshot": {
        "chat": {
            "chat": {
                "params": {"system": "Be brief."},
                "history": {
                    "messages": {
                        "1": {"id": "1", "role": "user", "content": "hi"},
                        "2": {"id": "2", "parentId": "1", "role": "assistant", "content": "yo"},
                        "3": {"id": "3", "parentId": "1", "role": "assistant", "content": "ho"},
                    }
                },
            }
        }
    },
}


def of_langfuse(what, row):
    items = [langfuse(what, value) for _, value in with_texts_of([(1, row)], what)]
    if not items:
        raise ValueError("neither")
    return items[0]


def places(value, path=()):
    """Every place in a value, itself included."""
    yield path
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in inside:
            yield from places(part, (*path, name))


def put(value, path, garbage):
    """A copy with something else in one place."""
    if not path:
        return garbage
    changed = copy.deepcopy(value)
    part = changed
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = garbage
    return changed


@pytest.mark.parametrize(
    ("read", "what", "line"),
    [
        (parse, "comparisons", PAIR),
        (parse, "comparisons", ARGILLA),
        (parse, "ratings", RATED),
        (parse, "demonstrations", {"messages": ASKED, "completion": SAID}),
        (parse, "prompts", PROMPT),
        (open_webui, "comparisons", WEBUI),
        (of_langfuse, "comparisons", SCORE),
    ],
)
def test_whatever_stands_in_a_line_it_is_understood_or_told_to_be_bad(read, what, line):
    assert read(what, line).answers
    understood = refused = 0
    for path in places(line):
        for garbage in GARBAGE:
            try:
                item = read(what, put(line, path, garbage))
            except ValueError:
                refused += 1
                continue
            understood += 1
            json.dumps([item.answers, item.metadata], ensure_ascii=False).encode()
            if item.created_at is not None:  # an export can write it
                assert datetime.fromtimestamp(item.created_at, UTC).year < 2101
    assert understood > 10
    assert refused > 10


def test_a_time_without_a_zone_is_utc():
    row = {"prompt": "p", "completion": "c"}
    times = ("2024-01-01T00:00:00", "2024-01-01T00:00:00Z", 1_704_067_200, datetime(2024, 1, 1))
    read = {parse("demonstrations", {**row, "created_at": time}).created_at for time in times}
    assert read == {1_704_067_200.0}
