"""The bundled prompts, and how they are split."""

import json
import os
import re
from collections import Counter

import pytest

from core.errors import StartError
from core.setting_groups import LogSettings
from deploy.simulate.prompt_sets import Prompt, bundled_prompts, choose, read_prompts

PROMPTS = bundled_prompts()
SIZES = {"training": 120, "validation": 40, "test": 256}


def test_there_are_enough_prompts_of_each_form():
    forms = Counter(prompt.form for prompt in PROMPTS)
    assert len(PROMPTS) >= 760
    assert forms["open"] >= 420
    assert forms["short"] >= 340


def test_there_are_many_users_most_of_whom_ask_once_or_twice():
    asked = Counter(prompt.user for prompt in PROMPTS)
    assert len(asked) >= 400
    assert sum(count <= 2 for count in asked.values()) > 0.8 * len(asked)
    assert max(asked.values()) <= 4


def test_prompts_read_like_prompts():
    for prompt in PROMPTS:
        text = prompt.prompt
        assert 40 <= len(text) <= 200, text
        assert text == text.strip()
        assert text[0].isupper() or text[0] in '"', text
        assert text[-1] in ".?!", text
        assert "  " not in text
        assert "{" not in text
        assert not re.search(r"\b(\w+) \1\b", text), text
        assert not re.search(r"\ba [aei]\w", text), text


def test_no_two_prompts_are_alike_enough_to_count_as_duplicates():
    limit = LogSettings().duplicate_prefix_chars
    texts = sorted(" ".join(prompt.prompt.lower().split()) for prompt in PROMPTS)
    for one, two in zip(texts, texts[1:], strict=False):  # the longest common prefixes
        common = len(os.path.commonprefix([one, two]))
        assert common <= 0.6 * min(len(one), len(two)), (one, two)
        assert common < limit


def test_topics_and_templates_vary():
    assert len({prompt.topic for prompt in PROMPTS}) >= 300
    assert len({prompt.template for prompt in PROMPTS}) >= 200
    pairs = Counter((prompt.topic, prompt.template) for prompt in PROMPTS)
    assert max(pairs.values()) == 1


@pytest.mark.parametrize("form", ["open", "short"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sets_share_no_user_topic_or_template(form, seed):
    sets = choose(PROMPTS, seed=seed, form=form, **SIZES)

    parts = [sets.training, sets.validation, sets.test]
    assert [len(part) for part in parts] == [120, 40, 256]
    for name in ("user", "topic", "template", "prompt"):
        seen = [{getattr(prompt, name) for prompt in part} for part in parts]
        assert sum(map(len, seen)) == len(set.union(*seen)), name
    assert {prompt.form for part in parts for prompt in part} == {form}


@pytest.mark.parametrize("form", ["open", "short"])
def test_training_has_enough_users_and_many_kinds_of_prompts(form):
    sets = choose(PROMPTS, seed=0, form=form, **SIZES)
    assert len({prompt.user for prompt in sets.training + sets.validation}) >= 80
    assert len({prompt.template for prompt in sets.training}) >= 30
    assert len({prompt.user for prompt in sets.test}) >= 100


def test_a_seed_fixes_the_sets_whatever_the_order_of_the_file():
    sets = choose(PROMPTS, seed=5, form="open", **SIZES)
    assert choose(PROMPTS[::-1], seed=5, form="open", **SIZES) == sets
    assert choose(PROMPTS, seed=6, form="open", **SIZES) != sets


def test_prompts_that_hang_together_are_never_parted():
    def prompt(number: int, user: str, topic: str, template: str) -> Prompt:
        return Prompt(f"prompt {number}", user, topic, template, "open")

    chain = [  # linked by user, then by topic, then by template
        prompt(0, "ann", "a", "x"),
        prompt(1, "ann", "b", "y"),
        prompt(2, "bea", "b", "z"),
        prompt(3, "cee", "c", "z"),
    ]
    alone = [prompt(10 + i, f"u{i}", f"t{i}", f"k{i}") for i in range(6)]
    for seed in range(20):
        sets = choose(chain + alone, seed=seed, form="open", training=2, validation=2, test=2)
        homes = [part for part in (sets.training, sets.validation, sets.test) if {*part} & {*chain}]
        assert len(homes) <= 1


def test_too_few_prompts_are_said_in_one_line():
    with pytest.raises(StartError, match="ask for fewer"):
        choose(PROMPTS, seed=0, form="short", training=400, validation=40, test=256)
    tangled = [Prompt(f"p{i}", f"u{i}", f"t{i}", "same", "open") for i in range(50)]
    with pytest.raises(StartError, match="1 families"):
        choose(tangled, seed=0, form="open", training=5, validation=5, test=5)


def test_a_file_needs_nothing_but_prompts(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "One?"}\n\n{"prompt": "Two?", "user": "u", "form": "short"}\n')
    one, two = read_prompts(path)
    assert (one.prompt, one.form) == ("One?", "open")
    assert (two.prompt, two.user, two.form) == ("Two?", "u", "short")
    assert len({one.user, two.user}) == len({one.template, two.template}) == 2
    assert two.with_user("v") == Prompt("Two?", "v", two.topic, two.template, "short")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "ok"}\nnot json', "line 2 is not JSON"),
        ('{"text": "x"}', 'line 1 needs a "prompt"'),
        ('{"prompt": "  "}', 'line 1 needs a "prompt"'),
        ("[1]", 'line 1 needs a "prompt"'),
        ('{"prompt": "x", "form": "long"}', 'line 1: "form" is'),
        ('{"prompt": "x", "user": 3}', "line 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, says):
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(StartError, match=says) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StartError, match="cannot read the prompts in .*gone"):
        read_prompts(tmp_path / "gone.jsonl")


def test_every_row_of_the_bundled_file_has_exactly_the_five_fields():
    from deploy.simulate.prompt_sets import BUNDLED

    for line in BUNDLED.read_text(encoding="utf-8").splitlines():
        assert list(json.loads(line)) == ["prompt", "user", "topic", "template", "form"]
