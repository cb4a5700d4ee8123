"""The playground in Chromium: a person asks, reads, and says what they think of it."""

import asyncio
import base64
import json

import pytest
from aiohttp import web
from playwright.async_api import expect

from core import keys
from core.auth import revoke_key
from core.records import Feedback
from core.redis_client import Redis
from tests.conftest import eventually
from tests.serving.pages import scenes
from tests.serving.pages.conftest import PHONE

pytestmark = pytest.mark.slow


async def feedback_in(redis: Redis) -> list[Feedback]:
    """All that was said and not taken back, oldest first."""
    ids = await redis.zrange(keys.feedback_index(), 0, -1)
    raw = await redis.mget([keys.feedback(one.decode()) for one in ids]) if ids else []
    return [f for f in map(Feedback.model_validate_json, raw) if not f.withdrawn]


async def said_once(redis: Redis, kind: str) -> Feedback:
    """The only feedback of a kind, as soon as it is there."""

    async def found():
        return [one for one in await feedback_in(redis) if one.kind == kind]

    (one,) = await eventually(found)
    return one


async def send(page, text: str) -> None:
    await page.get_by_role("textbox", name="Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


async def test_ask_read_rate_comment_and_improve(visit, double, gateway, redis):
    double.words, double.gate = scenes.MARKDOWN, asyncio.Event()
    ann = await visit("complete", "feedback")
    page = await ann.open()
    await ann.accessible()
    await send(page, "Where does the Seine flow?")
    await expect(page.locator(".text.writing em")).to_have_text("Paris")  # half of it is here
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await ann.accessible()
    double.gate.set()
    await expect(page.get_by_role("link", name="the article")).to_be_visible()
    link = page.get_by_role("link", name="the article")
    assert await link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert await link.get_attribute("href") == "https://example.org/seine"
    assert await page.locator(".text li").all_text_contents() == [
        "it rises in Burgundy",
        "it ends in Le Havre",
    ]
    assert await page.locator(".text pre code").inner_text() == "print('Seine')"
    await expect(page.locator(".badge.version")).to_have_text("v0000")

    await page.get_by_role("button", name="Bad answer").click()
    assert (await said_once(redis, "rating")).thumb == "down"
    await page.get_by_role("textbox", name="Comment").fill("Too long")
    await page.get_by_label("3 of 7").check(force=True)
    await ann.accessible()
    await page.get_by_role("button", name="Save").click()

    async def complete():
        one = await said_once(redis, "rating")
        return (one.thumb, one.rating) == ("down", 3) and one.sealed

    await eventually(complete)
    sealed = base64.b64decode((await said_once(redis, "rating")).sealed)
    assert json.loads(gateway.keyring.open(sealed)) == {"comment": "Too long"}

    await page.get_by_role("button", name="Write a better answer").click()
    await page.get_by_role("textbox", name="should have been").fill("Through **Paris**.")
    await ann.accessible()
    await page.get_by_role("button", name="Save this answer").click()
    await expect(page.get_by_text("edited by you")).to_be_visible()
    assert (await said_once(redis, "demonstration")).sealed
    await expect(page.locator(".text")).to_have_text("Through Paris.")

    double.gate = None
    await send(page, "And then?")
    await expect(page.get_by_role("button", name="Answer again")).to_be_visible()
    assert [m["content"] for m in double.requests[-1]["messages"]] == [
        "Where does the Seine flow?",
        "Through **Paris**.",
        "And then?",
    ]
    await page.reload()
    await expect(page.get_by_text("And then?")).to_be_visible()
    await expect(page.get_by_role("button", name="Bad answer").first).to_have_attribute(
        "aria-pressed", "true"
    )
    ann.well()


async def test_a_thumb_is_changed_and_taken_back(visit, redis):
    ann = await visit("complete", "feedback")
    page = await ann.open()
    await send(page, "Hello")
    up, down = (page.get_by_role("button", name=f"{word} answer") for word in ("Good", "Bad"))
    await up.click()
    await expect(up).to_have_attribute("aria-pressed", "true")
    await down.click()
    await expect(down).to_have_attribute("aria-pressed", "true")
    await expect(up).to_have_attribute("aria-pressed", "false")
    assert (await said_once(redis, "rating")).thumb == "down"
    await down.click()
    await expect(down).to_have_attribute("aria-pressed", "false")
    assert await feedback_in(redis) == []
    ann.well()


@pytest.mark.parametrize(
    ("button", "order"),
    [("B is better", ((1,), (0,))), ("They are equally good", ((0, 1),))],
)
async def test_of_two_answers_one_is_picked_or_neither(visit, double, redis, button, order):
    ann = await visit("complete", "feedback", size=PHONE, scheme="dark")
    page = await ann.open()
    await page.get_by_role("button", name="Two answers, pick one").click()
    await send(page, "Name a river")
    await expect(page.get_by_role("button", name=button)).to_be_enabled()
    assert double.requests[-1]["n"] == 2
    await ann.accessible()
    await page.get_by_role("button", name=button).click()
    await expect(page.locator(".pair")).to_have_count(0)
    ranking = await said_once(redis, "ranking")
    assert ranking.ranking == order
    assert [output.choice for output in ranking.outputs] == [0, 1]
    await expect(page.get_by_text("1 / 2" if len(order) == 1 else "2 / 2")).to_be_visible()
    ann.well()


async def test_stopping_ends_the_generation_and_regenerating_gives_another(visit, double):
    double.pace, double.words = 0.05, ("word ",) * 200
    ann = await visit("complete", "feedback")
    page = await ann.open()
    await send(page, "Talk")
    await expect(page.locator(".text.writing")).to_contain_text("word word")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_text("Stopped, so it cannot be rated")).to_be_visible()
    await eventually(lambda: double.aborted == 1)
    assert await page.get_by_role("button", name="Good answer").count() == 0
    double.pace, double.words = 0.0, ("short",)
    await page.get_by_role("button", name="Answer again").click()
    await expect(page.locator(".text")).to_have_text("short")
    await page.get_by_role("button", name="Earlier answer").click()
    await expect(page.locator(".text")).to_contain_text("word word")
    await page.get_by_role("button", name="Clear the conversation").click()
    await ann.accessible()
    await page.get_by_role("dialog").get_by_role("button", name="Clear").click()
    await expect(page.get_by_text("What would you like to know?")).to_be_visible()
    ann.well()


