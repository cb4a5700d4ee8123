"""How a reward model learns from feedback: batches, their losses, and what it then gets right.

Pure in its inputs: groups, a model and settings in; gradients, counts and scales out. Files, time
and signals are the stage's business (learning/reward_model/train.py).
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from core.hyperparameters import RewardModelSettings
from learning.reward_model.dataset import NUM_RATING_LEVELS, Judgement, RankedGroup, Ranking
from learning.reward_model.disagreement import Heads, head_losses
from learning.reward_model.preference_loss import count_right, ranking_loss, threshold_loss
from learning.training.dealing import own_rows
from learning.training.distributed import sum_gradients, sum_over_processes, through
from learning.training.models import RewardModel, scores_and_features
from learning.training.packing import Group


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimiser step's data."""

    ranked: list[RankedGroup]
    judgements: list[Judgement]
    ends_epoch: bool

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        groups = [r.group for r in self.ranked] + [j.group for j in self.judgements]
        return sum(group.num_tokens for group in groups)


@dataclass(slots=True)
class Tally:
    """Counts over rankings: how many pairs, how many in the right order, at what loss."""

    pairs: int = 0
    right: float = 0.0
    rankings: int = 0
    loss_sum: float = 0.0

    def add(self, ranking: Ranking, group_scores: Tensor) -> None:
        """Count one ranking, given the scores (answers,) of its whole group."""
        chosen, ranks = _of_ranking(ranking, group_scores)
        self.pairs += ranking.num_pairs
        self.right += count_right(chosen, ranks)
        self.rankings += 1
        self.loss_sum += float(ranking_loss(chosen, ranks))

    @property
    def accuracy(self) -> float:
        """Share of untied pairs in the right order."""
        return self.right / self.pairs

    @property
    def loss(self) -> float:
        """Mean of equation 1 over rankings."""
        return self.loss_sum / self.rankings


@dataclass(slots=True)
class Evaluation:
    """What a reward model does on groups it may not have seen."""

    by_raters: dict[bool, Tally] = field(default_factory=lambda: {False: Tally(), True: Tally()})
    """Keyed by whether the raters are held out."""
    scores: list[Tensor] = field(default_factory=list)
    """Of each group, (answers,)."""
    ensemble: Tally = field(default_factory=Tally)
    """Of the heads' mean score, where there are heads."""

    def add(
        self, ranked: RankedGroup, group_scores: Tensor, head_scores: Tensor | None = None
    ) -> None:
        """Count all rankings of one group, given scores (answers,) and those of heads."""
        self.scores.append(group_scores)
        for ranking in ranked.rankings:
            self.by_raters[ranking.heldout_rater].add(ranking, group_scores)
            if head_scores is not None:
                self.ensemble.add(ranking, head_scores.mean(dim=0))

    def tallies(self) -> dict[str, Tally]:
        """By the names that figures and metrics use."""
        return {
            "validation": self.total(),
            "validation_training_raters": self.by_raters[False],
            "validation_heldout_raters": self.by_raters[True],
            "ensemble": self.ensemble,
        }

    def total(self) -> Tally:
        """All raters together."""
        a, b = self.by_raters.values()
        return Tally(
            pairs=a.pairs + b.pairs,
            right=a.right + b.right,
            rankings=a.rankings + b.rankings,
            loss_sum=a.loss_sum + b.loss_sum,
        )

    def loss_to_choose_by(self) -> float | None:
        """The loss on held-out raters' rankings, else on the others'; None without any."""
        for heldout in (True, False):
            if self.by_raters[heldout].rankings:
                return self.by_raters[heldout].loss
        return None


class Cuts(nn.Module):
    """The learned cuts of single judgements, in units of the score."""

    def __init__(self) -> None:
        super().__init__()
        self.thumb = nn.Parameter(torch.zeros(1))
        self.rating = nn.Parameter(torch.linspace(-1, 1, NUM_RATING_LEVELS - 1))

    def loss(self, judgement: Judgement, score: Tensor) -> Tensor:
        """The loss of one judgement, given the answer's score (1,)."""
        cuts = self.thumb if judgement.kind == "thumb" else self.rating
        return threshold_loss(score, torch.tensor([judgement.level], device=score.device), cuts)


def plan_batches(
    ranked: Sequence[RankedGroup],
    judgements: Sequence[Judgement],
    *,
    settings: RewardModelSettings,
    seed: int,
) -> list[Batch]:
    """Every step of every epoch: prompts in a new order each time, judgements spread evenly."""
    batches = []
    for epoch in range(settings.epochs):
        order = random.Random(f"{seed}/{epoch}")
        shuffled = order.sample(ranked, len(ranked))
        others = order.sample(judgements, len(judgements))
        starts = range(0, len(shuffled), settings.batch_prompts)
        for number, start in enumerate(starts):
            batches.append(
                Batch(
                    ranked=shuffled[start : start + settings.batch_prompts],
                    judgements=others[number :: len(starts)],
                    ends_epoch=number == len(starts) - 1,
                )
            )
    return batches


def trained_rankings(ranked: Iterable[RankedGroup]) -> list[RankedGroup]:
    """Groups of the training split without what held-out raters said, weights normalised.

    A prompt's weight is the sum over its rankings of K - 1 (times the snapshot's weight); the mean
    over prompts becomes 1, so that the learning rate keeps its meaning.
    """
    kept = [replace(g, rankings=g.by(heldout=False)) for g in ranked]
    kept = [group for group in kept if group.rankings]
    total = sum(r.weight for group in kept for r in group.rankings)
    scale = len(kept) / total if total else 0.0
    return [
        replace(g, rankings=tuple(replace(r, weight=r.weight * scale) for r in g.rankings))
        for g in kept
    ]


