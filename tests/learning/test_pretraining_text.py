import json
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from core.errors import InstructLoopError
from learning.training import pretraining_text
from learning.training.pretraining_text import draw, held_out_texts, is_prose, mix_texts, sequences


def spell(text: str) -> list[int]:
    return [ord(character) for character in text]


def words_of(texts: list[str]) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+", " ".join(texts).lower()))


def test_there_is_enough_real_text_in_both_parts() -> None:
    assert sum(map(len, mix_texts())) > 300_000
    assert sum(map(len, held_out_texts())) > 100_000
    assert min(map(len, held_out_texts())) > 8_000
    words = " ".join(held_out_texts()).split()
    assert sum(word.strip('.,;:()"').isalpha() for word in words) > 0.9 * len(words)


def test_what_retention_is_measured_on_is_never_in_the_mix() -> None:
    together = "\n".join(mix_texts())
    windows = [
        text[at : at + 80] for text in held_out_texts() for at in range(0, len(text) - 80, 80)
    ]
    assert len(windows) > 1200
    shared = [window for window in windows if window in together]
    assert shared == []


def test_what_retention_is_measured_on_speaks_of_other_things_than_the_mix() -> None:
    mix, held_out = words_of(mix_texts()), words_of(held_out_texts())
    for word in ("python", "object", "method", "class", "string", "argument"):
        here, there = held_out[word] / held_out.total(), mix[word] / mix.total()
        assert here < 0.25 * there, word
    for word in ("license", "copyright", "distribute", "warranty"):
        assert held_out[word] > 10 * mix[word], word


def test_no_paragraph_is_measured_twice() -> None:
    paragraphs = [p.lower()[:80] for text in held_out_texts() for p in text.split("\n\n")]
    assert len(paragraphs) > 150
    assert max(Counter(paragraphs).values()) == 1


@pytest.mark.parametrize(
    ("paragraph", "prose"),
    [
        ("You may copy this work and give it to others. " * 4, True),
        ("You may copy this work.", False),
        ("Copyright (c) 2005-2011 1.2.3 4.5 [x] " * 6, False),
        ("See https://example.org for what you may do with this work and how. " * 4, False),
        ("-----" * 8 + " of what you may do with this work and with copies of it" * 4, False),
    ],
)
def test_prose_is_sentences_of_words_and_long_enough(paragraph: str, prose: bool) -> None:
    assert is_prose(paragraph) is prose


def test_texts_are_cut_into_pieces_of_the_same_length_that_never_span_two_texts() -> None:
    pieces = sequences(["abcdefgh", "xyz", "uvwxy"], spell, length=3)
    assert ["".join(map(chr, piece)) for piece in pieces] == ["abc", "def", "xyz", "uvw"]


def test_the_same_seed_draws_the_same_pieces_and_another_seed_others() -> None:
    pieces = [[i] for i in range(200)]
    drawn = draw(pieces, count=30, seed=1)
    assert drawn == draw(pieces, count=30, seed=1)
    assert drawn != draw(pieces, count=30, seed=2)
    assert len({piece[0] for piece in drawn}) == 30


def test_asking_for_more_than_there_is_gives_all() -> None:
    assert sorted(draw([[1], [2]], count=9, seed=0)) == [[1], [2]]


@pytest.mark.parametrize("texts", [mix_texts, held_out_texts])
def test_the_texts_come_in_a_fixed_order(texts) -> None:
    assert texts() == texts()


# --- a text of one's own ----------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep" / "b.md").write_text("# second")
    lines = ({"text": "third"}, {"text": "fourth", "source": "x"})
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    table = pyarrow.table({"id": [1, 2, 3], "text": ["fifth", None, "sixth"]})
    parquet.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "ignored.py").write_text("code")
    return tmp_path


def test_a_folder_of_texts_takes_the_place_of_the_mix(own: Path) -> None:
    words = "first", "third", "fourth", "fifth", "sixth", "# second"
    assert mix_texts(own) == ["\n\n".join(words)]
    assert mix_texts(str(own / "c.jsonl")) == ["third\n\nfourth"]
    assert mix_texts(own / "d.parquet") == ["fifth\n\nsixth"]


def test_short_texts_together_make_sequences_of_any_length(own: Path) -> None:
    pieces = sequences(mix_texts(own), spell, length=20)
    assert len(pieces) == 2
    assert all(len(piece) == 20 for piece in pieces)


def test_no_more_is_read_than_fits_and_in_pieces(own: Path, monkeypatch) -> None:
    monkeypatch.setattr(pretraining_text, "MOST_CHARACTERS", 15)
    monkeypatch.setattr(pretraining_text, "_AT_ONE_TIME", 6)
    assert mix_texts(own) == ["first\n\nthird", "fourt"]
    (own / "long.txt").write_text("0123456789abcdef")
    assert mix_texts(own / "long.txt") == ["012345", "6789ab", "cde"]


def test_a_line_without_words_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": null}\n{"text": ""}\n{"text": "one"}\n')
    assert mix_texts(tmp_path) == ["one"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"content": "no text"}'),
        ("x.jsonl", b"no JSON"),
        ("x.txt", b"\xff\xfe\xfa"),
        ("x.txt", b""),
        ("x.parquet", b"no Parquet"),
        ("missing.txt", None),
    ],
)
def test_a_file_without_text_is_named_with_what_to_do(tmp_path: Path, name, content) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InstructLoopError, match=f"learning.pretraining_text: .*{name}"):
        mix_texts(tmp_path / name)


def test_a_folder_without_text_is_no_mix(tmp_path: Path) -> None:
    with pytest.raises(InstructLoopError, match="no text in"):
        mix_texts(tmp_path)
