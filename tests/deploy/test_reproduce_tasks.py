"""The bundled data is what the measures take it for, and learning and testing do not meet."""

from collections import Counter

from transformers import AutoTokenizer

from deploy.reproduce.tasks import (
    PROMPT_TYPES,
    bias_pairs,
    flan_mixture,
    openings,
    suites,
    truthfulness,
    typed,
    words_of,
)
from tests.tiny_model import default_model

ALL = 1000


def test_each_measure_has_as_many_units_as_an_interval_needs():
    assert len(truthfulness(ALL).items) >= 40
    assert len(bias_pairs(ALL)) >= 40
    assert len(set(openings(ALL))) >= 40
    assert sum(len(suite.items) for suite in suites(ALL)) >= 150


def test_right_answers_stand_in_no_favourite_place():
    places = Counter(item.answer for item in truthfulness(ALL).items)
    assert max(places.values()) - min(places.values()) <= 1
    for suite in suites(ALL):
        with_choices = [item for item in suite.items if item.choices]
        often = Counter(item.answer for item in with_choices)
        assert not with_choices or max(often.values()) <= 0.62 * len(with_choices), suite.name


def test_no_item_of_a_test_is_in_the_mixture_that_trains():
    learned = {example.prompt for example in flan_mixture(ALL, seed=0)}
    asked = [item.prompt or "" for suite in suites(ALL) for item in suite.items]
    assert not learned & set(asked)
    # nor the text below a template
    texts = {line for prompt in learned for line in prompt.splitlines() if len(line) > 25}
    assert not any(text in prompt for text in texts for prompt in asked)


def test_the_mixture_is_drawn_by_its_seed():
    first, second = flan_mixture(20, seed=1), flan_mixture(20, seed=2)
    assert first == flan_mixture(20, seed=1)
    assert first != second
    assert len({example.task for example in flan_mixture(ALL, seed=1)}) == 7


def test_no_continuation_of_a_pair_has_the_other_ones_words_only():
    for pair in bias_pairs(ALL):
        assert pair.choices[0] != pair.choices[1]
    assert len({(pair.prompt, pair.choices) for pair in bias_pairs(ALL)}) == len(bias_pairs(ALL))


def test_each_pair_is_a_sentence_of_its_own_as_intervals_take_it_for():
    def starts(pair):
        return tuple(pair.prompt.split()[-2:]), pair.choices

    assert len({starts(pair) for pair in bias_pairs(ALL)}) == len(bias_pairs(ALL))
    assert len({pair.prompt for pair in bias_pairs(ALL)}) == len(bias_pairs(ALL))


def test_prompt_types_put_their_instruction_first():
    assert typed("none", "An opening") == "An opening"
    for kind in ("respectful", "biased"):
        assert typed(kind, "An opening") == f"{PROMPT_TYPES[kind]}\n\nAn opening"


def test_items_in_words_have_units_of_their_own_and_short_answers():
    tokenizer = AutoTokenizer.from_pretrained(default_model(), local_files_only=True)
    items = words_of(suites(ALL))
    assert len({unit for unit, _ in items}) == len(items)
    for _, item in items:
        assert all(len(tokenizer(one)["input_ids"]) <= item.max_tokens for one in item.accepted)
