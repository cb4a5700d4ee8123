"""From what people say to one value for each of them."""

import math

import pytest

from core.canary import Canary, cohort_of
from core.records import Feedback, Output
from learning.canary.words import Unit, Word, observed, settled, words_of
from tests.feedback.factory import completion

SPLIT = Canary(
    candidate="v0001", parent="v0000", share=0.5, salt="s", mode="split", started_at=100.0
)
WATCH = SPLIT.model_copy(update={"mode": "watch", "share": 1.0})
SIGNALS = ("thumbs", "ratings", "rankings", "signals")


def users(side: str, count: int) -> list[str]:
    """Users of a cohort."""
    names = (f"user {n}" for n in range(1000))
    return [n for n in names if cohort_of(n, SPLIT.salt, SPLIT.share) == side][:count]


NEW, OTHER_NEW = users("candidate", 2)
OLD, OTHER_OLD = users("live", 2)


def answers(*made: tuple[str, str, str], at=150.0, **other):
    """Completions by token: (token, user, version)."""
    return {
        token: completion(
            token, user=user, policy_versions=tuple(version.split("+")), created_at=at, **other
        )
        for token, user, version in made
    }


LOG = answers(("a", NEW, "v0001"), ("b", OLD, "v0000"), ("c", NEW, "v0001"), ("d", OLD, "v0001"))


def said(*tokens: str, kind="rating", at=200.0, **other) -> Feedback:
    fields = {"rater": "key", "by_end_user": True, "trains": True, **other}
    return Feedback(
        id=f"fb-{'-'.join(tokens)}-{at}-{kind}",
        kind=kind,
        tenant="acme",
        key_id="0a0b0c0d",
        created_at=at,
        updated_at=at,
        outputs=tuple(Output(token=token, choice=0) for token in tokens),
        **fields,
    )


def words(*feedback: Feedback, log=LOG, canary=SPLIT) -> list[tuple]:
    found = words_of(feedback, log, canary=canary)
    return [(w.signal, w.speaker, w.side, round(w.value, 3)) for w in found]


def test_thumbs_ratings_and_signals_become_values_on_the_users_side():
    found = words(
        said("a", thumb="up", rating=7, at=200),
        said("b", thumb="down", rating=1, at=201),
        said("a", kind="signal", signal="copy", at=202),
        said("b", kind="signal", signal="regenerate", at=203),
    )
    assert found == [
        ("thumbs", NEW, "candidate", 1.0),
        ("ratings", NEW, "candidate", 1.0),
        ("thumbs", OLD, "live", 0.0),
        ("ratings", OLD, "live", 0.0),
        ("signals", NEW, "candidate", 1.0),
        ("signals", OLD, "live", 0.0),
    ]
    assert words(said("a", rating=4))[0][3] == 0.5


def test_the_side_is_the_users_whichever_version_answered():
    fallback = answers(("f", NEW, "v0000"))
    assert words(said("f", thumb="up"), log=fallback) == [("thumbs", NEW, "candidate", 1.0)]


def test_a_named_rater_speaks_as_themselves_for_the_user_they_spoke_of():
    found = words(said("a", thumb="up", by_end_user=False, rater="rita"))
    assert found == [("thumbs", "rita", "candidate", 1.0)]


@pytest.mark.parametrize(
    "other", [{"withdrawn": True}, {"held": "burst"}, {"trains": False}], ids=str
)
def test_what_was_taken_back_held_back_or_kept_out_says_nothing(other):
    assert words(said("a", thumb="up", **other)) == []


def test_held_out_raters_judge():
    assert words(said("a", thumb="up", heldout_rater=True)) != []


@pytest.mark.parametrize(
    "log",
    [
        {},
        answers(("a", NEW, "v0001"), at=99.0),
        answers(("a", NEW, "v0007")),
        answers(("a", NEW, "v0000+v0001")),
        answers(("a", NEW, "v0001"), error="engine"),
        answers(("a", NEW, "v0001"), outcome="opted_out"),
    ],
    ids=["not logged", "before", "another version", "mixed", "broken off", "opted out"],
)
def test_answers_that_say_nothing_about_the_canary_count_for_nothing(log):
    assert words(said("a", thumb="up"), log=log) == []


