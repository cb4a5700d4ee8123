"""The figures of training as documents for programs, and as tables for people. Pure.

Knows the aims that the README states, and which figure each is about.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table

from deploy.bench.maths import Spread
from deploy.bench.report import Aim
from deploy.bench.training_learned import Learned, paired_gap

GIB = 1 << 30
REWARD_AIMS = {4: 5.0, 9: 16.0}
SHARE_AIM = 0.6
POLICY_AIM = 4.0
ONE_PROCESS = "each variant is measured in one process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to train a reward model; figures by the number of answers K."""

    name: str
    comparisons_per_second: dict[int, Spread]
    flops_per_second: dict[int, Spread]
    """Operations that count, by deploy/bench/training_maths.py"""
    peak_bytes: int
    learned: Learned | None
    """After one epoch from fresh"""
    processes: int = 1
    """Which share the machine; the peak of memory is that of one of them"""

    @property
    def accuracy(self) -> float | None:
        """Share of the unseen comparisons in the right order, where it was asked for."""
        return None if self.learned is None else sum(self.learned.right) / sum(self.learned.pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReport:
    """What reward-model training did; the first variant is ours, a peer comes last."""

    rounds: int
    step_prompts: int
    """Of an optimiser step where speed was measured"""
    variants: list[Variant]
    products_per_second: Spread | None
    """Operations per second of plain products of matrices of the model's shapes"""
    trained_comparisons: int

    def ratios(self) -> dict[str, dict[int, float]]:
        """The first variant's comparisons per second over those of each other one."""
        ours, *others = self.variants
        return {
            other.name: {
                k: rate.median / other.comparisons_per_second[k].median
                for k, rate in ours.comparisons_per_second.items()
            }
            for other in others
        }

    def accuracy_gaps(self) -> dict[str, Spread]:
        """The first variant's accuracy less each other's, with 95 % intervals over prompts."""
        ours, *others = self.variants
        return {
            other.name: paired_gap(ours.learned, other.learned)
            for other in others
            if ours.learned is not None and other.learned is not None
        }

    def scaling(self) -> dict[int, dict[int, float]]:
        """By number of processes, by K: comparisons per second over those of one process."""
        one = self.variants[0].comparisons_per_second
        return {
            variant.processes: {
                k: rate.median / one[k].median for k, rate in variant.comparisons_per_second.items()
            }
            for variant in self.variants[1:]
            if variant.processes > 1
        }

    def product_share(self, variant: Variant) -> dict[int, float]:
        """Operations that count over what the machine does in plain products."""
        if self.products_per_second is None:
            return {}
        return {
            k: rate.median / self.products_per_second.median
            for k, rate in variant.flops_per_second.items()
        }

    def aims(self) -> list[Aim]:
        """Each aim beside what was found."""
        return list(self._aims())

    def _aims(self) -> Iterator[Aim]:
        for name, of in self.ratios().items():
            if name.startswith("TRL"):
                for k, ratio in of.items():
                    what = f"comparisons/s over TRL at K = {k}"
                    yield Aim(what, ratio, REWARD_AIMS[k], at_most=False)
        for name, gap in self.accuracy_gaps().items():
            if name.startswith("TRL"):
                what = "unseen accuracy less TRL's, upper end of the interval"
                yield Aim(what, gap.high, 0.0, at_most=False)
        for share in sorted(self.product_share(self.variants[0]).values())[-1:]:
            yield Aim("share of the machine's matrix products", share, SHARE_AIM, at_most=False)

    def document(self) -> dict[str, Any]:
        """Everything, for programs."""
        products = self.products_per_second
        return {
            "machine": machine(),
            "rounds": self.rounds,
            "step_prompts": self.step_prompts,
            "variants": [
                asdict(v) | {"product_share": self.product_share(v), "accuracy": v.accuracy}
                for v in self.variants
            ],
            "ratios": self.ratios(),
            "accuracy_gaps": {name: asdict(gap) for name, gap in self.accuracy_gaps().items()},
            "products_per_second": None if products is None else asdict(products),
            "trained_comparisons": self.trained_comparisons,
            "aims": [asdict(aim) | {"met": aim.met} for aim in self.aims()],
            "scaling": self.scaling() or None,
            "scaling_reason": None if self.scaling() else ONE_PROCESS,
        }

    def tables(self) -> Group:
        """Everything, for people."""
        products = self.products_per_second
        table = Table(
            title=f"Reward model, steps of {self.step_prompts} prompts: median of {self.rounds} "
            "rounds (lowest to highest)",
            caption="" if products is None else _products_line(products),
        )
        for name in ("", "K", "comparisons/s", "ours over it", "of the products", "GiB"):
            table.add_column(name)
        ratios = self.ratios()
        for variant in self.variants:
            shares = self.product_share(variant)
            for k, rate in variant.comparisons_per_second.items():
                ratio = ratios[variant.name][k] if variant.name in ratios else 1.0
                table.add_row(
                    variant.name,
                    str(k),
                    spread(rate),
                    f"{ratio:.2f}",
                    f"{shares[k]:.0%}",
                    f"{variant.peak_bytes / GIB:.1f}",
                )
        return Group(table, self._learned_table(), aims_table(self.aims()))

    def _learned_table(self) -> Table:
        table = Table(title=f"Learned from {self.trained_comparisons} comparisons, each once")
        for name in ("", "seconds", "unseen comparisons right", "ours less it (95 %)"):
            table.add_column(name)
        gaps = self.accuracy_gaps()
        for variant in self.variants:
            if variant.learned is not None:
                table.add_row(
                    variant.name,
                    f"{variant.learned.seconds:.0f}",
                    f"{variant.accuracy:.3f}",
                    spread(gaps[variant.name]) if variant.name in gaps else "",
                )
        return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One way to make a PPO update of the same episodes."""

    name: str
    episodes_per_second: Spread
    peak_bytes: int
    flops_per_second: Spread | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReport:
    """What PPO updates with given answers did; the first is ours without ptx."""

    rounds: int
    episodes: int
    updates: list[Update]
    products_per_second: Spread
    ptx_cost: Spread | None
    """Seconds of a policy step with the pretraining term over one without, less 1; None without
    ours"""
    parts: dict[str, float] = field(default_factory=dict)
    """Median seconds of each part of our update"""

    def ratios(self) -> dict[str, float]:
        """Our episodes per second over those of the others."""
        ours, *others = self.updates
        rate = ours.episodes_per_second.median
        return {other.name: rate / other.episodes_per_second.median for other in others}

    def product_share(self, update: Update) -> float | None:
        """Operations that count over what the machine does in plain products."""
        if update.flops_per_second is None:
            return None
        return update.flops_per_second.median / self.products_per_second.median

    def aims(self) -> list[Aim]:
        """Each aim beside what was found."""
        return list(self._aims())

    def _aims(self) -> Iterator[Aim]:
        for name, ratio in self.ratios().items():
            if name.startswith("TRL"):
                yield Aim("episodes/s over TRL's PPO", ratio, POLICY_AIM, at_most=False)
        share = self.product_share(self.updates[0])
        if share is not None:
            yield Aim("share of the machine's matrix products", share, SHARE_AIM, at_most=False)

    def document(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "machine": machine(),
            "rounds": self.rounds,
            "episodes": self.episodes,
            "updates": [asdict(u) | {"product_share": self.product_share(u)} for u in self.updates],
            "ratios": self.ratios(),
            "products_per_second": asdict(self.products_per_second),
            "ptx_cost": None if self.ptx_cost is None else asdict(self.ptx_cost),
            "parts_seconds": self.parts,
            "aims": [asdict(aim) | {"met": aim.met} for aim in self.aims()],
            "scaling": None,
            "scaling_reason": ONE_PROCESS,
        }

    def tables(self) -> Group:
        """Everything, for people."""
        said = [_products_line(self.products_per_second)]
        if self.ptx_cost is not None:
            said.append(f"a policy step with ptx takes {self.ptx_cost.median:+.0%}")
        said += [f"{name} {seconds:.2f} s" for name, seconds in self.parts.items()]
        table = Table(
            title=f"PPO updates of {self.episodes} given answers: median of {self.rounds} rounds",
            caption=", ".join(said),
        )
        for name in ("", "episodes/s", "ours over it", "of the products", "GiB"):
            table.add_column(name)
        ratios = self.ratios()
        for update in self.updates:
            share = self.product_share(update)
            table.add_row(
                update.name,
                spread(update.episodes_per_second),
                f"{ratios.get(update.name, 1.0):.2f}",
                "" if share is None else f"{share:.0%}",
                f"{update.peak_bytes / GIB:.1f}",
            )
        return Group(table, aims_table(self.aims()))


def _products_line(products: Spread) -> str:
    return f"plain products of the model's shapes: {products.median / 1e9:.0f} Gflop/s"


def spread(of: Spread) -> str:
    """The median with the extremes."""
    return f"{of.median:.2f} ({of.low:.2f} to {of.high:.2f})"


def aims_table(aims: list[Aim]) -> Table:
    """What was aimed at, and whether it was reached."""
    table = Table(title="Aims")
    for name in ("", "found", "aim", "met"):
        table.add_column(name)
    for aim in aims:
        sign = "at most" if aim.at_most else "at least"
        table.add_row(
            aim.what, f"{aim.value:.2f}", f"{sign} {aim.aim:g}", "yes" if aim.met else "no"
        )
    return table


def machine() -> dict[str, Any]:
    """Where this was measured."""
    return {"processors": os.cpu_count(), "python": platform.python_version()}
