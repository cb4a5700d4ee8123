# ruff: noqa: E501 - data, a row a line
"""Whole records through the filter: evasion, JSON, consistency, hostile text."""

import json
import random

import pytest

from feedback.pii.record import Filtered, filter_record, filter_version, loaded_model
from feedback.pii.rules import PLACEHOLDER
from tests.feedback.pii.carriers import CARRIERS
from tests.feedback.pii.carriers_second import SECOND_CARRIERS
from tests.feedback.pii.labelled import GENERATORS, rows

SURE = ("email", "card", "iban", "ssn", "secret")


def _filtered(*texts: str) -> Filtered:
    return filter_record(texts, deadline_seconds=30)


def test_no_canary_of_a_sure_shape_survives() -> None:
    draw = random.Random(17)
    for _ in range(12):
        canaries = [GENERATORS[kind](draw) for kind in SURE for _ in range(8)]
        clean = " ".join(
            _filtered(" | ".join(canaries), "\n".join(canaries), f"see {canaries}").texts
        )
        assert [canary for canary in canaries if canary in clean] == []


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("mail jane\u200b.doe@mail.example.com now", "mail <EMAIL_1> now"),
        ("p\u0430ul.vex@m\u0430il.com wrote", "<EMAIL_1> wrote"),
        ("x jane%40mail.example.com y", "x <EMAIL_1> y"),
        ("x jane\\u0040mail.example.com y", "x <EMAIL_1> y"),
        ("card \uff14\uff11\uff11\uff11 1111 1111 1111 ok", "card <CARD_1> ok"),
        ("card 4111 1111\n1111 1111", "card <CARD_1>"),
        ("IBAN DE89 3704\n0044 0532 0130 00", "IBAN <IBAN_1>"),
        ("tel\u00a0+1\u00a0212\u00a0555\u00a00142", "tel\u00a0<PHONE_1>"),
        (
            "\U0001f389 My name is Zoe\u0308 Vex \U0001f389",
            "\U0001f389 My name is <PERSON_1> \U0001f389",
        ),
        ("my name is maria gonzalez and i am here", "my name is <PERSON_1> and i am here"),
        ("-password: hunter2\n+password: hunter3", "-password: <SECRET_1>\n+password: <SECRET_2>"),
        ("id,name\n1,Ottoline Vex\n2,Tunde", "id,name\n1,<PERSON_1>\n2,<PERSON_2>"),
        ("from 12 Long Oak Road\nBristol\nBS1 4ST please", "from <ADDRESS_1> please"),
        ("DB_PASSWORD=tr0ub4dor\nPORT=80", "DB_PASSWORD=<SECRET_1>\nPORT=80"),
        ("INSERT INTO t VALUES ('ann@mail.example.org')", "INSERT INTO t VALUES ('<EMAIL_1>')"),
        ("a,email\n1,ann@mail.example.org", "a,email\n1,<EMAIL_1>"),
        ("ann @ mail . com is mine", "<EMAIL_1> is mine"),
        ("\u202eann@mail.example.org\u202c now", "\u202e<EMAIL_1>\u202c now"),
        ("\U0001f469\u200d\U0001f4bb ann@mail.example.org", "\U0001f469\u200d\U0001f4bb <EMAIL_1>"),
    ],
)
def test_evasion_does_not_help(text: str, clean: str) -> None:
    assert _filtered(text).texts == (clean,)


def test_the_same_person_has_the_same_placeholder_in_every_turn() -> None:
    done = _filtered(
        "My name is Ottoline Vex.",
        "Hello!",
        "Then VEX met Tunde Mbeki, and ottoline's dog",
        "Dear Ottoline, hi",
    )
    assert done.texts[0] == "My name is <PERSON_1>."
    assert done.texts[1] == "Hello!"
    assert done.texts[2].startswith("Then <PERSON_1> met <PERSON_2>")
    assert done.texts[3] == "Dear <PERSON_1>, hi"
    assert done.counts == {"PERSON": 4}
    assert done.version == filter_version()


def test_placeholders_of_two_records_say_nothing_of_each_other() -> None:
    ann, bob = "ann.vex@mail.example.org", "bob.vex@mail.example.org"
    assert _filtered(f"to {ann}, cc {bob}").texts == ("to <EMAIL_1>, cc <EMAIL_2>",)
    assert _filtered(f"to {bob}, cc {ann}").texts == ("to <EMAIL_1>, cc <EMAIL_2>",)


def test_numbers_of_placeholders_that_users_wrote_are_not_given_again() -> None:
    assert _filtered("<EMAIL_7> and ann@mail.example.org").texts == ("<EMAIL_7> and <EMAIL_8>",)


def test_filtering_twice_changes_nothing_more() -> None:
    for row in rows({**CARRIERS, **SECOND_CARRIERS}, per_template=1, seed=29):
        once = _filtered(row.text)
        twice = _filtered(*once.texts)
        assert twice.texts == once.texts
        assert twice.counts == {}


def test_tool_arguments_stay_json_of_the_same_shape() -> None:
    arguments = {
        "to": "ann@mail.example.org", "card": 4111111111111111, "deep": [{"note": 'Hi\nOttoline Vex, "ok" \\ \u00fc', "n": 3, "x": None}],
        "bob@mail.example.org": True, "password": "s3cr3t!\\\"x", "address": "42 Maple Street, Springfield, IL 62704",
    }  # fmt: skip
    for text in (json.dumps(arguments), json.dumps(arguments, ensure_ascii=False, indent=2)):
        clean = json.loads(_filtered(text).texts[0])
        assert clean["to"] == "<EMAIL_1>"
        assert clean["card"] == "<CARD_1>"
        assert clean["deep"][0]["n"] == 3
        assert clean["deep"][0]["x"] is None
        assert "Ottoline" not in clean["deep"][0]["note"]
        assert clean["deep"][0]["note"].endswith('"ok" \\ \u00fc')
        assert clean["<EMAIL_2>"] is True
        assert clean["password"].startswith("<SECRET_")
        assert clean["address"] == "<ADDRESS_1>"


def test_every_labelled_row_as_a_json_string_stays_json() -> None:
    for row in rows(SECOND_CARRIERS, per_template=1, seed=31):
        text = json.dumps({"q": row.text, "k": [row.text, 7]})
        clean = json.loads(_filtered(text).texts[0])
        assert set(clean) == {"q", "k"}
        assert clean["k"][1] == 7


@pytest.mark.parametrize("unit", ["(", "<", '"', "a", "A", "1", "a.", "a@", "1 ", '"\n"', "password=", "eyJ", "ab_", "-----BEGIN PRIVATE KEY-----", "(<", "[", '{"a":', "Aa ", "12 Elm ", "+1 "])  # fmt: skip
def test_hostile_text_is_done_within_a_second_per_20_kb(unit: str) -> None:
    # what follows the run makes every rule look at the window that it ends
    text = (unit * 20_000)[:20_000] + " @ at dot tel +1 (2) password= iban card born passport x@"
    # The bound is the filter's own deadline, so what fails here is the filter and not this clock.
    done = filter_record([text], deadline_seconds=5)
    assert len(PLACEHOLDER.sub("", done.texts[0])) <= len(text)


def test_words_of_prompts_do_not_stay_in_the_models_memory() -> None:
    strings = loaded_model().vocab.strings
    draw = random.Random(5)
    _filtered("Warm Up with Ottoline Vex")
    before = len(strings)
    for _ in range(20):
        words = ("".join(draw.choices("abcdefghijklmnop", k=9)).capitalize() for _ in range(12))
        _filtered("We met " + " and then ".join(words))
    assert len(strings) == before
