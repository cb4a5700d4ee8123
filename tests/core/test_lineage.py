"""The list of what a version learned from: proven by its card, and each id by itself."""

import pytest

from core import lineage
from core.errors import CorruptVersion, NotFound
from core.lineage import FILE, as_text, card_data, inclusion, is_proven, read_ids, root_of
from tests.core.test_registry import card

TRAINED_ON = {"fb-07": "ranking", "fb-03": "rating", "task-1": "labeling", "fb-11": "ranking"}


@pytest.fixture
def version(tmp_path):
    (tmp_path / FILE).write_text(as_text(TRAINED_ON))
    return tmp_path, card("v0001").model_copy(update={"data": card_data(TRAINED_ON)})


def test_a_card_says_how_much_of_which_kind_and_the_root():
    said = card_data(TRAINED_ON)
    assert said["feedback_count"] == 4
    assert said["feedback_kinds"] == {"labeling": 1, "ranking": 2, "rating": 1}
    assert said["feedback_root"] == root_of(["task-1", "fb-11", "fb-07", "fb-03", "fb-03"])


def test_the_list_is_read_in_the_order_of_the_tree(version):
    assert read_ids(*version) == ["fb-03", "fb-07", "fb-11", "task-1"]


@pytest.mark.parametrize("ids", [["fb-03", "fb-07", "fb-11"], [*TRAINED_ON, "fb-99"], []])
def test_a_list_that_is_not_the_cards_is_refused(version, ids):
    folder, made = version
    (folder / FILE).write_text(as_text(ids))
    with pytest.raises(CorruptVersion, match="not the list"):
        read_ids(folder, made)


def test_a_version_without_a_list_says_so(version, tmp_path):
    folder, made = version
    with pytest.raises(NotFound, match="names no feedback"):
        read_ids(folder, card("v0000"))
    (folder / FILE).unlink()
    with pytest.raises(NotFound, match="not on this machine"):
        read_ids(folder, made)


def test_each_id_is_proven_and_no_other(version):
    folder, made = version
    ids = read_ids(folder, made)
    for feedback_id in ids:
        said = inclusion(made, ids, feedback_id)
        assert is_proven(said)
        assert not is_proven(said.model_copy(update={"feedback_id": "fb-04"}))
    for other in ("fb-04", "zz", ""):
        with pytest.raises(NotFound):
            inclusion(made, ids, other)


def test_no_feedback_at_all_has_a_root_too(tmp_path):
    (tmp_path / lineage.FILE).write_text("")
    empty = card("v0001").model_copy(update={"data": card_data({})})
    assert read_ids(tmp_path, empty) == []
