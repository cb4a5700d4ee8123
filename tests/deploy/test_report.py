"""The report: what stands in it, that nothing breaks out of it, and how Chromium shows it."""

import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from rich.console import Console

from deploy.demo.report import figures, write_report
from deploy.demo.report_plots import learning_plot, stalls_plot, timeline_plot, win_rate_plot
from tests.deploy.example_result import NASTY, example_result, refused_result


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(example_result(), out, console=Console(file=io.StringIO()))
    return out


@pytest.fixture(scope="module")
def report(written) -> dict:
    return json.loads((written / "report.json").read_text())


@pytest.fixture(scope="module")
def html(written) -> str:
    return (written / "report.html").read_text()


def test_the_json_has_what_the_contract_names(report):
    rate = report["win_rate"]
    low, high = rate["interval"]
    assert 0 <= low <= rate["value"] <= high <= 1
    assert rate["n"] == 24
    assert report["seconds"] == 893.4
    assert report["failed_requests"] == 0
    assert report["kl"] == 4.1
    assert report["pretraining_loss_change"] == 0.0031


def test_figures_of_the_evaluation_say_how_many_answers_and_tokens_they_rest_on(report, html):
    assert (report["kl_answers"], report["pretraining_tokens"]) == (64, 2688)
    assert "4.10 nats an answer, n = 64" in html
    assert "nats a token, n = 2,688" in html


def test_the_json_is_honest_about_ties_lengths_and_broken_text(report):
    assert report["wins"] + report["ties"] + report["losses"] == 24
    assert report["win_rate"]["ties"] == report["ties"]
    assert report["first"]["broken_share"] == pytest.approx(2 / 24)
    assert report["new"]["empty_share"] == pytest.approx(1 / 24)
    assert report["new"]["cut_share"] == pytest.approx(0.5)
    assert report["first"]["cut_share"] == pytest.approx(2 / 3)
    assert {"win_rate_by_score", "similar_length", "at_equal_length"} <= report.keys()
    assert len(report["answers"]) == 24
    assert report["answers"][1]["new"]["broken"] is True


def test_the_longest_stall_is_the_longest_wait_near_the_swap_of_any_kind():
    result = example_result()
    assert figures(result)["longest_stall_seconds"] == 1.31
    result.traffic.gaps.append((result.swap_at - 300, 9.0))  # training, long before the swap
    result.traffic.first_chunks.append((result.swap_at + 2, 2.5))
    found = figures(result)
    assert found["longest_stall_seconds"] == 2.5
    assert found["longest_gap_seconds"] == 1.31


def test_failures_are_counted_and_quoted():
    result = example_result()
    result.traffic.failures.extend(["status 503: no", "the stream broke off"])
    found = figures(result)
    assert found["failed_requests"] == 2
    assert found["failures"] == ["status 503: no", "the stream broke off"]


def test_samples_are_drawn_by_the_seed(report):
    assert len(report["samples"]) == len(set(report["samples"])) == 12
    other = figures(replace(example_result(), seed=4))
    assert other["samples"] != report["samples"]
    assert figures(example_result(prompts=5))["samples"] == [0, 1, 2, 3, 4]


def test_numbers_that_json_does_not_know_are_null(report):
    assert report["card_figures"]["evaluation"]["odd"] is None


def test_the_terminal_gets_the_main_figures(tmp_path):
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    write_report(example_result(), tmp_path, console=console)
    text = console.file.getvalue()
    assert "v0001 wins" in text
    for part in ("95 % interval", "won / tied / lost", "1.31 s", "412, 0 failed", "14.9 minutes"):
        assert part in text
    assert "\x1b" not in text


def test_a_refused_candidate_is_reported_as_refused(tmp_path):
    console = Console(file=io.StringIO(), width=110)
    write_report(refused_result(), tmp_path, console=console)
    headline = "No new version went live: refused (the lower bound of the win rate is 0.46)"
    assert headline in console.file.getvalue()
    assert headline in (tmp_path / "report.html").read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["outcome"], report["kl"]) == ("refused", None)
    assert report["longest_stall_seconds"] is None


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_nothing_that_people_wrote_becomes_markup(html):
    parser = _Tags()
    parser.feed(html)
    assert not parser.tags & {"script", "img", "iframe", "link", "object", "form"}
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    assert NASTY not in html
    assert "&lt;script&gt;" in html


def test_the_page_needs_nothing_from_outside(html):
    assert not re.search(r"(https?:)?//", html.replace(NASTY, ""))
    parser = _Tags()
    parser.feed(html)
    links = [value for name, value in parser.attributes if name in ("href", "src", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)


def test_ids_are_unique_on_the_page(html):
    parser = _Tags()
    parser.feed(html)
    ids = [value for name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 20


def test_plots_take_their_colours_from_the_page(html):
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(svgs) == 4
    for svg in svgs:
        assert "var(--ink)" in svg
        assert not set(re.findall(r"#[0-9a-f]{6}\b", svg)) & {"#010203", "#070809", "#000000"}


def test_there_is_no_plot_where_there_is_nothing_to_show(report):
    assert learning_plot([]) == ""
    assert learning_plot([{"entropy": 1.0}]) == ""
    assert stalls_plot([], []) == ""
    assert timeline_plot({}, {}) == ""
    alone = {**report, "similar_length": None}
    assert "similar length" not in win_rate_plot(alone)


def test_timeline_puts_the_stages_within_the_phase_that_learns():
    svg = timeline_plot({"start": 5.0, "learn": 20.0}, {"reward_model": 12.0, "gate": 1.0})
    for label in ("start", "learn", "· reward model", "· gate", "12 s"):
        assert label in svg


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("Chromium is missing: apt-get install -y chromium (as root)", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_chromium_shows_the_page_without_a_fault(browser, written, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    faults, requests = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((written / "report.html").as_uri())

    assert page.title() == "InstructLoop demonstration: sentiment"
    assert faults == []
    assert [url for url in requests if not url.startswith("file:")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg[role=img]").count() == 4
    for svg in page.locator("svg[role=img]").all():
        box = svg.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 60
    assert page.get_by_text("wins", exact=False).first.is_visible()
    assert page.get_by_text(NASTY, exact=False).count() >= 1
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')]"
        ".map(t => [t, t.ownerSVGElement])"
        ".map(([t, svg]) => parseFloat(getComputedStyle(t).fontSize)"
        " * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"
    )
    assert smallest >= 7
    page.close()


def test_dark_and_light_differ_and_both_can_be_read(browser, written):
    seen = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((written / "report.html").as_uri())
        seen[scheme] = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body)"
            ".backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
        )
        page.close()
    for ink, ground, plot_ink in seen.values():
        assert abs(_brightness(ink) - _brightness(ground)) > 150
        assert plot_ink == ink
    assert _brightness(seen["light"][1]) > 200 > 60 > _brightness(seen["dark"][1])


def _brightness(rgb: str) -> float:
    return sum(map(int, re.findall(r"\d+", rgb)[:3])) / 3
