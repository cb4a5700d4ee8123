from pathlib import Path

import pytest
import torch

from core.engine.client import Sample
from learning.training.rollouts import (
    Prompt,
    finished_groups,
    in_parts,
    layouts,
    prompts_of_iteration,
    read_prompts,
    rollouts_of,
)
from tests.learning.ppo_cases import ANSWERS, END, PROMPTS, rollouts
from tests.learning.snapshot_folder import chat, write_snapshot


def test_the_tables_hold_what_the_engine_gave() -> None:
    taken = rollouts()
    assert taken.num_answers == 6
    assert taken.num_tokens == sum(len(ids) for answers in ANSWERS for ids in answers)
    assert taken.mask.sum(dim=1).tolist() == [3, 4, 5, 1, 6, 2]
    assert taken.engine_logprobs[0].tolist() == pytest.approx([-0.1, -0.2, -0.3, 0, 0, 0])
    assert taken.ended.tolist() == [True, False, True, True, False, False]
    assert [group.prompt for group in taken.groups] == [tuple(ids) for ids in PROMPTS]


@pytest.mark.parametrize("parts", [1, 3, 4, 9])
def test_parts_come_in_order_as_soon_as_they_are_complete_and_hold_the_same_each_time(
    parts: int,
) -> None:
    given = []

    def answers(order):
        for number in order:
            given.append(number)
            yield number, [Sample([number], [-0.5], "stop")]

    found = list(in_parts(answers([3, 0, 1, 5, 2, 4, 6]), count=7, parts=parts))
    assert [s.token_ids for part in found for (s,) in part] == [[k] for k in range(7)]
    assert found == list(in_parts(answers(range(7)), count=7, parts=parts))
    assert len(found) == min(parts, 7)
    given.clear()
    first = next(in_parts(answers(range(7)), count=7, parts=parts))
    assert given == list(range(len(first)))


def test_the_engine_is_told_when_nobody_waits_for_the_rest() -> None:
    ended = []

    def answers():
        try:
            for number in range(4):
                yield number, [Sample([number], [-0.5], "stop")]
        finally:
            ended.append(True)

    parts = in_parts(answers(), count=4, parts=2)
    next(parts)
    parts.close()
    assert ended == [True]


def test_the_reward_model_reads_an_end_token_also_where_an_answer_was_cut_off() -> None:
    groups = finished_groups(rollouts(), end_token=END)
    answers = [list(answer) for group in groups for answer in group.answers]
    flat = [ids for answers in ANSWERS for ids in answers]
    assert answers == [ids if ids[-1] == END else [*ids, END] for ids in flat]


@pytest.mark.parametrize("minibatches", [1, 2, 3, 5])
def test_every_answer_is_in_one_minibatch_and_no_count_is_lost(minibatches: int) -> None:
    taken = rollouts()
    parts = layouts(taken, minibatches=minibatches, token_budget=12, order=[2, 0, 1])
    assert len(parts) == min(minibatches, 3)
    assert sorted(torch.cat([part.answers for part in parts]).tolist()) == list(range(6))
    assert sum(part.num_tokens for part in parts) == taken.num_tokens
    assert parts[0].answers[:2].tolist() == [4, 5]


@pytest.mark.parametrize(("minibatches", "token_budget"), [(1, 64), (1, 9), (2, 20), (3, 64)])
def test_tables_survive_the_way_to_packed_rows_and_back(
    minibatches: int, token_budget: int
) -> None:
    taken = rollouts()
    table = torch.randn(taken.mask.shape)
    table[~taken.mask] = 0.0
    ids = torch.zeros(taken.mask.shape, dtype=torch.int64)
    ids[taken.mask] = torch.tensor([token for answers in ANSWERS for a in answers for token in a])
    again = torch.zeros_like(table)
    for part in layouts(taken, minibatches=minibatches, token_budget=token_budget, order=[1, 2, 0]):
        for row in part.rows:
            flat = part.flat(table, taken.mask, row)
            assert len(flat) == row.num_answer_tokens
            in_row = row.input_ids[0, row.answer_mask]
            assert torch.equal(part.flat(ids, taken.mask, row), in_row)
            part.fill(again, taken.mask, row, flat)
    assert torch.equal(again, table)


def test_each_pass_over_the_prompts_sees_each_prompt_once_in_a_new_order() -> None:
    prompts = [Prompt(f"p{i}", "u", "[]", (1,)) for i in range(10)]
    seen = [
        prompt.prompt_id
        for iteration in range(5)
        for prompt in prompts_of_iteration(prompts, iteration, count=4, seed=7)
    ]
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == sorted(prompt.prompt_id for prompt in prompts)
    assert first != second


def test_the_prompts_of_an_iteration_depend_on_the_seed_alone() -> None:
    prompts = [Prompt(f"p{i}", "u", "[]", (1,)) for i in range(30)]
    chosen = prompts_of_iteration(prompts, 1, count=7, seed=3)
    assert chosen == prompts_of_iteration(prompts, 1, count=7, seed=3)
    assert chosen != prompts_of_iteration(prompts, 1, count=7, seed=4)


def test_fewer_prompts_than_an_iteration_needs_are_taken_again() -> None:
    prompts = [Prompt(f"p{i}", "u", "[]", (1,)) for i in range(3)]
    chosen = prompts_of_iteration(prompts, 0, count=8, seed=0)
    assert sorted(prompt.prompt_id for prompt in chosen[:6]) == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert len(chosen) == 8


class Spelling:
    """Reads characters as ids, and a chat as the text of its messages."""

    def apply_chat_template(self, messages, **options) -> list[int]:
        return [ord(c) for message in messages for c in message["content"]]


def test_only_prompts_of_the_split_that_fit_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": "a", "messages": chat("short"), "user": "u", "split": "train"},
        {"prompt_id": "b", "messages": chat("much too long"), "user": "u", "split": "train"},
        {"prompt_id": "c", "messages": chat("other"), "user": "v", "split": "validation"},
    ]
    snapshot = write_snapshot(tmp_path / "snapshot", prompts=rows)
    (prompt,) = read_prompts(snapshot, "train", Spelling(), longest=9)
    assert (prompt.prompt_id, prompt.user, prompt.messages) == ("a", "u", chat("short"))
    assert prompt.ids == tuple(map(ord, "short"))


def test_answers_may_differ_in_number_where_nothing_is_learned_from_them() -> None:
    sample = Sample(token_ids=[5, END], logprobs=[-1.0, -2.0], finish_reason="stop")
    prompts = [Prompt("a", "u", "[]", (1,)), Prompt("b", "u", "[]", (3, 4))]
    taken = rollouts_of(prompts, [[sample] * 3, [sample]])
    assert taken.mask.shape == (4, 2)
