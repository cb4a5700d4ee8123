# ruff: noqa: E501 - data, a row a line
"""How much the filter finds and how much it spares, against floors, on rows that are labelled.

Four sets: the two that rules were tuned on, `open`, and `kept`, whose misses nobody looks at.
"""

from collections.abc import Iterable

import pytest

from core import keys
from core.records import Completion
from deploy.bench.pii import PiiFigures, hidden_parts, is_left, measure_ordinary, measure_rows
from deploy.bench.pii import pii_figures as figures_of
from deploy.bench.pii_labelled import GENERATORS, Row
from deploy.bench.pii_labelled import rows as fresh_rows
from deploy.bench.pii_ordinary import ORDINARY as FRESH_ORDINARY
from feedback.ingest import ingest_batch
from feedback.pii.record import Plan, filter_record
from feedback.pii.worker import PiiWorker
from tests.feedback.factory import entry, put
from tests.feedback.pii.carriers import CARRIERS
from tests.feedback.pii.carriers_second import SECOND_CARRIERS
from tests.feedback.pii.labelled import rows
from tests.feedback.pii.ordinary import ORDINARY

FLOORS = {
    "email": 0.97, "card": 0.98, "iban": 0.98, "ssn": 0.99, "ip": 0.92, "url_token": 0.95, "secret": 0.95, "password": 0.90,
    "birth_date": 0.90, "passport": 0.90, "national_id": 0.85, "phone": 0.85, "username": 0.60, "person": 0.78, "address": 0.65,
}  # fmt: skip


def _sets() -> dict[str, Iterable[Row]]:
    return {
        "tuned on": rows(CARRIERS, per_template=2, seed=3),
        "tuned on too": rows(SECOND_CARRIERS, per_template=2, seed=5),
        "open": fresh_rows("open", per_carrier=6, seed=11),
        "kept": fresh_rows("kept", per_carrier=6, seed=12),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tuned on", "tuned on too", "open", "kept"])
def test_recall_and_precision_are_over_their_floors(name: str) -> None:
    recall, values, clean, precision, _ = measure_rows(_sets()[name])
    assert set(recall) == set(FLOORS) == set(GENERATORS)
    assert min(values.values()) >= 6
    assert {kind: r for kind, r in recall.items() if r < FLOORS[kind]} == {}
    assert clean >= 0.75
    assert precision >= 0.93


async def test_what_is_stored_is_what_the_filter_gives(redis, keyring, settings) -> None:
    """So the floors hold for what a prompt leaves in the store, the answer beside it included."""
    chosen = list(fresh_rows("open", per_carrier=1, seed=4))[::4]
    await put(redis, keyring, *(entry(keyring, prompt=r.text, user=f"u{r.text}") for r in chosen))
    pii = PiiWorker()
    try:
        assert await ingest_batch(redis, keyring, settings, pii, limit=100) == len(chosen)
    finally:
        pii.close()
    stored = set()
    async for key in redis.scan_iter(keys.completion("*")):
        record = Completion.model_validate_json(await redis.get(key))
        stored.add(record.messages[0]["content"])
    expected = [filter_record([r.text, "The Elbe."], deadline_seconds=20).texts[0] for r in chosen]
    assert stored == set(expected)
    assert sum("<" in text for text in stored) > 0.8 * len(stored)


@pytest.mark.slow
def test_a_second_model_finds_no_fewer_people() -> None:
    kept = list(fresh_rows("kept", per_carrier=2, seed=13))
    first = measure_rows(kept)[0]
    second = measure_rows(kept, plan=Plan(second_tier=True))[0]
    assert second["person"] >= first["person"]
    assert second["person"] >= 0.8


@pytest.mark.parametrize("prompts", [ORDINARY, FRESH_ORDINARY], ids=["tuned on", "fresh"])
def test_ordinary_prompts_are_left_alone(prompts: tuple[str, ...]) -> None:
    touched, others, letters = measure_ordinary(prompts)
    assert touched <= 0.20
    assert others <= 0.05
    assert letters <= 0.08


def test_a_value_is_left_when_one_word_of_it_is() -> None:
    row = Row("Ask Ann Vex, not Ann.", (("person", "Ann Vex"),))
    assert is_left(row, "Ann Vex", "Ask <PERSON_1> Vex, not Ann.")
    assert not is_left(row, "Ann Vex", "Ask <PERSON_1>, not Ann.")


def test_hidden_parts_are_found_by_what_stands_around_them() -> None:
    text = "Ann (a.b) met Bo, 7."
    assert hidden_parts(text, "<PERSON_1> (<EMAIL_1>) met <PERSON_2>, 7.") == ["Ann", "a.b", "Bo"]
    assert hidden_parts(text, text) == []


def test_precision_counts_what_was_hidden_for_nothing() -> None:
    row = Row(
        "Mail ann@mail.example.org, born on 3 March 1984.", (("email", "ann@mail.example.org"),)
    )
    _, _, clean, precision, misses = measure_rows([row])
    assert (clean, precision, misses) == (1.0, 0.5, [])


@pytest.mark.slow
def test_the_bench_gives_every_figure() -> None:
    figures = figures_of(part="kept", per_carrier=1, seed=2)
    assert isinstance(figures, PiiFigures)
    assert set(figures.recall) == set(GENERATORS)
    assert figures.prompts_per_second == pytest.approx(1000 / figures.cpu_ms_per_prompt)
    assert 0 < figures.rows_clean <= 1