async def test_what_goes_wrong_is_said_with_what_to_do(visit, double):
    double.status = 503
    ann = await visit("complete", "feedback")
    page = await ann.open()
    await send(page, "Hello")
    await expect(page.get_by_role("alert")).to_contain_text("Try again in")
    await ann.accessible()
    double.status = None
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".text")).to_contain_text("The capital is Paris")
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Longest answer").fill("4000")
    await page.get_by_label("Version").select_option("instructloop@v0000")
    await page.get_by_label("System message").fill("Be brief.")
    await ann.accessible()
    await send(page, "Hello again")
    await expect(page.get_by_role("alert")).to_contain_text("too long")
    asked = double.requests[-1]
    assert (asked["max_tokens"], asked["messages"][0]["content"]) == (4000, "Be brief.")
    assert ann.strangers == []


async def test_markup_in_an_answer_stays_text(visit, double):
    double.words = scenes.NASTY
    ann = await visit("complete", "feedback")
    page = await ann.open()
    await send(page, "<b>Break</b> it")
    await expect(page.get_by_role("button", name="Good answer")).to_be_visible()
    text = await page.locator(".text").inner_text()
    for piece in ("<img src=x onerror=", "<script>", "javascript:", '<a href="', "bold <b>tag</b>"):
        assert piece in text
    assert await page.locator(".turn :is(img, script, b, iframe)").count() == 0
    links = page.locator(".text a")
    assert [await one.get_attribute("href") for one in await links.all()] == [
        "https://evil.example/"
    ]
    assert await page.locator(".prompt-text").inner_text() == "<b>Break</b> it"
    assert await page.title() == "Playground · InstructLoop"
    ann.well()


