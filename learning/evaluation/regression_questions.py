"""Items of regression suites as an engine and a trainer are asked them: in tokens.

Reads no files (learning/evaluation/regression_suites.py) and asks nobody
(learning/evaluation/regression_scoring.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from learning.evaluation.regression_suites import Item
from learning.training.encoding import encode_prompt
from learning.training.packing import Group


@dataclass(frozen=True, slots=True)
class Question:
    """An item that is answered in words, as the engine is asked it."""

    item: Item
    prompt: tuple[int, ...]


def choice_groups(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    """The items with choices as prompts with several answers, without an end token.

    A plain prompt is continued by a space and the choice.
    """
    return [
        Group(
            prompt=tuple(encode_prompt(item.content, tokenizer)),
            answers=[_choice_ids(item, choice, tokenizer) for choice in item.choices],
        )
        for item in items
        if item.choices
    ]


def questions(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """The items that are answered in words."""
    return [
        Question(item, tuple(encode_prompt(item.content, tokenizer)))
        for item in items
        if not item.choices
    ]


def longest_first(asked: Sequence[Question]) -> list[tuple[int, list[int]]]:
    """Most tokens of an answer, and the numbers of the questions that allow as many."""
    lengths = sorted({question.item.max_tokens for question in asked}, reverse=True)
    return [(n, [i for i, q in enumerate(asked) if q.item.max_tokens == n]) for n in lengths]


def _choice_ids(item: Item, choice: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    text = choice if item.prompt is None else f" {choice.strip()}"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tuple(ids)
