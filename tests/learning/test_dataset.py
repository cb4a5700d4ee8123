"""A snapshot folder read into groups, with the default model's tokenizer."""

import json

import pytest
from transformers import AutoTokenizer

from learning.reward_model.dataset import ranked_groups, read_feedback
from learning.training.encoding import encode_answer, encode_prompt
from tests.learning.snapshot_folder import chat, demonstration, ranking, rating, write_snapshot
from tests.tiny_model import default_model

END = 2  # <|im_end|>


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_model())


def test_a_prompt_goes_through_the_chat_template_up_to_where_the_answer_begins(tokenizer):
    text = tokenizer.decode(encode_prompt(chat("Hello?"), tokenizer))
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n")


def test_the_prompt_of_a_plain_completion_is_taken_as_it_stands(tokenizer):
    ids = encode_prompt(json.dumps({"prompt": "Once upon"}), tokenizer)
    assert tokenizer.decode(ids) == "Once upon"


def test_every_answer_ends_with_the_end_token_even_an_empty_one(tokenizer):
    assert encode_answer("", tokenizer) == [END]
    ids = encode_answer("cut off in the mid", tokenizer)
    assert ids[-1] == END
    assert tokenizer.decode(ids[:-1]) == "cut off in the mid"


def test_an_answer_that_spells_a_special_token_does_not_become_one(tokenizer):
    ids = encode_answer("a <|im_end|> b", tokenizer)
    assert ids.count(END) == 1
    assert ids[-1] == END
    assert tokenizer.decode(ids[:-1]) == "a <|im_end|> b"


def test_rankings_of_one_group_share_its_answers(tokenizer):
    rows = [
        ranking("g1", "Tea?", {"yes": 1, "no": 2, "maybe": 2}, rater="r1"),
        ranking("g2", "Milk?", {"never": 2, "always": 1}, rater="r1", weight=3.0),
        ranking("g1", "Tea?", {"maybe": 1, "yes": 2}, rater="r2", heldout=True),
    ]
    tea, milk = ranked_groups(rows, tokenizer)
    texts = [tokenizer.decode(a[:-1]) for a in tea.group.answers]
    assert texts == ["yes", "no", "maybe"]
    first, second = tea.rankings
    assert (first.answers, first.ranks) == ((0, 1, 2), (1, 2, 2))
    assert (second.answers, second.ranks) == ((2, 0), (1, 2))
    assert (first.num_pairs, second.num_pairs) == (2, 1)
    assert (first.weight, second.weight) == (2.0, 1.0)  # K - 1
    assert tea.by(heldout=False) == (first,)
    assert tea.by(heldout=True) == (second,)
    assert milk.rankings[0].weight == 3.0


def test_rankings_that_prefer_nothing_are_left_out(tokenizer):
    rows = [
        ranking("g1", "Tea?", {"yes": 1, "no": 1}),
        ranking("g2", "Milk?", {"yes": 2, "no": 1}),
    ]
    (group,) = ranked_groups(rows, tokenizer)
    assert "Milk?" in tokenizer.decode(group.group.prompt)


def test_a_folder_is_read_by_split_and_rater(tmp_path, tokenizer):
    folder = write_snapshot(
        tmp_path / "s",
        rankings=[
            ranking("g1", "A?", {"x": 1, "y": 2}),
            ranking("g2", "B?", {"x": 1, "y": 2}, split="validation"),
            ranking("g3", "C?", {"x": 1, "y": 2}, split="test"),
        ],
        ratings=[
            rating("A?", "good", "thumb", 1.0),
            rating("A?", "bad", "thumb", 0.0),
            rating("A?", "fine", "rating", 5.0),
            rating("A?", "unseen", "thumb", 1.0, heldout_rater=True),
            rating("B?", "unseen", "thumb", 1.0, split="validation"),
        ],
        demonstrations=[
            demonstration("A?", "like this"),
            demonstration("B?", "unseen", split="validation"),
        ],
    )
    data = read_feedback(folder, tokenizer)
    prompts = {
        s: [tokenizer.decode(g.group.prompt) for g in data.split(s)]
        for s in ("train", "validation")
    }
    assert [len(v) for v in prompts.values()] == [1, 1]
    assert "A?" in prompts["train"][0]
    assert "B?" in prompts["validation"][0]
    assert [(j.kind, j.level) for j in data.judgements] == [
        ("thumb", 1),
        ("thumb", 0),
        ("rating", 4),
    ]
    assert [tokenizer.decode(j.group.answers[0]) for j in data.judgements] == [
        "good<|im_end|>",
        "bad<|im_end|>",
        "fine<|im_end|>",
    ]
    assert [tokenizer.decode(d.answers[0][:-1]) for d in data.demonstrations] == ["like this"]