def num_pairs(ranked: Iterable[RankedGroup]) -> int:
    """Untied pairs over all rankings."""
    return sum(r.num_pairs for group in ranked for r in group.rankings)


def shuffle_labels(ranked: Sequence[RankedGroup], *, seed: int) -> list[RankedGroup]:
    """The control that must learn nothing: every ranking's ranks in a random order."""
    order = random.Random(seed)
    return [
        replace(
            group,
            rankings=tuple(
                replace(r, ranks=tuple(order.sample(r.ranks, len(r.ranks)))) for r in group.rankings
            ),
        )
        for group in ranked
    ]


def add_gradients(
    model: RewardModel,
    cuts: Cuts,
    batch: Batch,
    settings: RewardModelSettings,
    heads: Heads | None = None,
) -> float:
    """Add the gradients of one batch's loss, row by row; returns the loss.

    The loss is the mean over prompts of their weighted rankings' losses, and `thumb_weight` times
    the mean over judgements. The sizes are the batch's, so that rows change nothing, and neither
    does sharing them with other processes. Heads get gradients of their own from the rankings; the
    model gets none from them.
    """
    total = 0.0
    groups = [r.group for r in batch.ranked] + [j.group for j in batch.judgements]
    num_ranked = len(batch.ranked)
    for row, everything in _rows(model, groups, token_budget=settings.token_budget):
        losses = [] if row else [0.0 * everything.sum()]
        for number, group_scores, features in row:
            if number < num_ranked:
                if heads is not None:
                    _add_head_gradients(heads, batch.ranked[number], features, num_ranked)
                rankings = batch.ranked[number].rankings
                losses += [
                    r.weight * ranking_loss(*_of_ranking(r, group_scores)) / num_ranked
                    for r in rankings
                ]
            else:
                judgement = batch.judgements[number - num_ranked]
                share = settings.thumb_weight / len(batch.judgements)
                losses.append(share * judgement.weight * cuts.loss(judgement, group_scores))
        loss = torch.stack(losses).sum()
        torch.autograd.backward([loss])
        total += float(loss.detach())
    sum_gradients([*cuts.parameters()] + ([] if heads is None else [heads.weight]))
    return sum_over_processes(total)


def scored_rows(
    model: RewardModel, groups: Sequence[Group], *, token_budget: int
) -> Iterator[list[tuple[int, Tensor]]]:
    """Row by row, each group's number and its answers' scores (answers,)."""
    for row in featured_rows(model, groups, token_budget=token_budget):
        yield [(number, group_scores) for number, group_scores, _ in row]


def featured_rows(
    model: RewardModel, groups: Sequence[Group], *, token_budget: int
) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
    """Row by row, each group's number, its answers' scores (answers,) and features for heads.

    Features are (answers, width), without a gradient. Of many processes each gets its share of the
    groups, and all get as many rows, some of which may be empty.
    """
    for row, _ in _rows(model, groups, token_budget=token_budget):
        yield row


def _rows(
    model: RewardModel, groups: Sequence[Group], *, token_budget: int
) -> Iterator[tuple[list[tuple[int, Tensor, Tensor]], Tensor]]:
    """As `featured_rows`, and the scores of the whole row, also where it counts for nothing."""
    for packed, numbers in own_rows(groups, token_budget=token_budget):
        row = packed.to(model.head.device)
        flat, features = through(model, scores_and_features, row)  # (answers of the row, ...)
        sizes = [len(groups[number].answers) for number in numbers]
        parts = (torch.split(flat, sizes), torch.split(features, sizes)) if numbers else ([], [])
        yield list(zip(numbers, *parts, strict=True)), flat


def cosine_rate(step: int, *, num_steps: int, peak: float, final_fraction: float) -> float:
    """The learning rate of a step counted from 0: from `peak` down to a share of it at the last.

    No warm-up, as in the paper (appendix C.2).
    """
    done = step / max(num_steps - 1, 1)
    height = 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * (final_fraction + (1.0 - final_fraction) * height)


def scale_of(group_scores: Sequence[Tensor]) -> tuple[float, float, float]:
    """Mean, standard deviation over all answers, and its mean within a prompt's answers."""
    together = torch.cat(list(group_scores))
    within = [s.std() for s in group_scores if len(s) > 1]
    mean_within = float(torch.stack(within).mean()) if within else 0.0
    return float(together.mean()), float(together.std()), mean_within


def _add_head_gradients(
    heads: Heads, ranked: RankedGroup, features: Tensor, num_ranked: int
) -> None:
    """As the main head learns from a prompt, but as often as each head's sample has it."""
    scores = heads.scores(features)  # (heads, answers)
    losses = [
        ranking.weight * head_losses(*_of_ranking(ranking, scores)) for ranking in ranked.rankings
    ]
    together = torch.stack(losses).sum(dim=0)  # (heads,)
    torch.autograd.backward([(heads.counts(ranked.group.prompt) * together).sum() / num_ranked])


def _of_ranking(ranking: Ranking, group_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (..., answers of the ranking) and ranks (answers of the ranking,)."""
    places = torch.tensor(ranking.answers, device=group_scores.device)
    return group_scores[..., places], torch.tensor(ranking.ranks, device=group_scores.device)
