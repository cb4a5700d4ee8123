"""Signs that the learner's engine and its trainer do not hold the same policy.

What an engine samples is corrected by bounded weights (learning/policy/ppo_losses.py), which hides
a fault as well as it mends rounding. So the difference is held against limits, far from what bf16
does (.002 nats a token, an effective share of .995) and near what weights that did not arrive do.
A sign stops nothing: it is a warning in the log, a figure and a metric. Pure but for the log.
"""

import logging
from collections.abc import Mapping

_log = logging.getLogger(__name__)

MOST: dict[str, tuple[float, str]] = {
    "engine_kl": (0.01, "nats per token lie between engine and trainer"),
    "engine_bias": (0.02, "nats per token is how far their log-perplexities are apart"),
    "engine_capped_share": (0.01, "of importance weights were cut at the cap"),
    "engine_chi_square": (0.1, "is the chi-square of the importance weights before the cap"),
    "first_ratio_error": (1e-3, "is how far a ratio was from 1 before anything was learned"),
}
"""Largest size that a healthy figure has, and what it is."""
LEAST: dict[str, tuple[float, str]] = {
    "engine_effective_share": (0.9, "of the samples count after the correction"),
}
"""Smallest."""


def engine_alarms(figures: Mapping[str, float]) -> list[str]:
    """Every sign in the figures of an iteration, in words; a figure that is no number is one."""
    above = [
        f"{figures[name]:.3g} {what} ({name}, limit {limit:g})"
        for name, (limit, what) in MOST.items()
        if name in figures and not abs(figures[name]) <= limit
    ]
    below = [
        f"{figures[name]:.3g} {what} ({name}, limit {limit:g})"
        for name, (limit, what) in LEAST.items()
        if name in figures and not figures[name] >= limit
    ]
    return above + below


def alarms_said(figures: Mapping[str, float], *, iteration: int) -> float:
    """Warn of each sign in the log; how many there are."""
    found = engine_alarms(figures)
    for sign in found:
        _log.warning("iteration %d: %s", iteration, sign)
    return float(len(found))
