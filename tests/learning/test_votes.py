"""Votes of held-out raters, through the real labeling tasks on a real Redis."""

import json

import pytest

from core import keys
from core.records import Run
from feedback.labeling import next_task, tasks_of
from learning.gate.comparisons import Comparison
from learning.rounds.votes import advance_votes, read_votes
from tests.learning.loop_rig import completion, vote_on_all

RUN = Run(id="r1", stages=("vote", "gate"), created_at=0.0, stage="vote")
POLICIES = ("candidate", "parent")


def row(number, *, answers=2, policies=POLICIES):
    """The candidate answers well, but for the last prompt; the anchor never does."""
    return {
        "prompt_id": f"token-{number}",
        "user": f"user-{number % 3}",
        "messages": json.dumps([{"role": "user", "content": f"prompt {number}"}]),
        "outputs": [
            {
                "output_id": f"{policy}-{n}",
                "policy": policy,
                "text": f"answer {n} {'well' if answers_well(policy, number) else ''}",
                "finish_reason": "stop",
                "token_ids": [1],
                "score": 0.0,
                "broken": False,
            }
            for policy in policies
            for n in range(answers)
        ],
    }


def answers_well(policy, number):
    return policy != "anchor" and (policy == "candidate") == (number < 4)


ROWS = [row(number) for number in range(5)]


@pytest.fixture
async def logged(redis):
    for at in ROWS:
        prompt = completion(at["prompt_id"], user=at["user"], text="hello")
        await redis.set(keys.completion(at["prompt_id"]), prompt.model_dump_json())
    return redis


async def advance(redis, folder, *, rows=ROWS, min_users=3, wait=600):
    return await advance_votes(redis, RUN, rows, folder, min_users=min_users, wait_seconds=wait)


async def test_votes_are_waited_for_collected_once_and_the_tasks_closed(
    logged, state_dir, settings
):
    folder = state_dir / "vote"
    assert not await advance(logged, folder)
    assert not await advance(logged, folder)
    assert await vote_on_all(logged, settings) == 5
    assert await advance(logged, folder)
    votes = read_votes(folder)
    assert sorted(vote.points for vote in votes) == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert {vote.user for vote in votes} == {"user-0", "user-1", "user-2"}
    assert await advance(logged, folder)
    assert read_votes(folder) == votes
    assert json.loads((folder / "out" / "figures.json").read_text()) == {"users": 3, "votes": 5}
    assert await vote_on_all(logged, settings) == 0


async def test_a_task_does_not_say_who_wrote_what(logged, state_dir):
    await advance(logged, state_dir / "vote")
    for task in await tasks_of(logged, RUN.id):
        shown = [task.id] + [output.output_id for output in task.outputs]
        assert not [name for name in shown if any(policy in name for policy in POLICIES)]
        assert sorted(o.policy for o in task.outputs) == ["candidate"] * 2 + ["parent"] * 2
        assert task.messages == [{"role": "user", "content": task.messages[0]["content"]}]
        assert task.mode == "evaluation"
    orders = {tuple(o.policy for o in task.outputs) for task in await tasks_of(logged, RUN.id)}
    assert len(orders) > 1


async def test_when_the_time_is_over_what_there_is_counts(logged, state_dir, settings):
    folder = state_dir / "vote"
    await advance(logged, folder)
    await vote_on_all(logged, settings)
    opened = json.loads((folder / "opened.json").read_text())
    (folder / "opened.json").write_text(json.dumps({**opened, "at": opened["at"] - 601}))
    assert await advance(logged, folder, min_users=40)
    assert len(read_votes(folder)) == 5


async def test_a_vote_that_is_held_back_does_not_count(logged, state_dir, settings):
    folder = state_dir / "vote"
    await advance(logged, folder)
    await vote_on_all(logged, settings)
    held, *_ = await tasks_of(logged, RUN.id)
    answers = tuple(a.model_copy(update={"held": "suspect"}) for a in held.answers)
    changed = held.model_copy(update={"answers": answers})
    await logged.set(keys.labeling_task(held.id), changed.model_dump_json())
    assert not await advance(logged, folder)  # one task has no vote that counts
    opened = json.loads((folder / "opened.json").read_text())
    (folder / "opened.json").write_text(json.dumps({**opened, "at": opened["at"] - 601}))
    assert await advance(logged, folder)
    assert len(read_votes(folder)) == 4


async def test_nobody_is_asked_when_there_is_no_time_to_wait(logged, state_dir):
    assert await advance(logged, state_dir / "vote", wait=0)
    assert read_votes(state_dir / "vote") == []
    assert await tasks_of(logged, RUN.id) == []


async def test_prompts_that_were_erased_since_are_not_shown_and_not_waited_for(redis, state_dir):
    assert await advance(redis, state_dir / "vote")
    assert read_votes(state_dir / "vote") == []


async def test_too_few_answers_for_a_ranking_are_not_shown(logged, state_dir):
    rows = [row(number, answers=1) for number in range(5)]
    assert await advance(logged, state_dir / "vote", rows=rows)
    assert await tasks_of(logged, RUN.id) == []


async def test_another_tenants_raters_see_nothing(logged, state_dir, settings):
    await advance(logged, state_dir / "vote")
    assert not await next_task(
        logged, tenant="other", rater="7b" * 16, heldout=True, settings=settings.feedback
    )


async def test_a_kill_between_opening_and_noting_it_opens_nothing_twice(logged, state_dir):
    folder = state_dir / "vote"
    await advance(logged, folder)
    before = await tasks_of(logged, RUN.id)
    (folder / "opened.json").unlink()
    await advance(logged, folder)
    assert await tasks_of(logged, RUN.id) == before


async def test_a_vote_survives_being_written_and_read(logged, state_dir, settings):
    folder = state_dir / "vote"
    await advance(logged, folder)
    await vote_on_all(logged, settings)
    await advance(logged, folder)
    assert Comparison("user-1", 0.0, 0.0) in read_votes(folder)  # prompt 4


async def test_one_ranking_is_a_vote_over_the_parent_and_one_over_the_anchor(
    logged, state_dir, settings
):
    rows = [row(number, policies=(*POLICIES, "anchor")) for number in range(5)]
    folder = state_dir / "vote"
    await advance(logged, folder, rows=rows)
    assert {len(task.outputs) for task in await tasks_of(logged, RUN.id)} == {6}
    assert await vote_on_all(logged, settings) == 5
    assert await advance(logged, folder, rows=rows)
    over_parent, over_anchor = read_votes(folder), read_votes(folder, against="anchor")
    assert sorted(vote.points for vote in over_parent) == [0.0, 1.0, 1.0, 1.0, 1.0]
    # the last prompt: neither the candidate nor the anchor answers well, a tie
    assert sorted(vote.points for vote in over_anchor) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert json.loads((folder / "out" / "figures.json").read_text())["votes"] == 5


async def test_without_another_anchor_there_are_no_votes_over_it(logged, state_dir, settings):
    folder = state_dir / "vote"
    await advance(logged, folder)
    await vote_on_all(logged, settings)
    await advance(logged, folder)
    assert read_votes(folder, against="anchor") == []
    (folder / "out" / "votes-anchor.jsonl").unlink()
    assert read_votes(folder, against="anchor") == []
