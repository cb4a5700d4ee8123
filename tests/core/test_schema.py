"""Which data a release starts on: its own, and no other's."""

import pytest

from core import keys, logs, schema
from core.errors import StartError
from core.redis_check import check_redis
from core.schema import FOLDER_SCHEMA, SCHEMA, check_folder
from core.settings import Settings
from core.start import refuse_foreign_data
from deploy.up import up
from learning.worker.tasks import run_beat, run_worker
from serving.agent import run_agent
from serving.server import serve


def test_a_new_folder_is_marked_and_starts_again(tmp_path):
    state = tmp_path / "state"
    check_folder(state)
    assert (state / "schema").read_text() == f"{FOLDER_SCHEMA}\n"
    check_folder(state)
    assert [path.name for path in state.iterdir()] == ["schema"]


def test_a_folder_in_use_without_a_mark_is_one_of_the_first_release(tmp_path, monkeypatch):
    (tmp_path / "secrets").mkdir()
    check_folder(tmp_path)
    (tmp_path / "schema").unlink()
    monkeypatch.setattr(schema, "FOLDER_SCHEMA", 2)
    with pytest.raises(StartError, match="holds schema 1, an earlier release's; this one reads 2"):
        check_folder(tmp_path)
    assert not (tmp_path / "schema").exists()


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (1, "a later release's; this one reads {}: run the release that wrote it, or restore"),
        (-1, "an earlier release's; this one reads {}: stop what runs .* `instructloop migrate`"),
        ("", "does not say which schema it holds"),
        ("one", "does not say which schema it holds"),
        ("²", "does not say which schema it holds"),
    ],
)
async def test_another_schema_is_refused_with_what_to_do_in_folder_and_redis(
    difference, words, tmp_path, redis
):
    def other(reads: int) -> str:
        return str(reads + difference) if isinstance(difference, int) else difference

    (tmp_path / "schema").write_text(f"{other(FOLDER_SCHEMA)}\n")
    with pytest.raises(StartError, match="state folder .*" + words.format(FOLDER_SCHEMA)):
        check_folder(tmp_path)
    assert (tmp_path / "schema").read_text() == f"{other(FOLDER_SCHEMA)}\n"
    await redis.set(keys.schema(), other(SCHEMA))
    with pytest.raises(StartError, match="this Redis .*" + words.format(SCHEMA)):
        await check_redis(redis)
    assert (await redis.get(keys.schema())).decode() == other(SCHEMA)


async def test_a_new_redis_is_marked(redis):
    await check_redis(redis)
    for name in (keys.schema(), keys.first_schema()):  # the first release is to refuse it, too
        assert await redis.get(name) == str(SCHEMA).encode()


def test_a_redis_that_does_not_answer_stops_nobody_and_its_folder_is_still_looked_at(tmp_path):
    settings = Settings(state_dir=tmp_path / "s", redis_url="redis://127.0.0.1:1")
    refuse_foreign_data(settings)
    (tmp_path / "s" / "schema").write_text("7")
    with pytest.raises(StartError, match="schema 7"):
        refuse_foreign_data(settings)


@pytest.mark.parametrize(
    "start",
    [
        serve,
        run_worker,
        run_beat,
        lambda settings: run_agent(settings, name="engine-0"),
        lambda settings: up(settings, learning=True, say=print),
    ],
    ids=["gateway", "worker", "beat", "engine", "up"],
)
def test_every_process_refuses_what_a_later_release_wrote(start, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "set_up", lambda *_, **__: None)
    (tmp_path / "schema").write_text("2")
    with pytest.raises(StartError, match="holds schema 2, a later release's"):
        start(Settings(state_dir=tmp_path))
