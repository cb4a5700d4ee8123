"""The user that docs/kubernetes.md gives KEDA sees how much waits, and nothing of what it says."""

import re

import pytest
import redis as redis_py

from core import keys
from deploy.document import ROOT
from learning.worker.tasks import CONTROL, LEARNING

LENGTH = """\
local kind = redis.call('type', KEYS[1]).ok
if kind == 'list' or kind == 'none' then return redis.call('llen', KEYS[1]) end
return -1
"""
"""How KEDA asks for the length of a list, in words of our own."""


@pytest.fixture
def keda(redis_server):
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    rules = re.search(r"^ACL SETUSER keda (.*?)^```", text, re.S | re.M)[1].split()
    with redis_py.Redis.from_url(redis_server.url) as admin:
        admin.execute_command("ACL SETUSER", "keda", *rules)
        for number in range(3):
            admin.lpush(f"{keys.PREFIX}broker:{LEARNING}", number)
            admin.xadd(keys.inbox(), {"sealed": number})
        admin.set(keys.target(), "a record")
    url = redis_server.url.replace(f":{redis_server.password}@", "keda:PASSWORD@")
    with redis_py.Redis.from_url(url) as client:
        yield client


def test_it_reads_the_lengths_that_the_chart_scales_by(keda):
    assert keda.ping()
    assert keda.eval(LENGTH, 1, f"{keys.PREFIX}broker:{LEARNING}") == 3
    assert keda.eval(LENGTH, 1, f"{keys.PREFIX}broker:{CONTROL}") == 0
    assert keda.xlen(keys.inbox()) == 3


@pytest.mark.parametrize(
    "command",
    [
        ("GET", keys.target()),
        ("XRANGE", keys.inbox(), "-", "+"),
        ("LRANGE", f"{keys.PREFIX}broker:{LEARNING}", 0, -1),
        ("DEL", keys.inbox()),
        ("EVAL", "return redis.call('get', KEYS[1])", 1, keys.target()),
        ("TYPE", keys.runs()),
    ],
    ids=lambda command: command[0],
)
def test_it_reads_and_changes_nothing_else(keda, command):
    with pytest.raises(redis_py.ResponseError, match=r"NOPERM|no permission|can't run|No permiss"):
        keda.execute_command(*command)
