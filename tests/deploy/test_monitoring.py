"""Dashboards, alerts and runbooks against each other, and against Prometheus's own tool."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from core import metrics
from deploy.monitoring.dashboards import FILES, dashboard_json
from deploy.monitoring.panels import BOARDS

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
ALERTS = FILES.parent / "alerts.yml"
ALERTS_TESTS = ("alerts_test.yml", "alerts_slow_test.yml")
RUNBOOKS = ROOT / "docs" / "runbooks"


def rules() -> list[dict]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict]:
    return [rule for rule in rules() if "alert" in rule]


def metric_names(expression: str) -> set[str]:
    names = re.findall(r"\binstructloop_[a-z_0-9]+", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def known_metrics() -> set[str]:
    kinds = (metrics.Counter, metrics.Gauge, metrics.Histogram)
    collectors = [value for value in vars(metrics).values() if isinstance(value, kinds)]
    families = [family for collector in collectors for family in collector.describe()]
    counted = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    return {name for name in counted if name.startswith("instructloop_")}


def test_the_dashboards_that_are_shipped_are_those_of_the_code() -> None:
    assert sorted(path.stem for path in FILES.glob("*.json")) == sorted(b.uid for b in BOARDS)
    for board in BOARDS:
        shipped = (FILES / f"{board.uid}.json").read_text()
        assert shipped == dashboard_json(board), "run python -m deploy.monitoring.dashboards"


def test_every_panel_asks_the_chosen_prometheus_for_metrics_that_exist() -> None:
    known = known_metrics()
    assert len(known) > 30
    for board in BOARDS:
        shown = json.loads(dashboard_json(board))
        panels = [panel for panel in shown["panels"] if panel["type"] != "row"]
        assert [panel["title"] for panel in panels] == [panel.title for panel in board.panels]
        for panel in panels:
            assert panel["description"]
            for target in panel["targets"]:
                assert target["datasource"]["uid"] == "${datasource}"
                assert metric_names(target["expr"]) <= known
                assert metric_names(target["expr"])


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {
        n for b in BOARDS for p in b.panels for q in p.queries.values() for n in metric_names(q)
    }
    left_out = {"instructloop_request_seconds", "instructloop_breaker_opens_total"}
    left_out |= {"instructloop_rate_limited_total", "instructloop_canary_info"}
    left_out |= {"instructloop_canary_fallbacks_total"}
    assert known_metrics() - shown <= left_out


def test_every_alert_asks_for_metrics_that_exist_and_has_a_page_that_names_it() -> None:
    known = known_metrics()
    index = (RUNBOOKS / "README.md").read_text()
    for rule in rules():
        assert metric_names(rule["expr"]) <= known
    for alert in alerts():
        page = ROOT / alert["annotations"]["runbook"]
        assert alert["alert"] in page.read_text()
        assert f"| {alert['alert']} | [" in index
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"]["summary"]


def alert_tests() -> list[dict]:
    read = [yaml.safe_load((ALERTS.parent / name).read_text()) for name in ALERTS_TESTS]
    return [test for one in read for test in one["tests"]]


def test_every_alert_is_seen_to_fire_and_not_to():
    looks = [look for test in alert_tests() for look in test["alert_rule_test"]]
    fires = {look["alertname"] for look in looks if look["exp_alerts"]}
    assert fires == {alert["alert"] for alert in alerts()}
    silent = {look["alertname"] for look in looks if not look["exp_alerts"]}
    assert len(silent) > 15


def test_alerts_are_tested_on_series_with_the_labels_that_every_scrape_adds():
    """Without them both sides of an `and` match that never do in a real Prometheus."""
    for test in alert_tests():
        for series in test["input_series"]:
            assert 'job="' in series["series"], series["series"]
            assert 'instance="' in series["series"], series["series"]


def test_every_page_has_its_four_parts_and_its_links_lead_somewhere() -> None:
    for page in RUNBOOKS.glob("*.md"):
        text = page.read_text()
        if page.name != "README.md":
            parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
            assert parts == [
                "What it means", "What people notice", "Where to look", "What to do",
            ]  # fmt: skip
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert (page.parent / link).is_file(), f"{page.name} links to {link}"


def test_promtool_finds_nothing_wrong_and_every_tested_alert_fires_as_it_should() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = subprocess.run(
        ["promtool", "test", "rules", *ALERTS_TESTS],
        cwd=ALERTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
