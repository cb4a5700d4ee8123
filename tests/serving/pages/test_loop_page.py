"""The loop's page in Chromium: what is shown is what is so, and steering it moves the target."""

import pytest
from playwright.async_api import expect

from core import canary, keys, lineage, loop, registry
from tests.conftest import eventually
from tests.serving.conftest import announce
from tests.serving.pages import scenes
from tests.serving.pages.conftest import DESK, PHONE

pytestmark = pytest.mark.slow


@pytest.fixture
async def versions(redis, state_dir):
    """Three versions in two branches; v0001 is live, and its run left curves."""
    await scenes.publish(
        redis,
        scenes.card("v0000", None),
        scenes.card("v0001", "v0000", win=(0.635, 0.55, 0.72)),
        scenes.card("v0002", "v0000", win=(0.48, 0.39, 0.57)),
    )
    await registry.promote(redis, "v0001", who="the test", why="it won")
    await scenes.put_run(redis, state_dir, finished=True)


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "dark")])
async def test_it_shows_how_a_version_came_about(visit, versions, size, scheme):
    ops = await visit("admin", size=size, scheme=scheme)
    page = await ops.open("/loop")
    await expect(page.locator(".big")).to_have_text("v0001")
    detail = page.locator("#version")
    await expect(detail).to_contain_text("63.5 % (55.0 to 72.0 %)")
    await expect(detail).to_contain_text("held-out raters preferred it in 63.5%")
    for name, value in (("Comparisons", "7,214"), ("Raters", "10"), ("Prompts", "250")):
        fact = detail.locator(".facts > div").filter(has_text=name)
        await expect(fact.locator("dd")).to_have_text(value)
    reward = page.get_by_role("img", name="Reward over 12 iterations, from 0.13 to 1.45")
    await expect(reward).to_be_visible()
    box = await reward.bounding_box()
    assert box["width"] > 150
    heights = [await dot.get_attribute("cy") for dot in await reward.locator("circle").all()]
    assert sorted(map(float, heights), reverse=True) == list(map(float, heights))
    await expect(page.get_by_role("img", name="KL to the anchor")).to_be_visible()
    await expect(page.locator("#versions .badge.bad")).to_have_text("refused")
    assert await page.locator(".lines .node").count() == 3
    await ops.accessible()
    ops.well()


async def test_it_says_which_feedback_and_which_engines(visit, versions, redis, state_dir):
    folder = state_dir / "policies" / "v0001"
    folder.mkdir(parents=True)
    (folder / lineage.FILE).write_text(lineage.as_text(scenes.TRAINED_ON))
    await redis.hset(keys.probes("v0001"), "engine-7", "2026-01-02T03:04:05+00:00")
    ops = await visit("admin", size=PHONE, scheme="dark")
    page = await ops.open("/loop")
    detail = page.locator("#version")
    await expect(detail).to_contain_text("13 pieces: 1 labeling tasks, 12 rankings.")
    await expect(detail).to_contain_text(lineage.root_of(scenes.TRAINED_ON)[:16])
    await expect(detail.locator(".facts > div").filter(has_text="engine-7")).to_contain_text("Jan")
    await page.get_by_label("Is this one among them?").fill("fb-03")
    await page.get_by_role("button", name="Look it up").click()
    await expect(detail).to_contain_text("Yes: it is number 4 of the 13 ids below the root.")
    await ops.accessible()
    ops.well()
    await page.get_by_label("Is this one among them?").fill("fb-99")
    await page.keyboard.press("Enter")
    await expect(detail).to_contain_text("v0001 did not learn from this feedback")


async def test_a_canary_that_is_on_is_told(visit, versions, redis):
    await announce_two(redis)
    await loop.heartbeat(redis)
    begun = await canary.start(redis, "v0002", share=0.25, who="the test", why="to see")
    ops = await visit("admin")
    page = await ops.open("/loop")
    serving = page.locator("#serving")
    await expect(serving).to_contain_text("25 % of users get v0002, the others v0001")
    await ops.accessible()
    await canary.end(redis, begun, "rolled_back", who="the test", why="users prefer v0001")
    await expect(serving).not_to_contain_text("get v0002")
    await page.get_by_role("button", name="v0002").click()
    await page.get_by_text("History").click()
    await expect(page.locator(".history")).to_contain_text("“users prefer v0001”")
    ops.well()


async def announce_two(redis):
    for name in ("engine-0", "engine-1"):
        await announce(redis, "unix:/nowhere", name=name, version="v0001")


