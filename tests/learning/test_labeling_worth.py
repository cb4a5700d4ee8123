"""Disagreement on its way from a stage's folder through Redis to the choice of prompts."""

import json

from core import keys
from learning.reward_model.labeling_worth import FILE, publish_disagreement, read_disagreement


def _written(folder, **values):
    folder.mkdir()
    lines = [json.dumps({"prompt_id": n, "disagreement": v}) + "\n" for n, v in values.items()]
    (folder / FILE).write_text("".join(lines))
    return folder


async def test_the_newest_models_values_replace_the_older_and_expire(redis, tmp_path):
    assert await publish_disagreement(redis, _written(tmp_path / "1", a=0.25, b=3.5e-7)) == 2
    assert await read_disagreement(redis, ["b", "nobody", "a"]) == {"b": 3.5e-7, "a": 0.25}
    assert 0 < await redis.ttl(keys.disagreement()) <= 30 * 86_400
    assert await publish_disagreement(redis, _written(tmp_path / "2", c=1.0)) == 1
    assert await read_disagreement(redis, ["a", "b", "c"]) == {"c": 1.0}


async def test_a_model_without_heads_leaves_no_values_behind(redis, tmp_path):
    await publish_disagreement(redis, _written(tmp_path / "1", a=0.25))
    assert await publish_disagreement(redis, tmp_path / "nothing") == 0
    assert await read_disagreement(redis, ["a"]) == {}
    assert await read_disagreement(redis, []) == {}
