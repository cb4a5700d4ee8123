"""Learning-rate warm-up, the decay of the weight average, the horizon of an adaptive beta.

All three follow from how long a run is, unless somebody says otherwise.
Pure arithmetic on counts. Knows no optimiser; learning/policy/train.py applies the results.
"""

WARMUP_START = 0.1
"""The paper starts its warm-up at a tenth of the peak (appendix C.4)."""
LONGEST_WARMUP = 10
"""Iterations; the paper's (appendix C.4)."""
_WARMUP_SHARE = 1 / 8
LONGEST_HORIZON = 10_000
"""Episodes; that of the predecessor's code, whose runs were a hundred times as long."""


def warmup_factor(iteration: int, *, warmup_iterations: int) -> float:
    """The share of the peak rate in an iteration counted from 0: .1, climbing in a line to 1.

    It is 1 from iteration `warmup_iterations` on, and stays there: the paper's rate is constant.
    """
    if iteration >= warmup_iterations:
        return 1.0
    return WARMUP_START + (1.0 - WARMUP_START) * iteration / warmup_iterations


def warmup_length(asked: int | None, *, iterations: int) -> int:
    """Iterations of the warm-up: as asked, else an eighth of a run, from one to the paper's ten."""
    if asked is not None:
        return asked
    return min(max(round(_WARMUP_SHARE * iterations), 1), LONGEST_WARMUP)


def kl_horizon(asked: int | None, *, episodes: int) -> int:
    """Episodes over which beta adapts: as asked, else half of a run's, at most 10,000.

    A controller with the horizon of a long run does nothing in a short one.
    """
    return asked if asked is not None else min(max(episodes // 2, 1), LONGEST_HORIZON)


def ema_decay(*, optimiser_steps: int, half_life_fraction: float, max_decay: float) -> float:
    """The decay per optimiser step whose half-life is that fraction of all steps.

    Never above `max_decay` (the paper's .992, whose half-life of 86 steps suits 4,000 steps and
    would leave a run of 64 steps mostly where it began). A fraction of 0 gives 0: no averaging.
    """
    half_life = half_life_fraction * optimiser_steps
    if half_life <= 0.0:
        return 0.0
    return float(min(max_decay, 0.5 ** (1.0 / half_life)))