async def test_promoting_and_rolling_back_move_the_target(visit, versions, redis):
    ops = await visit("admin")
    page = await ops.open("/loop")
    await page.get_by_role("button", name="v0002").click()
    await expect(page.get_by_role("heading", name="v0002")).to_be_visible()
    await page.get_by_role("button", name="Make it live").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("The gate refused this version.")
    await ops.accessible()
    await dialog.get_by_role("button", name="Make v0002 live").click()
    assert await registry.target(redis) == "v0001"  # nobody said why
    await dialog.get_by_label("Why?").fill("to compare")
    await dialog.get_by_role("button", name="Make v0002 live").click()
    await expect(page.locator(".big")).to_have_text("v0002")
    assert await registry.target(redis) == "v0002"
    (*_, entry) = await registry.history(redis, "v0002")
    assert (entry["why"], entry["who"]) == ("to compare", f"key {ops.key.id}")

    await page.get_by_role("button", name="Roll back to v0001").click()
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    await page.get_by_role("button", name="Roll back to v0001").click()
    await dialog.get_by_label("Why?").fill("worse")
    await dialog.get_by_role("button", name="Roll back").click()
    await expect(page.locator(".big")).to_have_text("v0001")
    assert await registry.target(redis) == "v0001"
    await page.get_by_text("History").click()
    await expect(page.locator(".history")).to_contain_text("“to compare”")
    ops.well()


async def test_a_target_that_moved_meanwhile_is_not_overruled(visit, versions, redis):
    ops = await visit("admin")
    page = await ops.open("/loop")
    await page.get_by_role("button", name="Roll back to v0000").click()
    await registry.promote(redis, "v0002", who="somebody else", why="quicker")
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Why?").fill("worse")
    await dialog.get_by_role("button", name="Roll back").click()
    await expect(page.get_by_role("alert")).to_contain_text("the live version is v0002 now")
    await ops.accessible()
    assert await registry.target(redis) == "v0002"


async def test_a_version_that_cannot_go_live_says_why(visit, versions, redis):
    await registry.quarantine(redis, "v0002", why="an engine could not load it")
    await redis.hset(keys.collected(), "v0000", registry.timestamp())
    ops = await visit("admin", size=PHONE)
    page = await ops.open("/loop")
    await expect(page.get_by_role("button", name="Roll back")).to_be_disabled()
    for version, why in (
        ("v0002", "an engine could not load it"),
        ("v0000", "weights were removed"),
    ):
        await page.locator(f"[data-focus=row-{version}]").click()
        await expect(page.locator("#version")).to_contain_text(why)
        assert await page.get_by_role("button", name="Make it live").count() == 0
    await ops.accessible()
    ops.well()


async def test_it_follows_what_changes_without_losing_the_focus(visit, versions, redis, state_dir):
    ops = await visit("admin")
    page = await ops.open("/loop")
    await page.get_by_role("button", name="v0002").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="v0002")).to_be_visible()
    before = await page.locator("#serving").element_handle()
    mark = "document.querySelector('#version h2').marked = true"
    await page.evaluate(mark)
    await scenes.put_run(redis, state_dir, finished=False)
    await registry.promote(redis, "v0000", who="somebody else", why="they say so")
    await expect(page.locator(".big")).to_have_text("v0000")
    await expect(page.locator("#round")).to_contain_text("iteration 6 of 12")
    await expect(page.locator(".stages [aria-current]")).to_contain_text("50 %")
    await expect(page.get_by_role("button", name="Start a round")).to_be_disabled()
    await ops.accessible()
    assert await before.is_visible()
    assert await page.evaluate("document.activeElement.dataset.focus") == "row-v0002"
    ops.well()


async def test_a_round_is_started_and_a_pause_is_told(visit, versions, redis):
    ops = await visit("admin", size=PHONE)
    page = await ops.open("/loop")
    await expect(page.get_by_text("No learning worker is there.")).to_be_visible()
    await page.get_by_role("button", name="Start a round").click()
    await ops.accessible()
    await page.get_by_role("dialog").get_by_role("button", name="Start").click()
    run = await eventually(lambda: loop.current_run(redis))
    assert run.wanted_by == f"key {ops.key.id}"
    await expect(page.locator("#round")).to_contain_text(run.id)
    await loop.pause(redis)
    await expect(page.get_by_text("The loop is paused")).to_be_visible()
    ops.well()


async def test_without_admin_it_says_which_scope_is_needed(visit):
    ann = await visit("complete", "feedback", "label")
    page = await ann.open("/loop")
    await expect(page.locator("main code")).to_have_text("admin")
    await ann.accessible()
    ann.well()


async def test_a_service_without_versions_says_so(visit):
    ops = await visit("admin", scheme="dark")
    page = await ops.open("/loop")
    await expect(page.get_by_text("No version is registered yet.")).to_be_visible()
    await expect(page.get_by_text("There was none yet.")).to_be_visible()
    await ops.accessible()
    ops.well()
