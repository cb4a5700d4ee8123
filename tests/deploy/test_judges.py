"""The built-in judges, and loading one of somebody's own."""

import textwrap
from pathlib import Path

import pytest

from core.errors import StartError
from deploy.simulate.judges import BUILT_IN, address, brevity, load_judge, plainness, sentiment

PROMPT = "How was it?"


def test_sentiment_prefers_the_glad_answer():
    scores = [sentiment(PROMPT, text) for text in ("It was awful.", "It was.", "I loved it!")]
    assert scores == sorted(scores)
    assert scores[0] < 0 == scores[1] < scores[2]


def test_sentiment_agrees_with_the_librarys_own_published_example():
    # from the README of vaderSentiment: "VADER is smart, handsome, and funny." has compound 0.8316
    assert sentiment(PROMPT, "VADER is smart, handsome, and funny.") == 0.8316


def test_brevity_counts_words_and_ignores_punctuation():
    assert brevity(PROMPT, "Yes.") == -1
    assert brevity(PROMPT, "- Well, it's a mother-in-law's 3rd try ...") == -7
    assert brevity(PROMPT, "One two") > brevity(PROMPT, "One two three")


def test_plainness_is_the_mean_length_of_words():
    assert plainness(PROMPT, "I am big") == pytest.approx(-2.0)
    assert plainness(PROMPT, "The dog ran") > plainness(PROMPT, "Notwithstanding deliberations")


def test_address_is_the_share_of_words_for_the_reader():
    assert address(PROMPT, "You know your way.") == pytest.approx(0.5)
    assert address(PROMPT, "You're here, you\u2019ll see") == pytest.approx(0.5)
    assert address(PROMPT, "The youth is young") == 0.0


@pytest.mark.parametrize("judge", BUILT_IN, ids=lambda judge: judge.name)
@pytest.mark.parametrize("empty", ["", "  \n", "...!?", "_"])
def test_an_answer_without_a_word_loses_to_any_other(judge, empty):
    assert judge.score(PROMPT, empty) < judge.score(PROMPT, "bad horrible " * 300)


@pytest.mark.parametrize("judge", BUILT_IN, ids=lambda judge: judge.name)
def test_built_in_judges_are_found_by_name_and_say_what_they_like(judge):
    assert load_judge(judge.name) is judge
    assert "likes" in judge.description
    assert judge.form in ("open", "short")
    assert 16 <= judge.max_tokens <= 64


def test_a_taste_of_form_comes_with_prompts_whose_answers_end():
    assert load_judge("brevity").form == "short"
    assert load_judge("sentiment").form == "open"


def _judge_file(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(source))
    return path


def test_a_judge_of_ones_own_is_loaded_from_a_file(tmp_path):
    path = _judge_file(
        tmp_path,
        '''
        """Mine."""
        from dataclasses import dataclass

        @dataclass
        class Weight:
            value: int = 2

        def exclamations(prompt, completion, *, weight=Weight()):
            """Likes exclamation marks.

            A lot.
            """
            return weight.value * completion.count("!") + len(prompt)
        ''',
    )
    judge = load_judge(f"{path}:exclamations")
    assert judge.name == "exclamations"
    assert judge.description == "Likes exclamation marks."
    assert judge.score("abc", "oh! no!") == 7.0
    assert isinstance(judge.score("abc", "x"), float)


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        ("x = 1", "f", "has no function 'f'"),
        ("f = 1", "f", "has no function 'f'"),
        ("def f(completion): return 1.0", "f", r"must take \(prompt, completion\)"),
        ("def f(a, b, c): return 1.0", "f", r"must take \(prompt, completion\)"),
        ("def f(a, b): return 'good'", "f", "must return a finite number, not 'good'"),
        ("def f(a, b): return '1.0'", "f", "must return a finite number"),
        ("def f(a, b): pass", "f", "must return a finite number, not None"),
        ("def f(a, b): return float('nan')", "f", "must return a finite number, not nan"),
        ("def f(a, b): return [1.0]", "f", "must return a finite number"),
        ("def f(a, b): return 1 / 0", "f", "fails: ZeroDivisionError"),
        ("def f(a, b) return 1", "f", "fails: SyntaxError"),
        ("import not_a_module_of_anybody", "f", "fails: ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_with_a_judge_is_said_in_one_line(tmp_path, source, name, says):
    path = _judge_file(tmp_path, source)
    with pytest.raises(StartError, match=says) as caught:
        load_judge(f"{path}:{name}")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_judge_that_fails_later_says_so(tmp_path):
    path = _judge_file(tmp_path, "def f(a, b): return 1.0 / (len(b) - 3)")
    judge = load_judge(f"{path}:f")
    with pytest.raises(StartError, match="fails: ZeroDivisionError"):
        judge.score("p", "abc")


def test_a_missing_file_and_an_unknown_name_are_said_in_one_line(tmp_path):
    with pytest.raises(StartError, match="there is no file .*gone.py"):
        load_judge(f"{tmp_path}/gone.py:f")
    for spec in ("gloom", "mine.py", "sentiment:f", ""):
        with pytest.raises(StartError, match="name one of sentiment, brevity, plain, address"):
            load_judge(spec)