def test_a_ranking_of_both_versions_compares_them_directly():
    order = {"kind": "ranking", "ranking": ((0,), (1, 2))}
    assert words(said("a", "b", "c", rater="r", by_end_user=False, **order)) == [
        ("rankings", "r", "paired", 0.75)  # a before b, c tied with it
    ]
    assert words(said("b", "a", kind="ranking", ranking=((0,), (1,)), by_end_user=False)) == [
        ("rankings", "key", "paired", 0.0)
    ]
    assert words(said("a", "c", kind="ranking", ranking=((0,), (1,)), by_end_user=False)) == []


def test_in_a_watch_the_parent_is_what_was_said_before_and_the_candidate_since():
    before = answers(("p", OLD, "v0000"), ("q", NEW, "v0001"), at=50.0)
    after = answers(("c", OLD, "v0001"), at=150.0)
    found = words(
        said("p", thumb="up", at=60.0),
        said("p", rating=1, at=160.0),  # too late to be of the time before
        said("q", thumb="up", at=61.0),  # an answer from before the canary
        said("c", thumb="down", at=170.0),
        log=before | after,
        canary=WATCH,
    )
    assert found == [("thumbs", OLD, "live", 1.0), ("thumbs", OLD, "candidate", 0.0)]


# --- units ----------------------------------------------------------------------------------


def word(speaker: str, value: float, at: float, side="candidate", signal="thumbs") -> Word:
    return Word(signal, speaker, side, value, at)


def units(*said: Word, known=(), until=1000.0, seconds=60.0, canary=SPLIT):
    return settled(said, known=known, canary=canary, until=until, seconds=seconds)


def test_a_speakers_first_while_is_one_value_and_later_words_change_nothing():
    early = [word("ann", 1.0, 100), word("ann", 0.0, 130), word("bob", 0.0, 110)]
    late = word("ann", 0.0, 161)
    assert units(*early, late) == [
        Unit("thumbs", "ann", "candidate", 0.5),
        Unit("thumbs", "bob", "candidate", 0.0),
    ]


def test_who_is_still_speaking_is_waited_for_and_who_is_known_is_not_asked_again():
    said = [word("ann", 1.0, 100), word("bob", 0.0, 170)]
    first = units(*said, until=200.0)
    assert [u.speaker for u in first] == ["ann"]
    assert [u.speaker for u in units(*said, known=first, until=230.0)] == ["bob"]


def test_a_speaker_has_one_side_in_a_split_and_a_time_before_in_a_watch():
    said = [word("ann", 1.0, 100), word("ann", 0.0, 110, side="live")]
    assert units(*said) == [Unit("thumbs", "ann", "candidate", 1.0)]
    assert len(units(*said, canary=WATCH)) == 2


def test_all_that_was_said_before_is_one_value_each():
    said = [word("ann", 1.0, 1, side="live"), word("ann", 0.0, 90_000, side="live")]
    found = units(*said, until=math.inf, seconds=math.inf, canary=WATCH)
    assert found == [Unit("thumbs", "ann", "live", 0.5)]


def seen(canary, *kept: Unit):
    return observed(kept, canary=canary, signals=SIGNALS, users_candidate=7, users_live=9)


def test_observations_have_every_signal_and_rankings_no_live_side():
    said = seen(
        SPLIT,
        Unit("thumbs", "ann", "candidate", 1.0),
        Unit("thumbs", "bob", "live", 0.25),
        Unit("rankings", "eve", "paired", 0.75),
    )
    assert said.candidate == {"thumbs": [1.0], "ratings": [], "rankings": [0.75], "signals": []}
    assert said.live == {"thumbs": [0.25], "ratings": [], "signals": []}
    assert (said.users_candidate, said.users_live, said.share) == (7, 9, 0.5)


def test_in_a_watch_each_is_compared_with_themselves_before_or_with_another_and_pairs_stay():
    old = [Unit("thumbs", name, "live", v) for name, v in (("ann", 0.1), ("bob", 0.2), ("c", 0.3))]
    new = [
        Unit("thumbs", name, "candidate", v)
        for name, v in (("bob", 0.9), ("new", 0.8), ("ann", 0.7), ("late", 0.6))
    ]
    for count in range(len(new) + 1):
        said = seen(WATCH, *old, *new[:count])
        assert said.candidate["thumbs"] == [0.9, 0.8, 0.7][:count]
        assert said.live["thumbs"] == [0.2, 0.1, 0.3][:count]
