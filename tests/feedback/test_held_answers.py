"""Answers to labeling tasks that are suspect: found, held, out of training and votes, decided."""

from random import Random

import pytest

from core import keys, loop, registry
from core.errors import NotFound
from core.records import Answer, LabelingTask
from core.setting_groups import FeedbackSettings
from feedback import holding, labeling
from feedback.firewall import BURST, EXTREME, LOCKSTEP, suspect_answers
from feedback.held_answers import hold_back_answers, hold_back_votes
from feedback.labeling_rules import MOST_REJECTED
from feedback.preferences import labeling_rows
from feedback.raters import verdicts
from tests.feedback.test_labeling import task

SETTINGS = FeedbackSettings()
HOUR = 3600.0


def answered(tasks, rater, *, at=lambda n: n * HOUR, order=None, rating=None, heldout=False):
    """The tasks with one rater's answers: any order and ratings unless they are told."""
    random = Random(rater)
    done = []
    for n, one in enumerate(tasks):
        names = [o.output_id for o in one.outputs]
        chosen = order(n, names) if order else random.sample(names, len(names))
        answer = Answer(
            rater=rater,
            heldout_rater=heldout,
            ranking=tuple((name,) for name in chosen),
            ratings={name: rating or random.randint(1, 7) for name in names},
            answered_at=at(n),
        )
        done.append(one.model_copy(update={"answers": (*one.answers, answer)}))
    return done


def some_tasks(number=40, **other):
    return [task(f"t{n}", **other) for n in range(number)]


def raters_in(found):
    return {rater for _, rater in found}


def test_planted_raters_are_found_among_honest_ones_and_nobody_else():
    tasks = some_tasks()
    for n in range(6):
        tasks = answered(tasks, f"honest{n}")
    tasks = answered(tasks, "sevens", rating=7)
    script = Random(5)
    orders = [script.sample(range(4), 4) for _ in tasks]
    for name in ("ring1", "ring2"):
        tasks = answered(tasks, name, order=lambda n, names: [names[i] for i in orders[n]])
    many = [task(f"quick{n}") for n in range(301)]
    tasks += answered(many, "bot", at=lambda n: 9e6 + n * 0.9)
    found = suspect_answers(tasks, SETTINGS)
    assert raters_in(found) == {"sevens", "ring1", "ring2", "bot"}
    assert {r for (_, rater), r in found.items() if rater == "sevens"} == {EXTREME}
    assert {r for (_, rater), r in found.items() if rater == "ring1"} == {LOCKSTEP}
    assert {r for (_, rater), r in found.items() if rater == "bot"} == {BURST}
    assert len(found) == 3 * 40 + 301


def test_few_answers_unrated_ones_skips_and_gold_suspect_nobody():
    assert suspect_answers(answered(some_tasks(19), "sevens", rating=7), SETTINGS) == {}
    assert len(suspect_answers(answered(some_tasks(20), "sevens", rating=7), SETTINGS)) == 20
    rated = answered(some_tasks(), "r", rating=7)
    bare = [
        t.model_copy(update={"answers": (t.answers[0].model_copy(update={"ratings": {}}),)})
        for t in rated
    ]
    skipped = [
        t.model_copy(update={"answers": (t.answers[0].model_copy(update={"ranking": ()}),)})
        for t in rated
    ]
    gold = [t.model_copy(update={"gold": (("parent-0",),)}) for t in rated]
    assert [suspect_answers(tasks, SETTINGS) for tasks in (bare, skipped, gold)] == [{}] * 3


def test_raters_who_all_agree_are_not_in_lockstep():
    tasks = some_tasks()
    for n in range(6):
        tasks = answered(tasks, f"same{n}", order=lambda n, names: sorted(names))
    assert suspect_answers(tasks, SETTINGS) == {}


async def put(redis, tasks):
    await labeling.open_tasks(redis, tasks)


async def stored(redis, task_id):
    return LabelingTask.model_validate_json(await redis.get(keys.labeling_task(task_id)))


async def decide(redis, subject, decision, tenant="acme"):
    return await holding.decide(
        redis, subject, decision, tenant=tenant, who="ops", why="looked", settings=SETTINGS
    )


