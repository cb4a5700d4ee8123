import hashlib
from collections import Counter

from core.setting_groups import LogSettings
from feedback.split import prompt_opening, share_of, split_by, split_of

LOG = LogSettings(validation_share=0.25, test_share=0.1)


def digests(count):
    return [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(count)]


def test_shares_are_those_of_the_settings():
    splits = Counter(split_of(digest, LOG) for digest in digests(20_000))
    assert abs(splits["test"] / 20_000 - 0.10) < 0.01
    assert abs(splits["validation"] / 20_000 - 0.25) < 0.01
    assert sum(splits.values()) == 20_000


def test_the_borders_by_hand():
    log = LogSettings(test_share=0.5, validation_share=0.25)
    assert share_of("0" * 32) == 0.0
    assert split_of("0" * 32, log) == "test"
    assert split_of("7f" + "f" * 30, log) == "test"
    assert split_of("8" + "0" * 31, log) == "validation"
    assert split_of("bf" + "f" * 30, log) == "validation"
    assert split_of("c" + "0" * 31, log) == "train"
    assert split_of("f" * 32, log) == "train"
    assert share_of("f" * 32) < 1.0


def test_few_users_are_split_by_prompt():
    log = LogSettings(split_by_prompt_under_users=10)
    assert split_by(0, log) == split_by(9, log) == "prompt"
    assert split_by(10, log) == "user"


def test_openings_ignore_case_width_space_and_instructions():
    asked = [{"role": "user", "content": "Name a  RIVER\nplease"}]
    instructed = [{"role": "system", "content": "You are terse."}, *asked]
    assert prompt_opening(asked, 100) == "name a river please"
    assert prompt_opening(instructed, 100) == "name a river please"
    assert prompt_opening({"prompt": "ｎａｍｅ a river please"}, 100) == "name a river please"
    assert prompt_opening(asked, 6) == "name a"


def test_a_conversation_shares_its_opening_with_its_continuation():
    first = [{"role": "user", "content": "a" * 50}]
    later = [*first, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert prompt_opening(first, 40) == prompt_opening(later, 40)
    assert prompt_opening(first, 60) != prompt_opening(later, 60)
