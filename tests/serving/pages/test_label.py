"""Labeling in Chromium: by keyboard alone, by dragging, across a reload, when things fail."""

import base64
import json
import re
import time

import pytest
from playwright.async_api import Page, expect

from core import keys
from core.setting_groups import FeedbackSettings
from core.settings import Settings
from tests.serving.pages import scenes
from tests.serving.pages.conftest import DESK, PHONE

pytestmark = pytest.mark.slow
LETTERS = "ABCD"


@pytest.fixture
def gateway_settings(shared_redis, state_dir) -> Settings:
    feedback = FeedbackSettings(heldout_raters=("judge*",), lease_seconds=600)
    return Settings(state_dir=state_dir, redis_url=shared_redis.url, feedback=feedback)


async def read_answers(page: Page) -> dict[str, str]:
    """What each letter's answer says, and back to the first."""
    texts = {}
    for letter in LETTERS:
        await page.get_by_role("button", name=f"Answer {letter}").click()
        await expect(page.locator("#answer-name")).to_contain_text(f"Answer {letter}")
        texts[letter] = (await page.locator(".answer-text").inner_text())[:12]
    await page.get_by_role("button", name="Answer A").click()
    return texts


def inside(texts: dict[str, str]) -> dict[str, str]:
    """The task's own name of each letter's answer."""
    plain = [text.replace("*", "").removeprefix("1. ")[:12] for text in scenes.ANSWERS]
    return {letter: f"own-{plain.index(text)}" for letter, text in texts.items()}


async def order(page: Page) -> list[list[str]]:
    """The letters as they are ranked on the page."""
    rows = await page.locator(".rank-row").all()
    return [await row.locator(".badge.letter").all_text_contents() for row in rows]


async def rank_as(page: Page, ratings: str) -> None:
    """Rate all answers with the number keys, and go to the board."""
    await expect(page.locator("#answer-name")).to_be_focused()
    for number in ratings:
        await page.keyboard.press(number)
        await page.keyboard.press("]")
    await expect(page.locator("#rank-name")).to_be_focused()


async def the_answer(redis, name="t1"):
    (answer,) = (await scenes.read_task(redis, name)).answers
    return answer


async def test_a_task_is_done_by_keyboard_alone(visit, gateway, redis):
    await scenes.open_tasks(redis, scenes.task())
    rater = await visit("label", name="rater-1")
    page = await rater.open("/label")
    await expect(page.get_by_text("Training task")).to_be_visible()
    await expect(page.get_by_text("Helpfulness comes first.").first).to_be_visible()
    await expect(page.locator("#in-all")).to_have_text(" · 0 done today, 0 in total")
    await rater.accessible()
    names = inside(await read_answers(page))
    await page.locator("#answer-name").focus()

    await page.keyboard.press("2")
    for _ in range(10):  # from the heading through text and rating to the first flag
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.id") == "flag-fails_task":
            break
    await page.keyboard.press("Space")
    await expect(page.get_by_label("Misses the task")).to_be_checked()
    for _ in range(11):
        await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.id") == "notes"
    await page.keyboard.type("Says 3 things [sic]")
    assert await page.locator("#notes").input_value() == "Says 3 things [sic]"
    await page.locator("#forward").focus()
    await page.keyboard.press("Enter")
    for number in "577":
        await expect(page.locator("#answer-name")).to_be_focused()
        await page.keyboard.press(number)
        await page.keyboard.press("]")
    assert await order(page) == [["C", "D"], ["B"], ["A"]]
    await rater.accessible()

    await page.locator(".rank-card").nth(3).focus()
    await page.keyboard.press("ArrowUp")
    assert await order(page) == [["C", "D"], ["A"], ["B"]]
    await expect(page.locator("#said")).to_have_text("Answer A: rank 2 of 3.")
    await page.keyboard.press("=")
    assert await order(page) == [["C", "D", "A"], ["B"]]
    await expect(page.locator(".rank-card:focus .letter")).to_have_text("A")
    await page.keyboard.press("ArrowDown")
    assert await order(page) == [["C", "D"], ["A"], ["B"]]
    await page.keyboard.press("Control+z")
    assert await order(page) == [["C", "D", "A"], ["B"]]
    await page.keyboard.press("Control+Enter")
    await expect(page.get_by_role("heading", name="No task for you now")).to_be_visible()
    await expect(page.get_by_text("You have done 1 in this session")).to_be_visible()
    await expect(page.locator("#in-all")).to_have_text("1 done today, 1 in total")
    await rater.accessible()

    answer = await the_answer(redis)
    assert answer.ranking == (
        tuple(sorted(names[letter] for letter in "CDA")),
        (names["B"],),
    )
    assert answer.ratings == {names[one]: int(n) for one, n in zip(LETTERS, "2577", strict=True)}
    assert answer.flags == {names["A"]: {"fails_task": True}}
    notes = json.loads(gateway.keyring.open(base64.b64decode(answer.sealed_notes)))
    assert notes == {names["A"]: "Says 3 things [sic]"}
    assert await page.evaluate("Object.keys(localStorage).filter(k => k.includes('draft'))") == []
    rater.well()