async def test_a_swap_is_seen_and_an_answer_without_our_id_takes_no_feedback(visit, double):
    double.crosses_to = "v0001"
    ann = await visit("complete", "feedback")
    page = await ann.open()
    await send(page, "Hello")
    await expect(page.locator(".badge.version")).to_have_text("v0000 → v0001")
    double.crosses_to, double.own_ids = None, True
    await send(page, "Hello again")
    await expect(page.get_by_text("Takes no feedback")).to_be_visible()
    await ann.accessible()
    ann.well()


async def test_a_session_that_ends_asks_again_and_loses_nothing(visit, redis):
    ann = await visit("complete", "feedback")
    page = await ann.open()
    await send(page, "Hello")
    await expect(page.get_by_role("button", name="Good answer")).to_be_visible()
    await redis.delete(*await redis.keys(keys.session("*")))
    asks = "fetch('/v1/session').then(reply => reply.json()).then(said => !said.signed_in)"
    await eventually(lambda: page.evaluate(asks))
    await page.get_by_role("button", name="Write a better answer").click()
    await page.get_by_role("textbox", name="should have been").fill("Mine")
    await page.get_by_role("button", name="Save this answer").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Your session has ended")
    await ann.accessible()
    await dialog.get_by_label("API key").fill("il-wrong")
    await dialog.get_by_role("button", name="Sign in").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("not known")
    await dialog.get_by_label("API key").fill(ann.secret)
    await dialog.get_by_role("button", name="Sign in").click()
    await expect(dialog).to_have_count(0)
    await page.get_by_role("button", name="Try again").click()
    await expect(page.get_by_text("edited by you")).to_be_visible()
    assert (await said_once(redis, "demonstration")).key_id == ann.key.id


async def test_sign_in_theme_and_sign_out(visit, redis):
    ann = await visit("label", size=PHONE)
    await ann.page.goto(ann.gateway.url + "/")
    await expect(ann.page.get_by_label("API key")).to_be_focused()
    await ann.accessible()
    page = await ann.open()
    await expect(page.get_by_role("heading")).to_contain_text("This key cannot do that")
    await ann.accessible()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(ground)
    await page.get_by_role("button", name="Change between light and dark").click()
    dark = await page.evaluate(ground)
    assert light != dark
    await ann.accessible()
    await page.reload()
    assert await page.evaluate(ground) == dark
    assert await page.evaluate("document.cookie") == ""
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("API key")).to_be_visible()
    assert await redis.keys(keys.session("*")) == []
    ann.well()
    await revoke_key(redis, ann.key.id)

    async def refused() -> bool:
        headers = {"x-api-key": ann.secret}
        url = ann.gateway.url + "/v1/models"
        async with ann.gateway.http.get(url, headers=headers) as response:
            return response.status == 401

    await eventually(refused)
    await page.get_by_label("API key").fill(ann.secret)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("revoked")


async def test_a_page_of_another_origin_cannot_use_the_session(visit, double, browser):
    ann = await visit("complete", "feedback")
    page = await ann.open()
    body = json.dumps({"model": "instructloop", "messages": [{"role": "user", "content": "hi"}]})
    script = (
        f"fetch('{ann.gateway.url}/v1/chat/completions', {{method: 'POST', mode: 'no-cors', "
        f"credentials: 'include', body: {json.dumps(body)}}}).then(() => document.title = 'sent')"
    )

    async def trap(_):
        return web.Response(text=f"<script>{script}</script>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", trap)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        replies = []
        page.on("response", lambda response: replies.append((response.url, response.status)))
        await page.goto(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        await expect(page).to_have_title("sent")
        sent = [status for url, status in replies if url.endswith("/v1/chat/completions")]
        assert sent == [403]  # the cookie went along, for the port makes no other site
        assert double.requests == []
    finally:
        await runner.cleanup()
