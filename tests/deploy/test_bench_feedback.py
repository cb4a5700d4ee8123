"""The measurement of feedback: its comparison by hand, and a small one as it runs."""

import io
import itertools

import orjson
import pytest
from rich.console import Console

from core.keyring import Keyring
from core.records import Feedback, Output
from core.settings import Settings
from deploy.bench.feedback import Wanted, bench_feedback
from deploy.bench.feedback_held import Held, Reconciled, reconciled
from deploy.bench.feedback_pieces import CYCLE, held_as, pieces, said_at
from deploy.bench.feedback_report import LABELS, FeedbackReport, Killed
from feedback.sealing import seal_texts

UP, DOWN, COPY = {"thumb": "up"}, {"thumb": "down"}, {"signal": "copy"}
ACKNOWLEDGED = {"fb-1": UP, "fb-2": DOWN, "fb-3": COPY}
COUNTS = {"ratings": 2, "signals": 1}


def compared(said=ACKNOWLEDGED, indexed=None, counts=COUNTS) -> Reconciled:
    held = Held(said, frozenset(said if indexed is None else indexed), counts)
    return reconciled(ACKNOWLEDGED, held, num_acknowledged=4)


def test_what_is_held_as_it_was_acknowledged_is_sound():
    assert compared() == Reconciled(4, 3, lost=0, doubled=0, wrong=0, miscounted=0)
    assert compared().is_sound


@pytest.mark.parametrize(
    ("found", "lost", "doubled", "wrong", "miscounted"),
    [
        ({"said": {"fb-1": UP, "fb-2": DOWN}, "indexed": ACKNOWLEDGED}, 1, 0, 0, 0),
        ({"indexed": {"fb-1", "fb-3"}}, 1, 0, 0, 0),
        ({"said": {**ACKNOWLEDGED, "fb-4": UP}}, 0, 1, 0, 0),
        ({"indexed": {*ACKNOWLEDGED, "fb-4"}}, 0, 1, 0, 0),
        ({"said": {**ACKNOWLEDGED, "fb-2": UP}}, 0, 0, 1, 0),
        ({"counts": {"ratings": 5, "signals": 1}}, 0, 3, 0, 3),
        ({"counts": {"ratings": 1, "signals": 1}}, 0, 0, 0, 1),
        ({"counts": {"ratings": 2}}, 0, 0, 0, 1),
        ({"counts": {**COUNTS, "rankings": 1}}, 0, 1, 0, 1),
    ],
)
def test_each_way_to_break_the_promise_is_seen(found, lost, doubled, wrong, miscounted):
    seen = compared(**found)
    assert (seen.lost, seen.doubled, seen.wrong, seen.miscounted) == (
        *(lost, doubled, wrong, miscounted),
    )
    assert not seen.is_sound


def test_a_client_says_the_same_each_time_and_speaks_twice_about_one_answer():
    def first(count: int) -> list:
        ids = map("id {}".format, itertools.count())
        said = pieces(3, run="r", mint=lambda: next(ids), logged=["a", "b", "c"])
        return list(itertools.islice(said, count))

    cycle = first(CYCLE)
    assert cycle == first(CYCLE)
    about = [piece.about for piece in cycle]
    assert (about.count("reply"), about.count("again")) == (1, 1)
    assert min(about.count("new"), about.count("logged")) >= CYCLE // 4
    before, again = cycle[-2:]
    assert again.about == "again"
    assert again.rater == before.rater
    assert again.said != before.said
    assert "signal" not in before.said
    assert len({piece.once for piece in first(3 * CYCLE)}) == 3 * CYCLE
    assert len({piece.rater for piece in first(3 * CYCLE)}) == 3 * CYCLE - 3


def test_a_piece_is_a_request_with_its_key_and_its_words():
    piece = next(pieces(0, run="r", mint=lambda: "cmpl-x", logged=["a"]))
    head, _, body = piece.request("cmpl-y", "secret").partition(b"\r\n\r\n")
    assert b"idempotency-key: r-0-0" in head
    assert b"authorization: Bearer secret" in head
    assert int(head.rpartition(b"content-length: ")[2]) == len(body)
    said = orjson.loads(body)
    assert said == {"completion_id": "cmpl-y", "rater": "r 0 0", **piece.said}


@pytest.mark.parametrize("number", range(CYCLE))
def test_a_record_says_what_was_asked_in_the_same_words(number, keyring: Keyring):
    said = said_at(number)
    fields = {name: value for name, value in said.items() if name != "comment"}
    record = Feedback(
        id="fb-1",
        kind="signal" if "signal" in said else "rating",
        tenant="t",
        key_id="k",
        rater="r",
        created_at=1.0,
        updated_at=2.0,
        outputs=(Output(token="x", choice=0),),
        sealed=seal_texts({"comment": said["comment"]}, keyring) if "comment" in said else None,
        **fields,
    )
    assert held_as(record, keyring) == said


def test_the_aims_are_missed_when_something_was_lost():
    figures = dict.fromkeys(LABELS, 4.0)
    lost = Reconciled(9, 8, lost=1, doubled=0, wrong=0, miscounted=0)
    killed = Killed(
        reconciled=lost, killed=["redis"], refused=1, broken=2, seconds=3.0, silences=[1.0]
    )
    report = FeedbackReport(
        seconds=1.0, rounds=[figures, figures], bytes_per_record={"record": 400.0}, killed=killed
    )
    met = {aim.what: aim.met for aim in report.aims()}
    assert not report.is_sound
    assert (met["lost"], met["doubled"]) == (False, True)
    assert (met["feedback_per_second"], met["steady_p99_ms"]) == (False, True)


def test_the_tables_show_every_part_that_was_measured():
    sound = Reconciled(9_000, 8_000, lost=0, doubled=0, wrong=0, miscounted=0)
    killed = Killed(
        reconciled=sound, killed=["redis"], refused=1, broken=2, seconds=3.0, silences=[1.25]
    )
    report = FeedbackReport(
        seconds=1.0,
        rounds=[dict.fromkeys(LABELS, 4.0)],
        bytes_per_record={"record": 431.0},
        killed=killed,
        pii={"recall": {"email": 0.875}, "values": {"email": 16}, "prompts_per_second": 90.0},
        log={"slope_bytes_per_completion": 357.4},
    )
    text = io.StringIO()
    Console(width=120, file=text).print(report.tables())
    shown = text.getvalue()
    for part in (*LABELS.values(), "record 431", "redis (1.2)", "9,000 in 3 s", "0.875", "357.4"):
        assert part in shown, part


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_redis_and_the_gateway_are_killed(state_dir):
    wanted = Wanted(
        seconds=0.3, rounds=1, count=2000, kills=("redis", "gateway"), completions=0, pii=False
    )
    report = bench_feedback(wanted, settings=Settings(state_dir=state_dir), say=print)
    assert report.killed is not None
    assert report.killed.reconciled == Reconciled(
        2000, report.killed.reconciled.records, lost=0, doubled=0, wrong=0, miscounted=0
    )
    assert report.killed.killed == ("redis", "gateway")
    assert report.killed.broken > 0 < min(report.killed.silences)
    assert 1000 < report.killed.reconciled.records < 2000
    said = report.document()
    assert said["figures"].keys() == LABELS.keys()
    assert all(figure["median"] > 0 for figure in said["figures"].values())
    assert min(said["bytes_per_record"].values()) > 0
    assert orjson.loads(orjson.dumps(said))["killed"]["reconciled"]["lost"] == 0
    assert list(state_dir.glob("bench-*")) == []