async def drag(page: Page, letter: str, row: int, part: float) -> None:
    """Drag a card to a row, at this part of its height; with a finger where there is one."""
    card = page.locator(".rank-card").filter(has=page.locator(".letter", has_text=letter))
    await card.evaluate("card => card.scrollIntoView({block: 'center'})")
    grip = await card.locator(".grip").bounding_box()
    box = await page.locator(".rank-row").nth(row).bounding_box()
    start = (grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    end = (box["x"] + 90, box["y"] + part * box["height"])
    way = [start, (end[0], (start[1] + end[1]) / 2), end, end]
    if await page.evaluate("navigator.maxTouchPoints") == 0:
        await page.mouse.move(*start)
        await page.mouse.down()
        for point in way:
            await page.mouse.move(*point)
        return await page.mouse.up()
    finger = await page.context.new_cdp_session(page)
    for number, (x, y) in enumerate(way):
        kind = "touchMove" if number else "touchStart"
        touch = {"type": kind, "touchPoints": [{"x": x, "y": y}]}
        await finger.send("Input.dispatchTouchEvent", touch)
    await finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "dark"), (PHONE, "light")])
async def test_a_task_is_done_by_dragging(visit, redis, size, scheme):
    await scenes.open_tasks(redis, scenes.task())
    rater = await visit("label", name="rater-1", size=size, scheme=scheme)
    page = await rater.open("/label")
    names = inside(await read_answers(page))
    await page.locator("#answer-name").focus()
    await rater.accessible()
    await rank_as(page, "7531")
    assert await order(page) == [["A"], ["B"], ["C"], ["D"]]
    await rater.accessible()

    await drag(page, "C", 0, 0.05)  # above the first
    assert await order(page) == [["C"], ["A"], ["B"], ["D"]]
    await drag(page, "D", 1, 0.5)  # onto A
    assert await order(page) == [["C"], ["A", "D"], ["B"]]
    await drag(page, "C", 1, 0.97)  # below the tie
    assert await order(page) == [["A", "D"], ["C"], ["B"]]
    await page.get_by_role("button", name="Undo").click()
    assert await order(page) == [["C"], ["A", "D"], ["B"]]
    await page.get_by_role("button", name="Move answer B up").click()
    assert await order(page) == [["C"], ["B"], ["A", "D"]]
    await page.get_by_role("button", name="Submit").click()
    await expect(page.get_by_role("heading", name="No task for you now")).to_be_visible()
    ranking = (await the_answer(redis)).ranking
    assert ranking == ((names["C"],), (names["B"],), tuple(sorted((names["A"], names["D"]))))
    rater.well()


