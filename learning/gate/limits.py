"""What a candidate may not do, however well it is liked: the gate's limits, with words for people.

Figures in; reasons that fail the candidate, and remarks that do not, out. Pure;
learning/gate/gate.py adds what the raters said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.hyperparameters import GateSettings
from learning.gate.comparisons import Comparison
from learning.gate.regressions import Regression, is_worse
from learning.gate.toxicity import Rise

Retention = Literal["kept", "lost", "learned"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a candidate beside its parent, and beside the anchor where that is another
    version."""

    votes: Sequence[Comparison]
    """By held-out raters."""
    proxies: Sequence[Comparison]
    """By the reward model."""
    kl_per_token: float
    """From the anchor, nats."""
    pretraining_loss_share: float
    """Change of the loss on text never trained on, as a share of the anchor's."""
    length_ratio: float
    broken_share: float
    votes_vs_anchor: Sequence[Comparison] = ()
    proxies_vs_anchor: Sequence[Comparison] = ()
    """Both empty where the anchor is the parent."""
    regressions: Sequence[Regression] = ()
    toxicity: Rise | None = None


def retention(evidence: Evidence, settings: GateSettings) -> Retention:
    """Whether what it knew of plain text was kept: within the limit on both sides."""
    change, most = evidence.pretraining_loss_share, settings.max_retention_change
    if not change <= most:
        return "lost"
    return "learned" if change < -most else "kept"


def limits(evidence: Evidence, settings: GateSettings) -> tuple[list[str], list[str]]:
    """Limits that are passed, which fail the candidate, and remarks, which do not."""
    broken = [
        *_moved_too_far(evidence, settings),
        *_lost_skills(evidence.regressions, settings),
        *_abusive(evidence.toxicity, settings),
    ]
    remarks = []
    if retention(evidence, settings) == "learned":
        remarks.append(
            f"the loss on plain text fell by {-evidence.pretraining_loss_share:.1%}: "
            "it learned such text, which is more than keeping it"
        )
    return broken, remarks


def _moved_too_far(evidence: Evidence, settings: GateSettings) -> list[str]:
    broken = []
    if not evidence.kl_per_token <= settings.max_kl_per_token:
        broken.append(
            f"it moved {evidence.kl_per_token:.3f} nats per token from the anchor, "
            f"the limit is {settings.max_kl_per_token:.3f}"
        )
    if retention(evidence, settings) == "lost":
        broken.append(
            f"it forgets: the loss on plain text rose by {evidence.pretraining_loss_share:.1%}, "
            f"the limit is {settings.max_retention_change:.1%}"
        )
    ratio = settings.max_length_ratio
    if not 1.0 / ratio <= evidence.length_ratio <= ratio:
        broken.append(
            f"its answers are {evidence.length_ratio:.2f} times as long as the live policy's, "
            f"allowed is {1.0 / ratio:.2f} to {ratio:.2f}"
        )
    if not evidence.broken_share <= settings.max_broken_share:
        broken.append(
            f"{evidence.broken_share:.0%} of its answers are broken text, "
            f"the limit is {settings.max_broken_share:.0%}"
        )
    return broken


def _lost_skills(regressions: Sequence[Regression], settings: GateSettings) -> list[str]:
    return [
        f"it got worse at the suite {found.suite}: {found.candidate:.0%} of {found.items} items "
        f"are right, the live policy has {found.parent:.0%}, a loss of "
        f"{settings.max_regression:.0%} is allowed"
        for found in regressions
        if is_worse(found, limit=settings.max_regression, alpha=settings.regression_alpha)
    ]


def _abusive(toxicity: Rise | None, settings: GateSettings) -> list[str]:
    if toxicity is None or toxicity.rise <= settings.max_toxicity_rise or toxicity.low <= 0.0:
        return []
    return [
        f"{toxicity.candidate:.1%} of its answers have words of abuse, {toxicity.parent:.1%} of "
        f"the live policy's; a rise of {settings.max_toxicity_rise:.1%} is allowed"
    ]
