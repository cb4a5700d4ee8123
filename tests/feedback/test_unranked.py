"""Which logged prompts a snapshot carries with their answers, for the reward model to judge."""

import pyarrow.parquet as parquet

from core import keys
from core.ids import token_of
from feedback.labeling_supply import fits
from feedback.rows import RankingRow, Said
from feedback.unranked import unranked_rows
from tests.feedback.factory import completion
from tests.feedback.test_snapshot import NOW, settings, world  # noqa: F401


def _logged(token, said, *answers, **fields):
    one = completion(token, messages=[{"role": "user", "content": said}], answers=answers, **fields)
    assert fits(one) or fields
    return one


def _rows(*found, rankings=()):
    counted = [one.token for one in found if one.counted]
    return unranked_rows(counted, {one.token: one for one in found}, rankings)


def test_a_prompt_needs_two_different_answers_of_its_own_user():
    rows = _rows(
        _logged("a", "river", "Elbe", "Elbe ", "Rhine"),
        _logged("b", "lake", "Como"),
        _logged("c", "lake", "Garda", counted=False, created_at=7.0),
        _logged("d", "lake", "of another user", user="b" * 32),
        _logged("e", "sea", "Baltic", "Baltic"),
        _logged("f", "hill", "one", "two", split="validation"),
    )
    assert [(row.prompt_id, row.texts) for row in rows] == [
        ("a", ("Elbe", "Rhine")), ("b", ("Como", "Garda")),
    ]  # fmt: skip


def test_what_somebody_ranked_is_left_out():
    asked = _logged("a", "river", "Elbe", "Rhine"), _logged("b", "lake", "Como", "Garda")
    (row, _) = _rows(*asked)
    said = Said("fb", row.messages, row.user, "train", "r", False)
    left = _rows(*asked, rankings=[RankingRow(said, "g", ())])
    assert [one.prompt_id for one in left] == ["b"]


async def test_a_snapshot_holds_them_with_answers_to_the_same_question_asked_again(
    world,  # noqa: F811
    redis,
    state_dir,
):
    one = await world.ask("Name a river.", "Elbe")
    again = await world.ask("Name a river.", "Rhine", at=NOW + 1)  # a copy: it does not count
    other = await world.ask("Name a lake.", "Como", "Garda")
    ranked = await world.ask("Name a sea.", "North Sea", "Baltic")
    await world.rank("r1", [(ranked, 0)], [(ranked, 1)])
    await world.ask("Name a hill.", "one")
    assert await redis.zscore(keys.prompts(), token_of(again)) is None
    first = await world.snapshot(state_dir / "snap")
    rows = parquet.read_table(state_dir / "snap" / "unranked.parquet").to_pylist()
    splits = parquet.read_table(state_dir / "snap" / "prompts.parquet").to_pylist()
    trains = {row["prompt_id"] for row in splits if row["split"] == "train"}
    expected = {token_of(one): ["Elbe", "Rhine"], token_of(other): ["Como", "Garda"]}
    found = {row["prompt_id"]: row["texts"] for row in rows}
    assert found == {token: texts for token, texts in expected.items() if token in trains}
    assert (await world.snapshot(state_dir / "again")).sha256 == first.sha256
