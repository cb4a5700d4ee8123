"""The normalised view: what it undoes, and that its map leads back to the text as written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.pii.normalise import LONGEST_RUN, normalise
from feedback.pii.rules import Kind, Span


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("ja\u200bne\u2060", "jane"),
        ("\uff11\uff12\u0663", "123"),
        ("a\u00a0b\u2009c", "a b c"),
        ("1\u20112\u20133", "1-2-3"),
        ("p\u0430ul", "paul"),
        ("\u041f\u0440\u0438\u0432\u0435\u0442", "\u041f\u0440\u0438\u0432\u0435\u0442"),
        ("a%40b \\u0040 &#64;", "a@b @ @"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("\u201cx\u201d \u2019", '"x" \''),
    ],
)
def test_what_is_written_is_read_plainly(written: str, read: str) -> None:
    assert normalise(written).text == read


def test_json_escapes_are_read_as_json_reads_them() -> None:
    assert normalise('{"a": "x\\ny\\u0041\\"\\\\n"}', is_json=True).text == '{"a": "x\nyA"\\n"}'


def test_a_span_leads_back_over_dropped_and_joined_characters() -> None:
    text = "\U0001f389 ja\u200bne\u0301 42"
    view = normalise(text)
    start = view.text.index("jan")
    span = view.original(Span(start, start + 4, Kind.PERSON))
    assert text[span.start : span.end] == "ja\u200bne\u0301"


def test_a_long_run_is_cut_and_its_last_character_stands_for_the_rest() -> None:
    text = "x" + "(" * 1000 + "y"
    view = normalise(text)
    assert len(view.text) == LONGEST_RUN + 2
    span = view.original(Span(1, LONGEST_RUN + 1, Kind.SECRET))
    assert (span.start, span.end) == (1, 1001)


@given(st.text(max_size=200), st.booleans())
def test_the_map_is_monotonic_and_covers_only_the_text(text: str, is_json: bool) -> None:
    view = normalise(text, is_json=is_json)
    before = 0
    for index in range(len(view.text)):
        span = view.original(Span(index, index + 1, Kind.PERSON))
        assert before <= span.start < span.end <= len(text)
        before = span.end
