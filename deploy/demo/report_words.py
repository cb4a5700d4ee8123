"""The words of the demonstration's report: its headline and its figures as lines of text.

Pure: values of report.json in, text out. The terminal summary (report.py) and the page
(report_page.py) say the same because both take it from here.
"""

from collections.abc import Mapping
from typing import Any


def headline(report: Mapping[str, Any]) -> str:
    """The outcome in one line."""
    if report["outcome"] != "promoted":
        return f"No new version went live: {report['outcome']} ({report['reason']})"
    return (
        f"{report['new_version']} wins {report['win_rate']['value']:.1%} of "
        f"{report['win_rate']['n']} unseen prompts against {report['first_version']}, "
        f"says the judge `{report['judge']}`"
    )


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the main figures, as text."""
    first, new = report["first"], report["new"]
    return [
        ("win rate, broken text loses", shown_rate(report["win_rate"])),
        ("win rate by score alone", shown_rate(report["win_rate_by_score"])),
        ("among answers of similar length", shown_rate(report["similar_length"])),
        ("at equal length (logistic)", shown(report["at_equal_length"], ".1%")),
        ("won / tied / lost", f"{report['wins']} / {report['ties']} / {report['losses']}"),
        ("mean score", _two(first, new, "mean_score", ".3f")),
        ("mean words", _two(first, new, "mean_words", ".1f")),
        ("answers cut off at the cap", _two(first, new, "cut_share", ".1%")),
        ("broken answers", _two(first, new, "broken_share", ".1%")),
        ("empty answers", _two(first, new, "empty_share", ".1%")),
        (
            "KL from the first policy",
            shown(report["kl"], ".2f", " nats an answer") + _count(report["kl_answers"]),
        ),
        ("KL per token", shown(report["kl_per_token"], ".3f", " nats")),
        (
            "pretraining loss",
            shown(report["pretraining_loss_change"], "+.4f", " nats a token")
            + _count(report["pretraining_tokens"]),
        ),
        (
            "requests while it learned and swapped",
            f"{report['requests']}, {report['failed_requests']} failed",
        ),
        ("longest stall at the swap", shown(report["longest_stall_seconds"], ".2f", " s")),
        (
            "time to first token, idle and while training (median)",
            f"{shown(report['first_token_seconds']['idle'], '.3f', ' s')}, "
            f"{shown(report['first_token_seconds']['while_training'], '.3f', ' s')}",
        ),
        ("time", f"{report['seconds'] / 60:.1f} minutes"),
    ]


def shown_rate(rate: Mapping[str, Any] | None) -> str:
    """A win rate with its interval."""
    if rate is None:
        return "no such pair"
    low, high = rate["interval"]
    return f"{rate['value']:.1%}, 95 % interval {low:.1%} to {high:.1%}, n = {rate['n']}"


def shown(value: float | None, how: str, unit: str = "") -> str:
    """A figure that may be missing, formatted by `how`."""
    return "not measured" if value is None else f"{value:{how}}{unit}"


def _count(number: float | None) -> str:
    """How many a figure rests on, behind it; nothing where nothing was counted."""
    return "" if number is None else f", n = {number:,.0f}"


def _two(first: Mapping[str, Any], new: Mapping[str, Any], name: str, how: str) -> str:
    return f"{shown(first[name], how)} → {shown(new[name], how)}"
