import json
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from core.records import Answer, Choice, Feedback, LabelingOutput, LabelingTask, Output
from feedback.preferences import (
    WAIT_FOR_LOG_SECONDS,
    build_rows,
    fate_of,
    labeling_rows,
    superseded,
)
from tests.feedback.factory import PROMPT, completion

NOW = 1000.0


def output(token="a", choice=0):
    return Output(token=token * 52, choice=choice)


def said(kind="ranking", *, outputs, rater="r1", feedback_id=None, at=NOW, **fields) -> Feedback:
    return Feedback(
        id=feedback_id or f"fb-{kind}-{rater}-{at}",
        kind=kind,
        tenant="acme",
        key_id="0a0b0c0d",
        rater=rater,
        created_at=at,
        updated_at=at,
        outputs=tuple(outputs),
        **fields,
    )


def rows_of(*feedback, completions=(), now=NOW, split="train"):
    by_token = {c.token: c for c in completions}
    return build_rows(feedback, by_token, now=now, split_of=lambda *_: split)


def named(row) -> list[tuple[int, str]]:
    return [(a.rank, a.text) for a in row.answers]


FOUR = completion("a" * 52, answers=("w", "x", "y", "z"), split="validation")


def test_a_ranking_becomes_ranks_over_the_logged_answers_by_hand():
    ranking = said(outputs=[output(choice=c) for c in range(4)], ranking=((2,), (0, 3), (1,)))
    rows = rows_of(ranking, completions=[FOUR])
    (row,) = rows.rankings
    assert named(row) == [(1, "y"), (2, "w"), (2, "z"), (3, "x")]
    assert row.comparisons == 5
    assert (row.group_id, row.weight) == ("a" * 52, 1.0)
    assert [a.choice for a in row.answers] == [2, 0, 3, 1]
    assert {a.completion_id for a in row.answers} == {FOUR.id}
    assert json.loads(row.said.messages) == PROMPT
    assert (row.said.user, row.said.split, row.said.rater) == ("u" * 32, "validation", "r1")
    assert rows.fates == {ranking.id: rows.fates[ranking.id]}
    assert rows.fates[ranking.id].status == "joined"


def test_ties_alone_say_nothing():
    rows = rows_of(
        said(outputs=[output(choice=0), output(choice=1)], ranking=((0, 1),)), completions=[FOUR]
    )
    assert rows.rankings == ()
    (fate,) = rows.fates.values()
    assert (fate.status, fate.reason) == ("joined", "all answers are tied")


def test_thumbs_and_ratings_stay_pointwise():
    both = said("rating", outputs=[output(choice=1)], thumb="down", rating=6)
    flags = said("rating", outputs=[output(choice=2)], flags={"hallucination": True}, rater="r2")
    rows = rows_of(both, flags, completions=[FOUR])
    assert [(r.kind, r.value, r.text, r.finish_reason) for r in rows.ratings] == [
        ("thumb", 0.0, "x", "stop"),
        ("rating", 6.0, "x", "stop"),
    ]
    assert {fate.status for fate in rows.fates.values()} == {"joined"}


def test_a_demonstration_is_preferred_over_the_answer_it_is_about():
    shown = said("demonstration", outputs=[output(choice=1)], text={"text": "better"})
    rows = rows_of(shown, completions=[FOUR])
    (row,) = rows.rankings
    assert named(row) == [(1, "better"), (2, "x")]
    assert row.group_id == "a" * 52  # encoded together with other answers to that request
    (demonstration,) = rows.demonstrations
    assert (demonstration.text, demonstration.said.split) == ("better", "validation")


def test_a_demonstration_equal_to_the_answer_prefers_nothing():
    shown = said("demonstration", outputs=[output(choice=1)], text={"text": "x"})
    rows = rows_of(shown, completions=[FOUR])
    assert (rows.rankings, len(rows.demonstrations)) == ((), 1)


def test_a_demonstration_of_a_prompt_needs_no_completion():
    shown = said(
        "demonstration", outputs=[], messages={"prompt": "A river:"}, text={"text": "Elbe"}
    )
    (row,) = rows_of(shown, split="test").demonstrations
    assert (row.said.messages, row.text, row.said.split) == (
        '{"prompt":"A river:"}',
        "Elbe",
        "test",
    )


