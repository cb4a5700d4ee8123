"""The pages as files: open, typed, tagged, and under a policy that lets nothing else in."""

import re
import time

import pytest

from core import keys, registry
from core.auth import create_key
from core.records import Replica
from core.setting_groups import EngineSettings
from serving import loop_view, page_routes
from tests.serving.conftest import running_gateway
from tests.serving.pages import scenes


async def fetch(gateway, path, method="GET", **headers):
    async with gateway.http.request(method, gateway.url + path, headers=headers) as response:
        return response.status, response.headers, await response.text()


@pytest.mark.parametrize("path", ["/", "/label", "/loop"])
async def test_a_page_is_open_and_strict(gateway, path):
    status, headers, text = await fetch(gateway, path)
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|style=|https?://", text)
    assert (await fetch(gateway, path, "HEAD"))[2] == ""
    assert (await fetch(gateway, path, "POST"))[0] == 405


async def test_every_file_that_is_named_somewhere_is_there_with_its_type(gateway):
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    named = set()
    for name, file in page_routes.files().items():
        text = file.content.decode()
        named |= set(re.findall(r'"/static/([\w.]+)"', text))
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([\w.]+)"', text))
    assert {"theme.js", "base.css", "icon.svg", "markdown.js", "sse.js"} <= named
    assert named == {name for name in page_routes.files() if not name.endswith(".html")}
    for name in named:
        status, headers, _ = await fetch(gateway, f"/static/{name}")
        assert (status, headers["content-type"].split(";")[0]) == (200, types[name.split(".")[1]])


async def test_a_file_that_has_not_changed_is_not_sent_again(gateway):
    _, headers, _ = await fetch(gateway, "/static/base.css")
    again = await fetch(gateway, "/static/base.css", **{"if-none-match": headers["etag"]})
    assert (again[0], again[2], again[1]["etag"]) == (304, "", headers["etag"])
    other = await fetch(gateway, "/static/base.css", **{"if-none-match": '"x"'})
    assert (other[0], len(other[2]) > 100) == (200, True)


@pytest.mark.parametrize(
    "name", ["none.js", "index.html", "..%2f..%2fapp.py", "../app.py", "a/b.js", "", "base.css%00"]
)
async def test_what_is_not_a_file_of_the_pages_is_not_there(gateway, name):
    status, _, text = await fetch(gateway, "/static/" + name)
    assert status in (401, 404)
    assert "import" not in text


def test_no_module_is_long_and_none_makes_html_of_text():
    for name, file in page_routes.files().items():
        text = file.content.decode()
        assert text.count("\n") <= 300, name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, (name, word)


@pytest.fixture
async def admin(gateway, redis):
    _, gateway.secret = await create_key(redis, name="a", tenant="acme", scopes=["admin"])
    return gateway


async def test_what_serves_is_told_to_admins_only(gateway, redis):
    for path in ("/v1/loop/serving", "/v1/loop/runs/r-1/curves"):
        async with gateway.get(path) as response:
            assert response.status == 403


async def test_what_serves_since_when_and_what_was_before(admin, redis):
    async with admin.get("/v1/loop/serving") as response:
        assert (await response.json())["target"] is None
    parents = {"v0000": None, "v0001": "v0000", "v0002": "v0001"}
    await scenes.publish(redis, *(scenes.card(*names) for names in parents.items()))
    await registry.promote(redis, "v0001", who="w", why="y")
    await registry.promote(redis, "v0002", who="w", why="y")
    await redis.hset(keys.counts(), mapping={"prompts": 12, "rankings": 3})
    swapping = Replica(
        name="r1", url="unix:/x", version="v0001", state="swapping", seen_at=time.time()
    )
    await redis.sadd(keys.replicas(), "r1")
    await redis.set(keys.replica("r1"), swapping.model_dump_json())
    async with admin.get("/v1/loop/serving") as response:
        said = await response.json()
    assert (said["target"], said["previous"]) == ("v0002", "v0001")
    assert said["since"].startswith("20")
    assert said["counts"] == {"prompts": 12, "rankings": 3}
    assert [(r["name"], r["version"], r["state"]) for r in said["replicas"]] == [
        ("r0", "v0000", "ready"),
        ("r1", "v0001", "swapping"),
    ]
    await registry.quarantine(redis, "v0001", why="broken")
    async with admin.get("/v1/loop/serving") as response:
        said = await response.json()
    assert (said["previous"], said["barred"]) == ("v0000", {"v0001": "broken"})


async def test_an_engine_that_somebody_else_runs_is_told_without_its_address(
    redis, gateway_settings, double
):
    async with double.listening() as url:
        engine = EngineSettings(urls=(url,))
        settings = gateway_settings.model_copy(update={"engine": engine})
        await redis.delete(keys.replicas())
        async with running_gateway(settings, redis) as gateway:
            _, gateway.secret = await create_key(redis, name="a", tenant="t", scopes=["admin"])
            async with gateway.get("/v1/loop/serving") as response:
                text = await response.text()
                (told,) = (await response.json())["replicas"]
    assert (told["name"], told["version"]) == ("external", "v0000")
    assert url not in text


async def test_curves_are_what_the_learner_left(admin, redis, state_dir):
    async with admin.get("/v1/loop/runs/r-1/curves") as response:
        assert response.status == 404
    await scenes.put_run(redis, state_dir, finished=False)
    async with admin.get("/v1/loop/runs/r-1/curves") as response:
        assert await response.json() == {"curves": {}}
    await scenes.put_run(redis, state_dir, finished=True)
    async with admin.get("/v1/loop/runs/r-1/curves") as response:
        curves = (await response.json())["curves"]
    assert curves.keys() == {"reward", "kl_to_anchor"}
    assert curves["reward"][:2] == pytest.approx([0.13, 0.25])
    assert len(curves["kl_to_anchor"]) == 12


@pytest.mark.parametrize("text", ["", "[]", "{", '{"iterations": 3}', '{"iterations": [1, null]}'])
def test_a_figures_file_that_says_nothing_gives_no_curves(tmp_path, text):
    (tmp_path / "figures.json").write_text(text)
    assert loop_view.read_curves(tmp_path / "figures.json") == {}
    assert loop_view.read_curves(tmp_path / "missing.json") == {}


def test_a_figure_that_is_no_number_leaves_a_gap(tmp_path):
    rows = '{"iterations": [{"reward": 1}, {"reward": NaN}, {"reward": true}, {"reward": 2.5}]}'
    (tmp_path / "figures.json").write_text(rows)
    curves = loop_view.read_curves(tmp_path / "figures.json")
    assert curves == {"reward": [1.0, None, None, 2.5]}
