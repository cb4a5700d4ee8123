"""Has a policy lost something that its parent could? Paired statistics over a suite's items.

Both answer the same items, so only those that one of them got right count: McNemar's exact test,
one-sided. A loss fails where it is larger than allowed and more than chance. Pure; the suites are
learning/evaluation/regression_suites.py's, the gate decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import beta, binom


@dataclass(frozen=True, slots=True)
class Regression:
    """One suite, answered by both. Shares of its items, between 0 and 1."""

    suite: str
    items: int
    parent: float
    candidate: float
    change: float
    """Candidate less parent."""
    low: float
    """Lower confidence bound of the change."""
    p_value: float
    """Chance of losing so many or more, were both equally good."""


def compared(
    suite: str, parent: Sequence[bool], candidate: Sequence[bool], *, alpha: float
) -> Regression:
    """What is right and wrong in both, item by item, as shares with their bound."""
    pairs = list(zip(parent, candidate, strict=True))
    lost = sum(was and not now for was, now in pairs)
    gained = sum(now and not was for was, now in pairs)
    items = len(pairs)
    return Regression(
        suite=suite,
        items=items,
        parent=sum(parent) / items,
        candidate=sum(candidate) / items,
        change=(gained - lost) / items,
        low=_lower_bound(lost, gained, alpha=alpha) / items,
        p_value=float(binom.sf(lost - 1, lost + gained, 0.5)) if lost else 1.0,
    )


def is_worse(found: Regression, *, limit: float, alpha: float) -> bool:
    """Whether more is lost than `limit` allows and chance explains."""
    return -found.change > limit and found.p_value < alpha


def _lower_bound(lost: int, gained: int, *, alpha: float) -> float:
    """Of gained less lost: Clopper and Pearson's, given how many items changed sides."""
    changed = lost + gained
    if gained == 0:
        return -float(changed)
    share = float(beta.ppf(alpha, gained, lost + 1))
    return changed * (2.0 * share - 1.0)