def test_what_cannot_train_is_left_out_and_says_why():
    pair = [output(choice=0), output(choice=1)]
    two = ((0,), (1,))
    cases = {
        "a swap of policies crossed the answer": {"policy_versions": ("v0000", "v0001")},
        "the answer broke off: engine": {"error": "engine"},
        "the prompt is over its user's cap": {"outcome": "over_user_cap", "counted": False},
        "the end user opted out": {"outcome": "opted_out", "answers": ()},
        "the prompt is a copy of one in another split": {"outcome": "duplicate_elsewhere"},
        "its key or request keeps the completion out of training": {"trains": False},
        "the prompt holds more than text": {"messages": [{"role": "user", "content": None}]},
        "the answer is not in the log": {"answers": ()},
        "the answer is not text that ended": {
            "choices": (Choice(text="", finish_reason="abort"),) * 2
        },
    }
    for reason, fields in cases.items():
        rows = rows_of(
            said(outputs=pair, ranking=two), completions=[completion("a" * 52, **fields)]
        )
        (fate,) = rows.fates.values()
        assert (fate.status, fate.reason) == ("unjoinable", reason)
        assert rows.rankings == rows.ratings == rows.demonstrations == ()


def test_comparisons_on_duplicates_count():
    copy = completion("a" * 52, outcome="duplicate", counted=False)
    ranking = said(outputs=[output(choice=0), output(choice=1)], ranking=((1,), (0,)))
    assert rows_of(ranking, completions=[copy]).rankings[0].comparisons == 1


def test_held_withdrawn_and_untrusted_words_are_left_out():
    pair = {"outputs": [output(choice=0), output(choice=1)], "ranking": ((0,), (1,))}
    for fields, status in [
        ({"held": "burst"}, "held"),
        ({"withdrawn": True}, "withdrawn"),
        ({"trains": False}, "unjoinable"),
    ]:
        rows = rows_of(said(**pair, **fields), completions=[FOUR])
        assert rows.rankings == ()
        assert [fate.status for fate in rows.fates.values()] == [status]


def test_feedback_waits_for_its_completion_for_a_while():
    ranking = said(outputs=[output(choice=0), output("b")], ranking=((0,), (1,)))
    late = NOW + WAIT_FOR_LOG_SECONDS
    by_token = {FOUR.token: FOUR}
    assert fate_of(ranking, by_token, now=late - 1).status == "pending"
    assert fate_of(ranking, by_token, now=late).status == "unjoinable"
    arrived = {**by_token, "b" * 52: completion("b" * 52, split="validation")}
    assert fate_of(ranking, arrived, now=late).status == "joined"


def test_a_demonstration_waits_for_the_filter():
    shown = said("demonstration", outputs=[output()], sealed="sealed")
    assert fate_of(shown, {FOUR.token: FOUR}, now=NOW).status == "pending"


def test_one_unusable_answer_leaves_the_others_ranked():
    mixed = completion("b" * 52, policy_versions=("v0000", "v0001"), split="validation")
    outputs = [output(choice=0), output(choice=1), output("b")]
    rows = rows_of(said(outputs=outputs, ranking=((0,), (2,), (1,))), completions=[FOUR, mixed])
    assert named(rows.rankings[0]) == [(1, "w"), (2, "x")]
    rows = rows_of(said(outputs=outputs[1:], ranking=((0,), (1,))), completions=[FOUR, mixed])
    assert rows.rankings == ()


def test_answers_of_users_in_different_splits_are_not_compared():
    other = completion("b" * 52, split="train")
    rows = rows_of(
        said(outputs=[output(), output("b")], ranking=((0,), (1,))), completions=[FOUR, other]
    )
    assert rows.rankings == ()


def test_answers_of_two_requests_share_a_group_for_all_raters():
    other = completion("b" * 52, split="validation")
    outputs = [output("a", 0), output("b", 1)]
    rows = rows_of(
        said(outputs=outputs, ranking=((0,), (1,)), rater="r1"),
        said(outputs=outputs[::-1], ranking=((0,), (1,)), rater="r2"),
        completions=[FOUR, other],
    )
    one, two = rows.rankings
    assert one.group_id == two.group_id
    assert [a.text for a in one.answers] == [a.text for a in two.answers][::-1]


