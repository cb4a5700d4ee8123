"""The commands about raters and held feedback, on a real Redis: what they print and change."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from core import registry
from core.errors import InstructLoopError
from core.records import Answer
from core.redis_client import connect
from core.setting_groups import FeedbackSettings
from deploy.cli_labeling import app, feedback_app
from feedback import holding, labeling, store
from feedback.gold import RUN
from tests.feedback.test_firewall import word

run = CliRunner(env={"COLUMNS": "300"})
LINE = {"prompt": "Best river?", "outputs": ["a", "b", "c", "d"], "ranking": [[2], [0, 1], [3]]}


@pytest.fixture
def options(redis_server, state_dir):
    return ["--redis-url", redis_server.url, "--state-dir", str(state_dir), "--tenant", "acme"]


@pytest.fixture
def act(redis_server):
    """Do something with Redis."""

    def acted(work):
        async def inside():
            async with connect(redis_server.url) as redis:
                return await work(redis)

        return asyncio.run(inside())

    return acted


async def answer(redis, rater, *texts):
    settings = FeedbackSettings(gold_share=1.0)
    task = await labeling.next_task(
        redis, tenant="acme", rater=rater, heldout=False, settings=settings
    )
    name = {output.text: output.output_id for output in task.outputs}
    said = Answer(
        rater=rater,
        heldout_rater=False,
        ranking=tuple(tuple(name[text] for text in tie) for tie in texts),
        answered_at=1.0,
    )
    same = {"reply": "{}", "same": lambda one, other: one == other}
    await labeling.answer_task(redis, task_id=task.id, tenant="acme", answer=said, **same)


def test_gold_is_loaded_once_and_agreement_is_shown(options, act, tmp_path):
    path = tmp_path / "gold.jsonl"
    path.write_text(json.dumps(LINE) + "\n")
    for _ in range(2):
        done = run.invoke(app, ["gold", "--in", str(path), *options])
        assert (done.exit_code, done.output) == (0, "1 gold tasks are offered\n")
    assert len(act(lambda redis: labeling.tasks_of(redis, RUN))) == 1
    act(lambda redis: answer(redis, "r1", "c", "ab", "d"))
    act(lambda redis: answer(redis, "r2", "c", "d", "ab"))
    shown = run.invoke(app, ["agreement", *options]).output
    assert "agreement 60.0 % of 5 pairs; alpha of the ratings -" in shown
    assert "100.0 %" in shown  # r1 on gold
    assert "1970-W01" in shown


def test_a_file_that_is_not_there_is_one_line(options):
    done = run.invoke(app, ["gold", "--in", "nowhere.jsonl", *options])
    assert isinstance(done.exception, InstructLoopError)
    assert "nowhere.jsonl" in done.exception.message


def test_held_feedback_is_listed_released_and_rejected(options, act):
    said = [word("sevens", item, at=item * 3600.0, rating=7) for item in range(30)]

    async def hold(redis):
        for one in said:
            await store.record(redis, one, reply="{}")
        await holding.hold_back(redis, said, {}, FeedbackSettings())

    act(hold)
    shown = run.invoke(feedback_app, ["held", *options]).output
    for part in ("sevens", "fb-sevens-29", "30", "always the same extreme rating (30)"):
        assert part in shown
    assert run.invoke(feedback_app, ["release", "fb-sevens-29", *options]).output == "released: 1\n"
    assert run.invoke(feedback_app, ["reject", "sevens", *options]).output == "rejected: 29\n"
    kept = act(store.get_all)
    assert sum(f.held == holding.REJECTED for f in kept) == 29
    actions = [entry["action"] for entry in act(registry.history)]
    assert actions == ["feedback held back", "feedback released", "feedback rejected"]
    missing = run.invoke(feedback_app, ["release", "nobody", *options])
    assert missing.exit_code == 1
