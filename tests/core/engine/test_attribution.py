from hypothesis import given
from hypothesis import strategies as st

from core.engine.attribution import ReplyMarks, VersionHistory

EVENTS = [b"data: one\n\n", b"data: two\n\n", b"data: three\n\n", b"data: [DONE]\n\n"]


class Wire:
    """What went out: the status line's headers and every chunk."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] | None = None
        self.chunks: list[bytes] = []

    async def __call__(self, message) -> None:
        if message["type"] == "http.response.start":
            assert self.headers is None
            self.headers = dict(message["headers"])
        else:
            self.chunks.append(message["body"])


class Reply:
    """A reply on its way out, with the history it is marked by."""

    def __init__(self, content_type: bytes = b"text/event-stream; charset=utf-8") -> None:
        self.history = VersionHistory("v1")
        self.wire = Wire()
        self.marks = ReplyMarks(self.wire, self.history)
        self.content_type = content_type

    async def start(self) -> None:
        headers = [(b"content-type", self.content_type)]
        await self.marks({"type": "http.response.start", "status": 200, "headers": headers})

    async def body(self, chunk: bytes, *, more: bool = True) -> None:
        await self.marks({"type": "http.response.body", "body": chunk, "more_body": more})


async def test_the_status_line_of_a_stream_waits_for_its_first_chunk_and_names_that_version():
    reply = Reply()
    await reply.start()
    assert reply.wire.headers is None
    await reply.body(EVENTS[0])
    assert reply.wire.headers[b"x-policy-version"] == b"v1"
    assert b"x-policy-versions" not in reply.wire.headers
    assert reply.wire.chunks == [EVENTS[0]]


async def test_a_stream_whose_first_token_came_after_a_swap_names_the_new_version_and_lists_both():
    reply = Reply()
    await reply.start()
    reply.history.switch("v2")
    await reply.body(EVENTS[0])
    await reply.body(EVENTS[1])
    assert reply.wire.headers[b"x-policy-version"] == b"v2"
    assert reply.wire.headers[b"x-policy-versions"] == b"v1,v2"
    assert reply.wire.chunks == EVENTS[:2]


async def test_a_swap_in_a_stream_puts_one_comment_before_the_next_event():
    reply = Reply()
    await reply.start()
    await reply.body(EVENTS[0])
    reply.history.switch("v2")
    for event in EVENTS[1:]:
        await reply.body(event)
    assert b"".join(reply.wire.chunks) == (
        b"data: one\n\n: policy-version v2\n\ndata: two\n\ndata: three\n\ndata: [DONE]\n\n"
    )
    assert reply.wire.headers[b"x-policy-version"] == b"v1"


async def test_two_swaps_between_two_events_leave_both_comments_in_order():
    reply = Reply()
    await reply.start()
    await reply.body(EVENTS[0])
    reply.history.switch("v2")
    reply.history.switch("v1")
    await reply.body(EVENTS[1])
    assert reply.wire.chunks[1] == (b": policy-version v2\n\n: policy-version v1\n\ndata: two\n\n")


async def test_the_comment_waits_for_the_end_of_an_event_that_is_cut_in_two():
    reply = Reply()
    await reply.start()
    await reply.body(b"data: o")
    reply.history.switch("v2")
    await reply.body(b"ne\n")
    await reply.body(b"\ndata: two\n\n")
    assert reply.wire.chunks == [
        b"data: o",
        b"ne\n",
        b"\n: policy-version v2\n\ndata: two\n\n",
    ]


async def test_a_swap_after_the_last_event_leaves_no_comment():
    reply = Reply()
    await reply.start()
    await reply.body(EVENTS[0])
    reply.history.switch("v2")
    await reply.body(b"", more=False)
    assert reply.wire.chunks == [EVENTS[0], b""]


async def test_a_unary_reply_names_the_version_it_was_forwarded_to():
    reply = Reply(b"application/json")
    await reply.start()
    await reply.body(b"{}", more=False)
    assert reply.wire.headers == {
        b"content-type": b"application/json",
        b"x-policy-version": b"v1",
    }


async def test_a_unary_reply_that_a_swap_crossed_lists_both_versions_and_keeps_its_body():
    reply = Reply(b"application/json")
    reply.history.switch("v2")
    await reply.start()
    await reply.body(b"{}\n\n{}", more=False)
    assert reply.wire.headers[b"x-policy-version"] == b"v1"
    assert reply.wire.headers[b"x-policy-versions"] == b"v1,v2"
    assert reply.wire.chunks == [b"{}\n\n{}"]


async def test_switching_to_the_current_version_marks_nothing():
    reply = Reply()
    await reply.start()
    await reply.body(EVENTS[0])
    reply.history.switch("v1")
    await reply.body(EVENTS[1])
    assert reply.wire.chunks == EVENTS[:2]


@given(cuts=st.lists(st.integers(1, 60), max_size=8), swap_after=st.integers(0, 8))
async def test_however_a_stream_is_cut_the_mark_is_an_event_of_its_own_and_all_else_is_unchanged(
    cuts, swap_after
):
    original = b"".join(EVENTS)
    edges = [0, *sorted({min(cut, len(original)) for cut in cuts}), len(original)]
    reply = Reply()
    await reply.start()
    for number, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        await reply.body(original[begin:end])
        if number == swap_after:
            reply.history.switch("v2")
    sent = b"".join(reply.wire.chunks)
    events = sent.removesuffix(b"\n\n").split(b"\n\n")
    marks = [index for index, event in enumerate(events) if event == b": policy-version v2"]
    assert len(marks) <= 1
    kept = [event for index, event in enumerate(events) if index not in marks]
    assert b"\n\n".join(kept) + b"\n\n" == original
    boundary_follows = edges[min(swap_after + 1, len(edges) - 1)] < len(original) - len(EVENTS[-1])
    if swap_after < len(edges) - 1 and boundary_follows:
        assert marks
