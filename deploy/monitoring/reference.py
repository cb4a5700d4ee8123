"""The tables of docs/metrics.md: every metric and label, from the code and the alerts.

`python -m deploy.document` writes them; a test compares.
"""

import re
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from core import metrics
from deploy.monitoring.advice import ADVICE, LABELS

ALERTS = Path(__file__).resolve().parents[2] / "helm" / "instructloop" / "files" / "alerts.yml"
_PREFIX = "instructloop_"
_KINDS = (metrics.Counter, metrics.Gauge, metrics.Histogram)


def collectors() -> dict[str, "metrics.Counter | metrics.Gauge | metrics.Histogram"]:
    """Every metric of the service by its name as Prometheus shows it."""
    found = [value for value in vars(metrics).values() if isinstance(value, _KINDS)]
    return {_name(one): one for one in found}


def metrics_table() -> str:
    """One row for each metric."""
    rows = ["| metric | type | labels | what it says | what to do |", "|---|---|---|---|---|"]
    alerts = _alerts()
    for name, collector in collectors().items():
        family = next(iter(collector.describe()))
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        told = " ".join([ADVICE[name.removeprefix(_PREFIX)], *_links(alerts, name)])
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} | {told} |")
    return "\n".join(rows)


def labels_table() -> str:
    """One row for each label."""
    used = {label for one in collectors().values() for label in one._labelnames}
    rows = ["| label | what it says |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{label}` | {LABELS[label]} |" for label in sorted(used))])


def _name(collector: "metrics.Counter | metrics.Gauge | metrics.Histogram") -> str:
    family = next(iter(collector.describe()))
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def _links(alerts: dict[str, tuple[str, set[str]]], name: str) -> list[str]:
    """The alerts that watch a metric, each with its page."""
    return [
        f"[{alert}]({page.removeprefix('docs/')})"
        for alert, (page, watched) in alerts.items()
        if name in watched
    ]


def _alerts() -> dict[str, tuple[str, set[str]]]:
    """By alert its page and the metrics that it watches, through recorded rules, too."""
    rules = [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]
    recorded = {rule["record"]: _watched(rule["expr"], {}) for rule in rules if "record" in rule}
    return {
        rule["alert"]: (rule["annotations"]["runbook"], _watched(rule["expr"], recorded))
        for rule in rules
        if "alert" in rule
    }


def _watched(expression: str, recorded: dict[str, set[str]]) -> set[str]:
    names = re.findall(rf"\b{_PREFIX}[a-z_0-9]+", expression)
    own = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    return own.union(*(watched for name, watched in recorded.items() if name in expression))
