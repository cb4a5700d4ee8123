"""Prompts in, sampled answers out, as token ids from end to end.

Text is tokenised once, when prompts are read; what the engine sampled is never decoded and encoded
again, so its log-probabilities belong to the ids that are trained on. An iteration's numbers live
in padded tables `(num_answers, length)`; `Layout` carries them to the flat order of packed rows and
back. Knows no model and no engine: learning/training/learner_engine.py samples,
learning/policy/experience.py scores what was sampled.
"""

import random
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.engine.client import Sample
from learning.training.dealing import own_places, rows_missing
from learning.training.encoding import encode_prompt
from learning.training.packing import Group, Packed, pack

MAX_PROMPT_TOKENS = 1024
"""Longer prompts are left out, as in the paper (appendix C)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of the snapshot; `messages` is its JSON, `ids` end where the answer begins."""

    prompt_id: str
    user: str
    messages: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The answers of one iteration: `num_answers` = prompts x answers per prompt, in that order."""

    groups: tuple[Group, ...]
    mask: Tensor
    """(num_answers, length) bool, True at tokens of answers; length is that of the longest"""
    engine_logprobs: Tensor
    """(num_answers, length) fp32, as sampled; 0 outside the mask"""
    ended: Tensor
    """(num_answers,) bool, False where the cap on tokens cut the answer off"""

    @property
    def num_answers(self) -> int:
        """Rows of every table."""
        return self.mask.shape[0]

    @property
    def num_tokens(self) -> int:
        """Tokens of answers."""
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class Layout:
    """Some of an iteration's groups as packed rows, and where their numbers are in the tables.

    Of many processes each has its own rows.
    """

    rows: tuple[Packed, ...]
    answers: Tensor
    """(answers of the groups in these rows,) int64, their rows in the tables"""
    num_tokens: int
    """Tokens of answers in the rows of all: what the losses of an optimiser step are divided by"""
    idle: int = 0
    """Rows fewer than the process with the most has (learning/training/dealing.py)"""

    def place(self, row: Packed) -> Tensor:
        """(num_answers of the row,) int64: the rows of the tables that a packed row holds."""
        return self.answers[row.answer_ids.cpu()]

    def flat(self, table: Tensor, mask: Tensor, row: Packed) -> Tensor:
        """A table's numbers in the order of a row's answer tokens, (num_answer_tokens,)."""
        place = self.place(row)
        return table[place][mask[place]]

    def fill(self, table: Tensor, mask: Tensor, row: Packed, numbers: Tensor) -> None:
        """Write a row's flat numbers into their places of a table; the inverse of `flat`."""
        place = self.place(row)
        here = torch.zeros_like(table[place])
        here[mask[place]] = numbers.detach().to(table)
        table[place] = here


def read_prompts(
    snapshot: Path, split: str, tokenizer: PreTrainedTokenizerBase, *, longest: int
) -> list[Prompt]:
    """The prompts of one split in the snapshot's order, but those of over `longest` tokens."""
    table = parquet.read_table(
        snapshot / "prompts.parquet", columns=["prompt_id", "messages", "user", "split"]
    )
    prompts = [
        Prompt(
            prompt_id=row["prompt_id"],
            user=row["user"],
            messages=row["messages"],
            ids=tuple(encode_prompt(row["messages"], tokenizer)),
        )
        for row in table.to_pylist()
        if row["split"] == split
    ]
    return [prompt for prompt in prompts if 0 < len(prompt.ids) <= longest]


def prompts_of_iteration(
    prompts: Sequence[Prompt], iteration: int, *, count: int, seed: int
) -> list[Prompt]:
    """`count` prompts for an iteration counted from 0: passes over all, each in a new order.

    A prompt comes again only after all others, so that none is seen more often than the rest.
    """
    chosen: list[Prompt] = []
    for at in range(iteration * count, (iteration + 1) * count):
        turn, place = divmod(at, len(prompts))
        chosen.append(prompts[order_of(len(prompts), f"{seed}/{turn}")[place]])
    return chosen


def order_of(count: int, key: str) -> list[int]:
    """The numbers below `count`, shuffled as the key alone decides."""
    order = list(range(count))
    random.Random(key).shuffle(order)
    return order


def in_parts(
    answers: Generator[tuple[int, list[Sample]], None, None], *, count: int, parts: int
) -> Generator[list[list[Sample]], None, None]:
    """The answers to `count` prompts, which come in any order, in that many parts of almost equal
    size: each part, in the prompts' order, as soon as it and those before it are complete.

    What is in a part does not depend on when it was.
    """
    bounds = [count * i // parts for i in range(parts + 1)]
    found: dict[int, list[Sample]] = {}
    done = 0
    with closing(answers):
        for number, samples in answers:
            found[number] = samples
            while done < parts and all(i in found for i in range(bounds[done], bounds[done + 1])):
                done += 1
                if bounds[done - 1] < bounds[done]:
                    yield [found.pop(i) for i in range(bounds[done - 1], bounds[done])]


def rollouts_of(prompts: Sequence[Prompt], samples: Sequence[Sequence[Sample]]) -> Rollouts:
    """Tables of what the engine gave for each prompt; every prompt has as many answers.

    An answer of no token at all is left out by the engine itself: the end token counts as one.
    """
    groups = tuple(
        Group(prompt=prompt.ids, answers=[tuple(sample.token_ids) for sample in answers])
        for prompt, answers in zip(prompts, samples, strict=True)
    )
    flat = [sample for answers in samples for sample in answers]
    lengths = torch.tensor([len(sample.token_ids) for sample in flat])  # (num_answers,)
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]  # (num_answers, length)
    logprobs = torch.zeros(mask.shape)
    logprobs[mask] = torch.tensor([value for sample in flat for value in sample.logprobs])
    ended = torch.tensor([sample.finish_reason == "stop" for sample in flat])
    return Rollouts(groups=groups, mask=mask, engine_logprobs=logprobs, ended=ended)


def finished_groups(rollouts: Rollouts, *, end_token: int) -> list[Group]:
    """The groups as the reward model reads them: with an end token also where an answer was cut.

    The score is read there; without it a cut-off answer would be read in the middle of a word.
    """
    ended = iter(rollouts.ended.tolist())
    return [
        Group(
            prompt=group.prompt,
            answers=[a if next(ended) else (*a, end_token) for a in group.answers],
        )
        for group in rollouts.groups
    ]


def layouts(
    rollouts: Rollouts, *, minibatches: int, token_budget: int, order: Sequence[int]
) -> list[Layout]:
    """The iteration's groups, taken in `order`, in that many minibatches of almost equal size."""
    per_group = rollouts.num_answers // len(rollouts.groups)
    count = min(minibatches, len(rollouts.groups))
    bounds = [len(order) * i // count for i in range(count + 1)]
    return [
        _layout(rollouts, order[start:end], per_group, token_budget)
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def _layout(rollouts: Rollouts, chosen: Sequence[int], per_group: int, token_budget: int) -> Layout:
    groups = [rollouts.groups[g] for g in chosen]
    own = own_places(groups)
    rows = pack([groups[place] for place in own], token_budget=token_budget)
    answers = [chosen[place] * per_group + k for place in own for k in range(per_group)]
    return Layout(
        rows=tuple(rows),
        answers=torch.tensor(answers, dtype=torch.int64),
        num_tokens=sum(len(answer) for group in groups for answer in group.answers),
        idle=rows_missing(len(rows)),
    )
