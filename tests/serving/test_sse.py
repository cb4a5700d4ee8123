"""Cutting streams into events changes no byte, wherever the network cuts them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from serving import sse

PIECES = st.lists(
    st.sampled_from([b"data: {}", b"data: x", b": note", b"\n", b"\r\n", b"\r", b"\n\n", b"id: 1"])
)


@settings(deadline=None)
@given(pieces=PIECES, cuts=st.lists(st.integers(0, 60)))
def test_events_and_rest_are_the_bytes_that_came(pieces, cuts):
    whole = b"".join(pieces)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    events, rest = [], b""
    for start, end in zip(edges, edges[1:], strict=False):
        found, rest = sse.split(rest + whole[start:end])
        events += found
    assert b"".join(events) + rest == whole


@settings(deadline=None)
@given(words=st.lists(st.text("abé🙂{}\\n", min_size=1)), cut=st.integers(0, 200))
def test_cutting_anywhere_finds_the_same_events(words, cut):
    stream = b"".join(sse.event_of(word.encode()) for word in words)
    first, rest = sse.split(stream[:cut])
    second, rest = sse.split(rest + stream[cut:])
    assert [sse.data_of(event) for event in first + second] == [w.encode() for w in words]
    assert rest == b""


def test_carriage_returns_end_events_too():
    events, rest = sse.split(b"data: a\r\n\r\ndata: b\n\ndata: c")
    assert events == [b"data: a\r\n\r\n", b"data: b\n\n"]
    assert rest == b"data: c"
    assert sse.data_of(events[0]) == b"a"


def test_data_of_several_lines_is_joined_and_comments_are_no_data():
    assert sse.data_of(b": x\ndata: a\ndata:b\nid: 3\n\n") == b"a\nb"
    assert sse.data_of(b": ping\n\n") is None
    assert sse.comments_of(b": policy-version v1\n:x\ndata: 1\n\n") == [b"policy-version v1", b"x"]
