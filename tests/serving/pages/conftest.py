"""A real Chromium before a real gateway, and a page that tells what went wrong on it."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from core.auth import create_key
from core.records import ApiKey

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 860}


@dataclass
class Visitor:
    """A person with a browser and a key."""

    page: Page
    gateway: object
    key: ApiKey
    secret: str
    faults: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note every error on the page and every request that leaves the service."""
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", self._asked)

    def _heard(self, message) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _asked(self, request) -> None:
        if not request.url.startswith((self.gateway.url, "data:", "blob:")):
            self.strangers.append(request.url)

    async def open(self, path: str = "/") -> Page:
        """Open a page and sign in there, as a person does."""
        await self.page.goto(self.gateway.url + path)
        await self.page.get_by_label("API key").fill(self.secret)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.get_by_role("button", name="Sign out").wait_for()
        return self.page

    async def accessible(self) -> None:
        """Axe finds nothing serious on the page as it is now, and nothing is cut off."""
        found = await Axe().run(self.page)
        serious = [
            (violation["id"], [node["html"][:200] for node in violation["nodes"]][:4])
            for violation in found.response["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == []
        width = await self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.page.viewport_size["width"]

    def well(self) -> None:
        """Nothing went wrong on the page, and nothing came from elsewhere."""
        assert self.faults == []
        assert self.strangers == []


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("Chromium is missing: apt-get install -y chromium (as root)", pytrace=False)
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        await launched.close()


@pytest.fixture
async def visit(browser, gateway, redis):
    """Make a visitor: `await visit("complete", "feedback", size=PHONE, scheme="dark")`."""

    async def make(*scopes, size=DESK, scheme="light", name="ann") -> Visitor:
        key, secret = await create_key(redis, name=name, tenant="acme", scopes=list(scopes))
        touch = size is PHONE
        context = await browser.new_context(
            viewport=size, color_scheme=scheme, has_touch=touch, reduced_motion="reduce"
        )
        context.set_default_timeout(8000)
        visitor = Visitor(await context.new_page(), gateway, key, secret)
        visitor.watch()
        return visitor

    return make