async def test_what_is_held_trains_nothing_until_it_is_released_and_is_never_deleted(redis):
    tasks = answered(answered(some_tasks(), "sevens", rating=7), "ann")
    await put(redis, tasks)
    marked = await hold_back_answers(redis, tasks, SETTINGS)
    assert marked == [await stored(redis, t.id) for t in tasks]
    for one in marked:
        assert {a.rater: a.held for a in one.answers} == {"sevens": EXTREME, "ann": None}
        rankings, ratings = labeling_rows(one, "train")
        assert {row.said.rater for row in (*rankings, *ratings)} == {"ann"}
    assert {v.rater for v in verdicts(marked, [], {}, settings=SETTINGS)} == {"ann"}
    assert await hold_back_answers(redis, marked, SETTINGS) == marked

    (waiting,) = await holding.held(redis, "acme", SETTINGS)
    assert (waiting.rater, waiting.reasons) == ("sevens", {EXTREME: 40})
    assert waiting.feedback[0] == "t39:sevens"
    assert await holding.held(redis, "other", SETTINGS) == []
    with pytest.raises(NotFound):
        await decide(redis, "sevens", "released", tenant="other")
    with pytest.raises(NotFound):
        await decide(redis, "t3:ann", "released")

    assert await decide(redis, "t3:sevens", "released") == 1
    assert await decide(redis, "sevens", "rejected") == 39
    again = await hold_back_answers(redis, [await stored(redis, t.id) for t in tasks], SETTINGS)
    held = {one.id: one.answers[0].held for one in again}
    assert (held.pop("t3"), set(held.values())) == (None, {holding.REJECTED})
    assert [len(one.answers) for one in again] == [2] * 40
    assert await decide(redis, "sevens", "released") == 39
    again = await hold_back_answers(redis, [await stored(redis, t.id) for t in tasks], SETTINGS)
    assert not any(a.held for one in again for a in one.answers)
    actions = [entry["action"] for entry in await registry.history(redis)]
    assert actions[0] == "labeling held back"
    assert len(actions) == 4


async def test_a_decision_about_a_rater_holds_for_what_they_say_later(redis):
    tasks = answered(some_tasks(20), "sevens", rating=7)
    await put(redis, tasks)
    await hold_back_answers(redis, tasks, SETTINGS)
    await decide(redis, "sevens", "rejected")
    later = answered([task("later")], "sevens")
    await put(redis, later)
    (marked,) = await hold_back_answers(redis, later, SETTINGS)
    assert marked.answers[0].held == holding.REJECTED


async def test_a_vote_that_is_held_is_marked_on_its_task_and_notes_still_wait(redis):
    tasks = answered(some_tasks(20, mode="evaluation"), "sevens", rating=7, heldout=True)
    first = tasks[0]
    noted = first.answers[0].model_copy(update={"sealed_notes": "sealed"})
    tasks[0] = first.model_copy(update={"answers": (noted,)})
    await put(redis, tasks)
    await redis.sadd(keys.feedback_text(), "notes:t0")
    await hold_back_votes(redis, "run-1", SETTINGS)
    assert {(await stored(redis, t.id)).answers[0].held for t in tasks} == {EXTREME}
    assert await redis.smembers(keys.feedback_text()) == {b"notes:t0"}
    assert (await stored(redis, "t0")).answers[0].sealed_notes == "sealed"


async def test_the_firewall_can_be_turned_off_and_what_was_erased_meanwhile_is_gone(redis):
    tasks = answered(some_tasks(20), "sevens", rating=7)
    assert await hold_back_answers(redis, tasks, FeedbackSettings(hold_back=False)) == tasks
    assert await hold_back_answers(redis, tasks, SETTINGS) == tasks  # none is in Redis
    assert await redis.keys("*") == []


async def lease(redis, rater, heldout=False):
    """The id of the task that a rater is given next."""
    found = await labeling.next_task(
        redis, tenant="acme", rater=rater, heldout=heldout, settings=SETTINGS
    )
    return found.id if found else None


async def say(redis, task_id, rater, heldout=False):
    """A rater answers what they hold."""
    done = answered([task(task_id)], rater, heldout=heldout)[0].answers[0]
    await labeling.answer_task(
        redis, task_id=task_id, tenant="acme", answer=done, reply="", same=lambda a, b: a == b
    )


