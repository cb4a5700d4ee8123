"""Learning-rate warm-up, and the decay of the weight average.

Pure arithmetic on counts. Knows no optimiser; learning/policy/train.py applies the results.
"""

WARMUP_START = 0.1
"""The paper starts its warm-up at a tenth of the peak (appendix C.4)."""


def warmup_factor(iteration: int, *, warmup_iterations: int) -> float:
    """The share of the peak rate in an iteration counted from 0: .1, climbing in a line to 1.

    It is 1 from iteration `warmup_iterations` on, and stays there: the paper's rate is constant.
    """
    if iteration >= warmup_iterations:
        return 1.0
    return WARMUP_START + (1.0 - WARMUP_START) * iteration / warmup_iterations


def ema_decay(*, optimiser_steps: int, half_life_fraction: float, max_decay: float) -> float:
    """The decay per optimiser step whose half-life is that fraction of all steps.

    Never above `max_decay` (the paper's .992, whose half-life of 86 steps suits 4,000 steps and
    would leave a run of 64 steps mostly where it began). A fraction of 0 gives 0: no averaging.
    """
    half_life = half_life_fraction * optimiser_steps
    if half_life <= 0.0:
        return 0.0
    return float(min(max_decay, 0.5 ** (1.0 / half_life)))
