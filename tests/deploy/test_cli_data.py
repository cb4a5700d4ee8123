"""`erase`, `export` and `import` as commands, on a real Redis, without a worker."""

import asyncio
import json
import sys
import time

import pytest

from core import keys, loop
from core.errors import InstructLoopError
from core.keyring import Keyring
from core.redis_client import connect
from core.settings import Settings
from deploy import cli, cli_data
from feedback import store
from tests.feedback.test_snapshot import World


@pytest.fixture
def run(redis_server, state_dir, monkeypatch, capsys):
    """Run a command as the console script does; its exit code, stdout and stderr."""

    def command(*words: str) -> tuple[int, str, str]:
        where = ["--state-dir", str(state_dir), "--redis-url", redis_server.url]
        monkeypatch.setattr(sys, "argv", ["instructloop", *words, *where])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def use(redis_server, state_dir):
    """Do something with the records before or after a command."""

    def call(act):
        async def go():
            async with connect(redis_server.url) as redis:
                settings = Settings(state_dir=state_dir)
                return await act(World(redis, Keyring(state_dir / "secrets"), settings))

        return asyncio.run(go())

    return call


async def one_comparison(world):
    cid = await world.ask("Name a river.", "Elbe", "Fuji", at=time.time() - 2)
    await world.rank("r1", [(cid, 0)], [(cid, 1)], at=time.time() - 2)


def test_a_user_is_erased_and_the_receipt_printed(run, use):
    use(one_comparison)
    code, out, _ = run("erase", "--user", "ann", "--tenant", "acme")
    said = json.loads(out)
    assert (code, said["state"]) == (0, "erased")
    assert said["counts"] == {"completions": 1, "feedback": 1}


def test_an_erasure_that_has_to_wait_says_so_and_goes_on_later(run, use):
    use(one_comparison)

    async def at_work(world):
        await loop.heartbeat(world.redis)
        await world.redis.set(keys.ingest_lease(), "somebody", px=1500)

    use(at_work)
    code, out, err = run("erase", "--user", "ann", "--tenant", "acme", "--wait", "0")
    assert (code, json.loads(out)["state"]) == (1, "accepted")
    assert err.count("\n") == 1
    assert "goes on" in err

    async def nobody(world):
        await world.redis.hdel(keys.loop(), "ticked_at")

    use(nobody)
    code, out, _ = run("erase", "--user", "ann", "--tenant", "acme")
    assert (code, json.loads(out)["counts"]) == (0, {"completions": 1, "feedback": 1})


def test_an_export_is_imported_elsewhere(run, use, state_dir):
    use(one_comparison)
    out = state_dir / "pairs.jsonl"
    words = ("export", "--what", "comparisons", "--format", "trl", "--out", str(out))
    assert run(*words)[0] == 0
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (1, 1)
    assert "--force" in err
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["chosen"] == [{"role": "assistant", "content": "Elbe"}]

    use(lambda world: world.redis.flushall())
    out.write_text(out.read_text() + "no JSON\n")
    code, said, err = run("import", "--what", "comparisons", "--in", str(out))
    assert (code, said) == (1, "1 imported, 0 known before, 0 of erased people, 1 bad\n")
    assert "line 2: it is not JSON" in err
    assert use(lambda world: world.redis.xlen(keys.inbox())) == 0
    again = state_dir / "again.jsonl"
    assert run("export", "--what", "comparisons", "--format", "trl", "--out", str(again))[0] == 0
    (back,) = map(json.loads, again.read_text().splitlines())
    same = ("prompt", "chosen", "rejected", "user", "rater")
    assert {n: back[n] for n in same} == {n: row[n] for n in same}


def test_scores_of_langfuse_are_imported_and_bad_ones_told(redis_server, state_dir, use, capsys):
    score = {"id": "s1", "traceId": "t1", "name": "thumb", "value": 1, "dataType": "BOOLEAN"}
    good = score | {"input": "Name a river.", "output": "Elbe"}
    path = state_dir / "scores.json"
    path.write_text(json.dumps([good, score]))
    settings = Settings(state_dir=state_dir, redis_url=redis_server.url)
    for told in ("1 imported, 0 known before", "0 imported, 1 known before"):
        with pytest.raises(InstructLoopError, match="1 lines of"):
            cli_data.import_(
                settings, what="comparisons", path=path, tenant="acme", origin="langfuse"
            )
        said = capsys.readouterr()
        assert said.out == f"{told}, 0 of erased people, 1 bad\n"
        assert "line 2: what it is about is not in the file" in said.err
    (kept,) = use(lambda world: store.get_all(world.redis))
    assert (kept.kind, kept.thumb, kept.tenant) == ("rating", "up", "acme")


def test_bad_usage_and_files_that_are_not_there(run, state_dir):
    assert run("export", "--what", "everything", "--out", "x")[0] == 2
    code, _, err = run("import", "--what", "prompts", "--in", str(state_dir / "none"))
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot be read" in err
