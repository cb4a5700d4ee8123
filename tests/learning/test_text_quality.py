import pytest

from learning.training.pretraining_text import held_out_texts
from learning.training.text_quality import Limits, is_broken, quality


def test_measures_of_a_short_text_by_hand() -> None:
    measured = quality("the cat and the cat and xqzrtk 42!")
    # words: the cat and the cat and xqzrtk 42; pairs: the-cat twice, cat-and twice, of seven
    assert measured.words == 8
    assert measured.distinct_2 == pytest.approx(5 / 7)
    assert measured.repeat_share == pytest.approx(6 / 8)
    assert measured.non_words == pytest.approx(1 / 8)
    assert not measured.empty


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "...!?",
        "the the the the the the the the the the the the the",
        "I am so happy and I am so happy and I am so happy and I am so happy and I am so happy",
        "hdjsk qwrtpl zzzzz mnbvcx lkjhgf",
        "Aaaaaaah yesssss soooooo goooood",
        "\ufffd\ufffd\ufffd \ufffd",
        "a1b2c3 x9y8z7 q=w+e r%t^y",
    ],
)
def test_empty_looping_and_wordless_texts_are_broken(text: str) -> None:
    assert is_broken(text)


@pytest.mark.parametrize(
    "text",
    [
        "Yes.",
        "No, no, no!",
        "42",
        "The capital of France is Paris, founded in the 3rd century B.C.",
        "It's a well-known fact (e.g. in the U.S.) that 10:30am is and/or was $1,000.50 too early.",
        "1. **Apples** - red\n2. **Pears** - green\n3. *Plums* - blue, or purple",
        "\u201cLet\u2019s go,\u201d she said \u2014 and they went to the na\u00efve caf\u00e9.",
        "I love this wonderful, great, amazing, happy day! So much joy and love to all of you!",
    ],
)
def test_ordinary_answers_are_not_broken(text: str) -> None:
    assert not is_broken(text)


def test_hardly_any_paragraph_of_real_prose_counts_as_broken() -> None:
    paragraphs = [
        " ".join(paragraph.split()[:60])
        for text in held_out_texts()
        for paragraph in text.split("\n\n")
        if len(paragraph.split()) >= 20 and ">>>" not in paragraph and "__" not in paragraph
    ]
    assert len(paragraphs) > 200
    assert sum(map(is_broken, paragraphs)) / len(paragraphs) < 0.02


def test_a_text_that_the_anchor_finds_absurd_is_broken_if_its_perplexity_is_given() -> None:
    text = "Colourless green ideas sleep furiously under the moon of cheese."
    assert not is_broken(text, perplexity=50.0)
    assert is_broken(text, perplexity=5000.0)


def test_the_limits_are_what_decides() -> None:
    text = "no no yes yes no no yes yes no no yes yes no no"
    assert is_broken(text)
    assert not is_broken(text, limits=Limits(min_distinct_2=0.0, max_repeat_share=1.0))


def test_repetition_counts_only_where_the_phrase_follows_itself() -> None:
    assert quality("to be or not to be that is the question").repeat_share == 0.0
    assert quality("so it goes so it goes").repeat_share == 1.0
