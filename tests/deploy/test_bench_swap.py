"""The sums of a measurement of swaps, and what a stream's event says."""

import pytest

from deploy.bench.maths import quantile
from deploy.bench.swap import Seen, Span, token_ids
from deploy.bench.swap_report import SwapReport, Tail, figures, tail

SPANS = [
    Span(began=10.0, held_from=14.0, admitted=14.5, ended=17.0, pause_seconds=0.1),
    Span(began=20.0, held_from=24.0, admitted=24.7, ended=27.0, pause_seconds=0.3),
]
SEEN = Seen(
    gaps=[(9.0, 9.9), (12.0, 12.2), (13.9, 14.3), (16.0, 16.3), (24.1, 24.8), (26.0, 26.05)],
    first_waits=[(1.0, 6.0), (14.2, 14.6), (24.2, 24.4)],
    tokens=700,
    replies=7,
)


def test_each_wait_counts_for_the_swap_and_the_part_of_it_that_it_overlaps():
    found = figures(8, "keep", SEEN, SPANS)
    assert (found.gap.median, found.gap.longest) == (pytest.approx(0.4), pytest.approx(0.7))
    assert found.gap_beside.longest == pytest.approx(0.3)
    assert found.gap_beside.median == pytest.approx(0.05)
    assert (found.first_chunk.median, found.first_chunk.longest) == (
        pytest.approx(0.2),
        pytest.approx(0.4),
    )
    assert (found.pause, found.whole) == (Tail(0.1, 0.3, 0.3), Tail(7.0, 7.0, 7.0))


def test_a_tail_is_the_quantiles_of_its_values():
    values = [float(number) for number in range(1, 201)]
    assert tail(values) == Tail(quantile(values, 0.5), quantile(values, 0.99), 200.0)
    with pytest.raises(ValueError, match="no values"):
        tail([])


def test_one_reply_or_token_gone_wrong_makes_the_whole_unsound():
    good = figures(8, "keep", SEEN, SPANS)
    for changes in ({"failed": 1}, {"misattributed": 1}):
        seen = Seen(gaps=SEEN.gaps, tokens=700, replies=7, **changes)
        bad = figures(8, "drain", seen, SPANS)
        assert not SwapReport([good, bad], 20.0, 400, 100.0).is_sound
    report = SwapReport([good], 20.0, 400, 100.0)
    assert report.is_sound
    assert report.document()["limit_seconds"] == 4.0
    assert report.table().row_count == 1


def test_tokens_are_read_from_events_and_the_last_event_has_none():
    event = b'data: {"choices":[{"token_ids":[3,77]},{"token_ids":null}]}'
    assert token_ids(event) == [3, 77]
    assert token_ids(b'data: {"error":{"code":503}}') == []
    assert token_ids(b"data: [DONE]") == []