async def suspect(redis, task_id, rater):
    """As the firewall marks it."""
    old = await stored(redis, task_id)
    marked = tuple(
        a.model_copy(update={"held": BURST}) if a.rater == rater else a for a in old.answers
    )
    new = old.model_copy(update={"answers": marked})
    await redis.set(keys.labeling_task(task_id), new.model_dump_json())


async def test_a_task_whose_answer_is_rejected_is_offered_to_others_again(redis):
    await put(redis, [task("t1")])
    assert await lease(redis, "bot") == "t1"
    await say(redis, "t1", "bot")
    await suspect(redis, "t1", "bot")
    assert await lease(redis, "ann") is None  # nobody has decided
    assert await decide(redis, "t1:bot", "rejected") == 1
    assert await decide(redis, "t1:bot", "rejected") == 1  # twice is as once
    assert await lease(redis, "bot") is None
    assert await lease(redis, "ann") == "t1"
    assert await decide(redis, "t1:bot", "rejected") == 1
    assert await lease(redis, "bob") is None  # it is leased
    await say(redis, "t1", "ann")
    assert await lease(redis, "bob") is None
    assert await labeling.task_counts(redis) == {"open": 0, "leased": 0, "done": 1}
    assert [a.rater for a in (await stored(redis, "t1")).answers] == ["bot", "ann"]


async def test_a_decision_that_is_taken_back_closes_the_task_again(redis):
    await put(redis, [task("t1")])
    await lease(redis, "bot")
    await say(redis, "t1", "bot")
    await suspect(redis, "t1", "bot")
    await decide(redis, "t1:bot", "rejected")
    assert (await labeling.task_counts(redis))["open"] == 1
    await decide(redis, "t1:bot", "released")
    assert await lease(redis, "ann") is None
    assert (await labeling.task_counts(redis))["done"] == 1


async def test_what_a_rejected_rater_says_later_leaves_the_task_to_others(redis):
    tasks = answered(some_tasks(20), "sevens", rating=7)
    await put(redis, tasks)
    await hold_back_answers(redis, tasks, SETTINGS)
    await decide(redis, "sevens", "rejected")
    await put(redis, [task("later")])
    assert await lease(redis, "sevens") == "later"
    await say(redis, "later", "sevens")
    await hold_back_answers(redis, [await stored(redis, "later")], SETTINGS)
    given = set()
    while (one := await lease(redis, "ann")) is not None:
        given.add(one)
        await say(redis, one, "ann")
    assert given == {"later", *(f"t{n}" for n in range(20))}


async def test_a_task_is_offered_no_more_when_all_that_is_said_of_it_is_rejected(redis):
    await put(redis, [task("t1")])
    for n in range(MOST_REJECTED):
        assert await lease(redis, f"bot{n}") == "t1"
        await say(redis, "t1", f"bot{n}")
        await suspect(redis, "t1", f"bot{n}")
        await decide(redis, f"t1:bot{n}", "rejected")
    assert await lease(redis, "ann") is None
    assert (await labeling.task_counts(redis))["done"] == 1


async def test_a_vote_is_asked_again_while_its_round_is_on_and_never_after_it(redis):
    run = await loop.request_run(redis, stages=("vote", "gate"), wanted_by="tests")
    over = loop.ended(run, "refused", "no", now=1.0).model_copy(update={"id": "r-over"})
    await redis.set(keys.run("r-over"), over.model_dump_json())
    votes = {"on": run.id, "over": "r-over", "unknown": "r-none"}
    await put(redis, [task(name, mode="evaluation", run_id=of) for name, of in votes.items()])
    for _ in votes:
        await say(redis, str(await lease(redis, "bot", heldout=True)), "bot", heldout=True)
    for name, of in votes.items():
        await suspect(redis, name, "bot")
        if name != "on":
            await labeling.close_tasks(redis, of)
    for name in votes:
        assert await decide(redis, f"{name}:bot", "rejected") == 1
    assert await lease(redis, "ann", heldout=True) == "on"
    await say(redis, "on", "ann", heldout=True)
    assert await lease(redis, "ann", heldout=True) is None
