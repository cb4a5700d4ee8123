"""Recognizers of somebody's own: loaded in the child, united with the rules, failing closed."""

import pytest

from feedback.pii.recognizers import kind_of, load_recognizers, recognized
from feedback.pii.record import Plan, filter_record, filter_version
from feedback.pii.rules import PLACEHOLDER, Span
from feedback.pii.worker import PiiFailed, PiiWorker
from tests.feedback.pii import own_recognizers

pytestmark = pytest.mark.thorough

HERE = "tests.feedback.pii.own_recognizers"
TEXT = "Badge BDG4711 of ann@mail.example.org is in ward nine, BDG4711 again, BDG4712 too"
CLEAR = (
    "Badge <CUSTOM_EMPLOYEE_BADGE_1> of <EMAIL_1> is in <PERSON_1>, "
    "<CUSTOM_EMPLOYEE_BADGE_1> again, <CUSTOM_EMPLOYEE_BADGE_2> too"
)


def test_what_they_find_is_hidden_with_ours_and_stays_hidden() -> None:
    plan = Plan(recognizers=(f"{HERE}:Badge", f"{HERE}:Wards"))
    once = filter_record([TEXT], deadline_seconds=10, plan=plan)
    assert once.texts == (CLEAR,)
    assert once.counts == {"CUSTOM_EMPLOYEE_BADGE": 3, "EMAIL": 1, "PERSON": 1}
    assert filter_record(once.texts, deadline_seconds=10, plan=plan).texts == once.texts


def test_a_record_says_which_recognizers_read_it() -> None:
    versions = {
        filter_version(plan)
        for plan in (
            Plan(),
            Plan(second_tier=True),
            Plan(recognizers=(f"{HERE}:Badge",)),
            Plan(recognizers=(f"{HERE}:Wards",)),
        )
    }
    assert len(versions) == 4
    plan = Plan(recognizers=(f"{HERE}:Wards",))
    assert filter_record(["x"], deadline_seconds=10, plan=plan).version == filter_version(plan)


def test_an_instance_is_used_as_it_is_and_told_its_own_entities() -> None:
    (recognizer,) = load_recognizers([f"{HERE}:badge"])
    assert recognizer is own_recognizers.badge
    list(recognized([recognizer], "nothing"))
    assert own_recognizers.badge.asked_for[-1] == ["EMPLOYEE_BADGE2"]


@pytest.mark.parametrize(
    ("entity_type", "kind"),
    [
        ("EMAIL_ADDRESS", "EMAIL"),
        ("person", "PERSON"),
        ("Room No. 7", "CUSTOM_ROOM_NO"),
        ("123", "CUSTOM_ITEM"),
        ("Ж", "CUSTOM_ITEM"),
        ("A" * 99, "CUSTOM_" + "A" * 40),
    ],
)
def test_every_type_becomes_a_placeholder_that_is_known_again(entity_type: str, kind: str) -> None:
    assert kind_of(entity_type) == kind
    assert PLACEHOLDER.fullmatch(f"<{kind_of(entity_type)}_12>")


def test_a_placeholder_of_theirs_cannot_hide_digits() -> None:
    assert not PLACEHOLDER.fullmatch("<CUSTOM_AKIA7Q_1>")


def test_the_child_reads_with_them() -> None:
    worker = PiiWorker()
    worker.use(Plan(recognizers=(f"{HERE}:Badge", f"{HERE}:Wards")))
    try:
        version = worker.start()
        done = worker.filter_record([TEXT], deadline_seconds=10)
        assert done.texts == (CLEAR,)
        assert done.version == version
    finally:
        worker.close()


@pytest.mark.parametrize(("name", "reason"), [("Broken", "RuntimeError"), ("Astray", "ValueError")])
def test_one_that_fails_keeps_the_record_back(name: str, reason: str) -> None:
    worker = PiiWorker(Plan(recognizers=(f"{HERE}:{name}",)))
    try:
        with pytest.raises(PiiFailed) as failure:
            worker.filter_record(["canary-hunter2"], deadline_seconds=10)
        assert failure.value.reason == reason
        assert "hunter2" not in str(failure.value)
    finally:
        worker.close()


@pytest.mark.parametrize("spec", [f"{HERE}:Missing", "no.such.module:X", f"{HERE}:not_one", "x"])
def test_one_that_cannot_be_loaded_stops_the_filter_from_starting(spec: str) -> None:
    worker = PiiWorker(Plan(recognizers=(spec,)))
    with pytest.raises(PiiFailed) as failure:
        worker.filter_record(["text"], deadline_seconds=10)
    assert failure.value.reason == "start"
    assert worker.pid is None


def test_spans_are_those_of_the_text() -> None:
    (recognizer,) = load_recognizers([f"{HERE}:Wards"])
    assert list(recognized([recognizer], "in ward nine.")) == [Span(3, 12, "PERSON")]