def test_the_latest_word_of_a_rater_on_a_pair_counts():
    abc = [output(choice=c) for c in (0, 1, 2)]
    old = said(outputs=abc, ranking=((0,), (1,), (2,)), at=1.0)
    new = said(outputs=abc[:2], ranking=((1,), (0,)), at=2.0)
    other = said(outputs=abc[:2], ranking=((0,), (1,)), at=0.5, rater="r2")
    apart = said(outputs=[abc[0], output(choice=3)], ranking=((0,), (1,)), at=0.1)
    assert superseded([new, old, other, apart]) == {old.id}
    gone = new.model_copy(update={"withdrawn": True})
    assert superseded([gone, old]) == set()


def labeling_task(**fields) -> LabelingTask:
    return LabelingTask(
        id="task",
        tenant="acme",
        run_id="run",
        user="u" * 32,
        messages=PROMPT,
        outputs=tuple(
            LabelingOutput(output_id=f"o{i}", text=f"t{i}", policy="p") for i in range(4)
        ),
        created_at=0.0,
        **{"mode": "training", **fields},
    )


def test_a_training_task_gives_a_ranking_and_its_ratings():
    answer = Answer(
        rater="r",
        heldout_rater=False,
        ranking=(("o2",), ("o0", "o1"), ("o3",)),
        ratings={"o2": 7, "o3": 1},
        answered_at=0.0,
    )
    skip = Answer(rater="s", heldout_rater=False, ranking=(), answered_at=0.0)
    rankings, ratings = labeling_rows(labeling_task(answers=(skip, answer)), "train")
    (row,) = rankings
    assert named(row) == [(1, "t2"), (2, "t0"), (2, "t1"), (3, "t3")]
    assert (row.group_id, row.said.rater, row.comparisons) == ("task", "r", 5)
    assert [(r.text, r.value) for r in ratings] == [("t2", 7.0), ("t3", 1.0)]
    assert labeling_rows(labeling_task(answers=(answer,), mode="evaluation"), "train") == ([], [])


# --- invariants


@st.composite
def rankings(draw):
    """A weak order of 2 to 9 answers, as ties of positions."""
    count = draw(st.integers(2, 9))
    levels = draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count))
    return [[p for p in range(count) if levels[p] == level] for level in sorted(set(levels))]


def preferred(row) -> set[tuple[str, str]]:
    return {
        (a.text, b.text) if a.rank < b.rank else (b.text, a.text)
        for a, b in combinations(row.answers, 2)
        if a.rank != b.rank
    }


@given(rankings(), st.randoms(use_true_random=False))
def test_the_order_in_which_answers_are_listed_never_changes_the_pairs(ties, random):
    count = sum(map(len, ties))
    logged = completion("a" * 52, answers=tuple(f"t{c}" for c in range(count)))
    outputs = [output(choice=c) for c in range(count)]
    shuffled = random.sample(range(count), count)
    place = {old: new for new, old in enumerate(shuffled)}
    plain = said(outputs=outputs, ranking=tuple(map(tuple, ties)))
    mixed = said(
        outputs=[outputs[old] for old in shuffled],
        ranking=tuple(tuple(place[p] for p in tie) for tie in ties),
    )
    one = rows_of(plain, completions=[logged]).rankings
    two = rows_of(mixed, completions=[logged]).rankings
    assert one == two
    expected = {
        (f"t{a}", f"t{b}") for better, worse in combinations(ties, 2) for a in better for b in worse
    }
    assert (preferred(one[0]) if one else set()) == expected


@given(st.lists(rankings(), max_size=6))
def test_comparisons_are_the_untied_pairs_counted_one_by_one(all_ties):
    logged, feedback, expected = [], [], 0
    for number, ties in enumerate(all_ties):
        count = sum(map(len, ties))
        token = chr(ord("a") + number)
        logged.append(completion(token * 52, answers=tuple(f"t{c}" for c in range(count))))
        feedback.append(
            said(
                outputs=[output(token, c) for c in range(count)],
                ranking=tuple(map(tuple, ties)),
                rater=f"r{number}",
            )
        )
        level = {p: i for i, tie in enumerate(ties) for p in tie}
        expected += sum(level[a] != level[b] for a, b in combinations(range(count), 2))
    rows = rows_of(*feedback, completions=logged)
    assert sum(row.comparisons for row in rows.rankings) == expected
    assert sum(said.comparisons for said in feedback) == expected
