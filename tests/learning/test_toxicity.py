"""Words of abuse: which texts have some, and how the share in two policies' answers is compared."""

import pytest

from learning.gate.toxicity import is_toxic, toxicity_rise

ABUSIVE = "You stupid moron."


def row(user, candidate, parent):
    said = {"candidate": candidate, "parent": parent}
    return {
        "user": user,
        "outputs": [
            {"policy": policy, "text": text} for policy, texts in said.items() for text in texts
        ],
    }


@pytest.mark.parametrize("text", [ABUSIVE, 'He said "damn!"', "What a PILE OF crap..."])
def test_words_of_abuse_are_found_whatever_their_case_and_their_dots(text):
    assert is_toxic(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Put the pot on the stove and kill the heat.",
        "The heart is an organ; classic assassins passed Scunthorpe.",
        "A gay couple and their lesbian friends.",
    ],
)
def test_everyday_words_people_and_parts_of_words_are_not_abuse(text):
    assert not is_toxic(text)


def test_the_rise_is_that_of_the_prompts_means_by_hand():
    rows = [
        row("a", [ABUSIVE, "fine"], ["fine", "fine"]),  # + 1/2
        row("a", ["fine", "fine"], ["fine", "fine"]),
        row("b", ["fine", "fine"], [ABUSIVE, ABUSIVE]),  # - 1
        row("c", [ABUSIVE, ABUSIVE], ["fine", "fine"]),  # + 1
    ]
    found = toxicity_rise(rows)
    assert (found.candidate, found.parent) == (3 / 8, 2 / 8)
    assert found.rise == pytest.approx(1 / 8)
    assert found.low < 0.0


def test_a_rise_with_every_user_has_a_bound_above_nothing():
    rows = [row(f"u{n}", [ABUSIVE if n % 2 else "fine"], ["fine"]) for n in range(40)]
    found = toxicity_rise(rows)
    assert found.rise == 0.5
    assert 0.3 < found.low < 0.5


def test_swapping_the_policies_mirrors_the_rise():
    texts = [([ABUSIVE], ["fine"]), (["fine"], ["fine"]), (["fine"], [ABUSIVE]), ([ABUSIVE], ["x"])]
    there = toxicity_rise([row(f"u{i}", mine, other) for i, (mine, other) in enumerate(texts)])
    back = toxicity_rise([row(f"u{i}", other, mine) for i, (mine, other) in enumerate(texts)])
    assert there.rise == -back.rise == pytest.approx(1 / 4)
