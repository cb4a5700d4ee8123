"""Right or wrong, item by item: a policy's answers to the regression suites.

Choices are ranked by their mean log-probability per token at temperature 1 (appendix D of the
paper), read from the exported folder by the trainer, because the engine tells probabilities only of
what it sampled. Answers in words are the engine's own, greedy. The statistics are
learning/gate/regressions.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from learning.evaluation.regression_questions import Question, choice_groups, questions
from learning.evaluation.regression_suites import Item, Suite, is_right
from learning.gate.regressions import Regression, compared
from learning.policy.experience import row_logprobs
from learning.training.packing import Group, pack


@dataclass(frozen=True, slots=True)
class Exam:
    """All suites in one list of items, ready to be asked."""

    suites: tuple[Suite, ...]
    choices: tuple[Group, ...]
    """Of the items with choices, in their order"""
    questions: tuple[Question, ...]
    """The others, in theirs"""

    @property
    def items(self) -> list[Item]:
        return [item for suite in self.suites for item in suite.items]


def exam_of(suites: Sequence[Suite], tokenizer: PreTrainedTokenizerBase) -> Exam:
    """Tokenise the items of all suites."""
    items = [item for suite in suites for item in suite.items]
    return Exam(
        suites=tuple(suites),
        choices=tuple(choice_groups(items, tokenizer)),
        questions=tuple(questions(items, tokenizer)),
    )


def chosen(model: PreTrainedModel, groups: Sequence[Group], *, token_budget: int) -> list[int]:
    """For each group the place of the answer that is most likely per token."""
    found = choice_logprobs(model, groups, token_budget=token_budget)
    return [int((sums / tokens).argmax()) for sums, tokens in found]


@torch.no_grad()
def choice_logprobs(
    model: PreTrainedModel, groups: Sequence[Group], *, token_budget: int
) -> list[tuple[Tensor, Tensor]]:
    """For each group the log-probability of every answer and its tokens, (num_answers,) both."""
    counts = [len(group.answers) for group in groups]
    sums = torch.zeros(sum(counts))  # (num_answers,)
    tokens = torch.zeros(sum(counts))
    for row in pack(groups, token_budget=token_budget):
        logprobs, _ = row_logprobs(model, row, temperature=1.0)  # (num_answer_tokens,)
        index = row.answer_index[row.answer_mask].cpu()
        sums.index_add_(0, index, logprobs.float().cpu())
        tokens.index_add_(0, index, torch.ones(len(index)))
    return list(zip(torch.split(sums, counts), torch.split(tokens, counts), strict=True))


def marks(
    exam: Exam,
    picked: Sequence[int],
    greedy: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[bool]:
    """Whether each item was answered rightly, in the order of the suites."""
    choices, answers = iter(picked), iter(greedy)
    return [
        next(choices) == item.answer
        if item.choices
        else is_right(item, str(tokenizer.decode(list(next(answers)), skip_special_tokens=True)))
        for item in exam.items
    ]


def regressions(
    exam: Exam, marked: Mapping[str, Sequence[bool]], *, alpha: float
) -> list[Regression]:
    """Each suite's comparison, from the marks of `parent` and `candidate`."""
    found, start = [], 0
    for suite in exam.suites:
        here = slice(start, start + len(suite.items))
        start += len(suite.items)
        parent, candidate = marked["parent"][here], marked["candidate"][here]
        found.append(compared(suite.name, parent, candidate, alpha=alpha))
    return found
