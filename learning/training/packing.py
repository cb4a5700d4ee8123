"""Prompts and the answers that share them, laid out as rows of tokens that a model reads at once.

A row holds whole groups: a prompt once, then its answers one after the other. The mask lets an
answer see its own prompt and its own earlier tokens and nothing else, and positions restart behind
the prompt for every answer, so that each answer reads as if it stood alone. Knows nothing of losses
or of where groups come from; rows go to learning/training/logprobs.py and
learning/training/models.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from learning.training.attention import PACKED_ATTENTION, Spans

PROMPT = -1
"""What `Packed.answer_index` holds for the tokens of prompts."""


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and the answers that share it, as token ids.

    Example: Group(prompt=[1, 8, 4], answers=[[5, 2], [7, 7, 2]]), where 2 ends an answer.
    """

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.prompt or not self.answers or not all(self.answers):
            raise ValueError("a group needs a prompt and answers of at least one token each")

    @property
    def num_tokens(self) -> int:
        """Tokens that the group takes in a row."""
        return len(self.prompt) + sum(len(answer) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Packed:
    """One row. `length` is its number of tokens; answers are numbered over the call of `pack`."""

    input_ids: Tensor
    """(1, length) int64"""
    position_ids: Tensor
    """(1, length) int64, restarted for each answer at its prompt's length"""
    answer_mask: Tensor
    """(length,) bool, True at tokens of answers"""
    predictor: Tensor
    """(length,) int64, the index whose output predicts this answer token; 0 at prompts"""
    answer_index: Tensor
    """(length,) int64, the answer a token belongs to, PROMPT at prompts"""
    last_token: Tensor
    """(num_answers,) int64, the index of each answer's last token"""
    answer_ids: Tensor
    """(num_answers,) int64, the numbers of the answers in this row"""
    spans: Spans
    """Tokens of each prompt and answer, in order; they add up to length"""

    @property
    def group_lengths(self) -> tuple[int, ...]:
        """Tokens of each group, in order; they add up to length."""
        return self.spans.group_lengths

    @property
    def group_index(self) -> Tensor:
        """(length,) int64, the group of the row that a token belongs to."""
        device = self.input_ids.device
        lengths = torch.tensor(self.group_lengths, device=device)
        return torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)

    @property
    def attention_mask(self) -> Tensor:
        """(1, 1, length, length) bool, True where a token (row) may look at another (column)."""
        places = torch.arange(self.num_tokens, device=self.input_ids.device)
        look = may_look(self.group_index, self.answer_index)
        return look(places[:, None], places[None, :])[None, None]

    @property
    def num_tokens(self) -> int:
        """Tokens in the row, prompts included."""
        return self.input_ids.shape[1]

    @property
    def num_answer_tokens(self) -> int:
        """Tokens of answers in the row: the length of what training/logprobs.py returns."""
        return int(self.answer_mask.sum())

    def to(self, device: torch.device | str) -> "Packed":
        """The same row on another device."""
        moved: dict[str, Any] = {}  # by field name
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor) else value
        return Packed(**moved)


def pack(groups: Sequence[Group], *, token_budget: int) -> list[Packed]:
    """Lay groups out in rows of at most `token_budget` tokens, in order.

    A group is never split: one that is longer than the budget gets a row of its own.
    """
    rows = []
    first_answer = 0
    for row in _fill_rows(groups, token_budget):
        rows.append(_lay_out(row, first_answer))
        first_answer += sum(len(group.answers) for group in row)
    return rows


def attend(model: PreTrainedModel, packed: Packed) -> Tensor:
    """Hidden states (1, length, width) of the last layer of the model's body for one row.

    The model's attention must take a mask of four dimensions: PACKED_ATTENTION of
    learning/training/attention.py, which is the fast one, "sdpa" or "eager". For the former no
    square of the row is ever held: on an accelerator it gets its mask by blocks, on a CPU it goes
    by where groups are, unless they are long.
    """
    fast = model.config._attn_implementation == PACKED_ATTENTION
    if fast and packed.input_ids.device.type != "cpu":
        return attend_through(model, packed, block_mask(packed))
    if fast and packed.spans.are_short:
        return attend_through(model, packed, torch.zeros(1, 1, 1, 1, dtype=model.dtype))
    may = packed.attention_mask
    mask = torch.zeros_like(may, dtype=model.dtype)
    mask.masked_fill_(~may, torch.finfo(model.dtype).min)
    return attend_through(model, packed, mask)


def attend_through(model: PreTrainedModel, packed: Packed, mask: Tensor | BlockMask) -> Tensor:
    """What `attend` gives, with a mask that adds to logits, or one by blocks."""
    body = model.base_model
    output = body(
        input_ids=packed.input_ids,
        attention_mask=mask,
        position_ids=packed.position_ids,
        use_cache=False,
        spans=packed.spans,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden  # (1, length, width)


def block_mask(packed: Packed) -> BlockMask:
    """The row's mask for FlexAttention: which blocks are seen whole, in part, or never visited."""
    look = may_look(packed.group_index, packed.answer_index)
    length = packed.num_tokens

    def allowed(_batch: Tensor, _head: Tensor, from_token: Tensor, to_token: Tensor) -> Tensor:
        return look(from_token, to_token)

    return create_block_mask(allowed, None, None, length, length, device=packed.input_ids.device)


def may_look(group_index: Tensor, answer_index: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Whether a token may look at another: back, in its group, at its prompt or its own answer.

    Of two places, or of two tensors of places, which go together as PyTorch has it.
    """

    def look(from_token: Tensor, to_token: Tensor) -> Tensor:
        back = from_token >= to_token
        same_group = group_index[from_token] == group_index[to_token]
        own = answer_index[from_token] == answer_index[to_token]
        return back & same_group & (own | (answer_index[to_token] == PROMPT))

    return look


def _fill_rows(groups: Sequence[Group], token_budget: int) -> Iterator[list[Group]]:
    row: list[Group] = []
    used = 0
    for group in groups:
        if row and used + group.num_tokens > token_budget:
            yield row
            row, used = [], 0
        row.append(group)
        used += group.num_tokens
    if row:
        yield row


def _lay_out(groups: Sequence[Group], first_answer: int) -> Packed:
    """One row of the given groups, whose answers are numbered from `first_answer`."""
    tokens: list[int] = []
    positions: list[int] = []
    predictor: list[int] = []
    answer_index: list[int] = []
    last_token: list[int] = []
    for group in groups:
        length = len(group.prompt)
        tokens += group.prompt
        positions += range(length)
        predictor += [0] * length
        answer_index += [PROMPT] * length
        prompt_end = len(tokens) - 1
        for answer in group.answers:
            start = len(tokens)
            tokens += answer
            positions += range(length, length + len(answer))
            predictor += [prompt_end, *range(start, start + len(answer) - 1)]
            answer_index += [first_answer + len(last_token)] * len(answer)
            last_token.append(len(tokens) - 1)
    answers = torch.tensor(answer_index)  # (length,)
    return Packed(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        answer_mask=answers != PROMPT,
        predictor=torch.tensor(predictor),
        answer_index=answers,
        last_token=torch.tensor(last_token),
        answer_ids=torch.arange(first_answer, first_answer + len(last_token)),
        spans=Spans(
            tuple((len(g.prompt), tuple(len(answer) for answer in g.answers)) for g in groups)
        ),
    )