async def test_a_reload_keeps_the_draft_and_a_failed_submit_loses_nothing(visit, redis):
    await scenes.open_tasks(redis, scenes.task())
    rater = await visit("label", name="rater-1")
    page = await rater.open("/label")
    await page.get_by_label("6 of 7").check(force=True)
    await page.get_by_label("Makes things up").check()
    await page.locator("#notes").fill("half a note")
    await page.reload()
    await expect(page.get_by_text("Your draft of this task is back.")).to_be_visible()
    await expect(page.get_by_label("6 of 7")).to_be_checked()
    await expect(page.get_by_label("Makes things up")).to_be_checked()
    await expect(page.locator("#notes")).to_have_value("half a note")

    await page.get_by_role("button", name="Rank all answers").click()
    await page.get_by_role("button", name="Submit").click()  # three have no rating yet
    await expect(page.get_by_text("Answer B has no rating yet.")).to_be_visible()
    for number in "345":
        await page.keyboard.press(number)
        await page.keyboard.press("]")
    await page.reload()
    await expect(page.get_by_role("button", name="Submit")).to_be_enabled()
    assert await order(page) == [["A"], ["D"], ["C"], ["B"]]
    sent = []

    async def cut(route) -> None:
        sent.append(route.request.headers["idempotency-key"])
        if len(sent) == 1:
            await route.abort()
        else:
            await route.fallback()

    await page.route("**/v1/labeling/t1", cut)
    await page.get_by_role("button", name="Submit").click()
    await expect(page.get_by_text("Your work is kept here.")).to_be_visible()
    await rater.accessible()
    assert await order(page) == [["A"], ["D"], ["C"], ["B"]]
    await page.get_by_role("button", name="Try again").click()
    await expect(page.get_by_role("heading", name="No task for you now")).to_be_visible()
    assert len(sent) == 2
    assert sent[0] == sent[1]
    assert len((await the_answer(redis)).ratings) == 4


async def test_a_task_is_skipped_with_a_reason_and_the_next_one_comes(visit, gateway, redis):
    await scenes.open_tasks(redis, scenes.task("t1"), scenes.task("t2"))
    rater = await visit("label", name="rater-1", scheme="dark")
    page = await rater.open("/label")
    await expect(page.get_by_text("Training task")).to_be_visible()
    first = "t1" if await page.get_by_text("(t1)").is_visible() else "t2"
    await page.get_by_role("button", name="Skip").click()
    await rater.accessible()
    dialog = page.get_by_role("dialog")
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    await page.get_by_role("button", name="Skip").click()
    await dialog.get_by_label("I do not know enough").check()
    await dialog.get_by_role("button", name="Skip").click()
    await expect(page.get_by_text(f"({'t2' if first == 't1' else 't1'})")).to_be_visible()
    await expect(page.locator("#tally")).to_contain_text("0 done, 1 skipped")
    skip = await the_answer(redis, first)
    assert skip.ranking == ()
    reason = json.loads(gateway.keyring.open(base64.b64decode(skip.sealed_notes)))
    assert reason == {"skip": "I do not know enough about this subject"}
    rater.well()


async def test_held_out_raters_are_told_what_comes_first_in_an_evaluation(visit, redis):
    await scenes.open_tasks(redis, scenes.task(mode="evaluation"))
    rater = await visit("label", name="judge-1", size=PHONE, scheme="dark")
    page = await rater.open("/label")
    await expect(page.get_by_text("Evaluation task")).to_be_visible()
    await page.get_by_text("How to judge").click()
    guide = page.get_by_text("Prefer the answer that is true and harms nobody.")
    await expect(guide).to_be_visible()
    await rater.accessible()
    rater.well()


async def test_new_tasks_appear_by_themselves_and_a_lease_that_ran_out_is_told(visit, redis):
    rater = await visit("label", name="rater-1")
    page = await rater.open("/label")
    await expect(page.get_by_role("heading", name="No task for you now")).to_be_visible()
    await scenes.open_tasks(redis, scenes.task())
    await expect(page.locator("#answer-name")).to_be_visible(timeout=15_000)
    await page.get_by_label("4 of 7").check(force=True)
    task = await scenes.read_task(redis)
    ended = task.model_copy(update={"leased_until": time.time() + 2})
    await redis.set(keys.labeling_task("t1"), ended.model_dump_json())
    await page.reload()
    await expect(page.get_by_text("The time for this task has run out.")).to_be_visible()
    await rater.accessible()
    await redis.zadd(keys.labeling_open("training"), {"t1": 0})
    await page.get_by_role("button", name="Renew").click()
    await expect(page.locator("#lease")).to_contain_text(re.compile("10:0|9:5"))
    await expect(page.get_by_label("4 of 7")).to_be_checked()
    rater.well()


async def test_labeling_needs_its_scope(visit):
    ann = await visit("complete", "feedback")
    page = await ann.open("/label")
    await expect(page.locator("main code")).to_have_text("label")
    await ann.accessible()
    ann.well()
