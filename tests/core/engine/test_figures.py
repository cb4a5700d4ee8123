"""vLLM's figures among ours: which, whose, and across restarts of an engine."""

import pytest

from core import metrics
from core.engine import figures

SAID = b"""# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="instructloop"} 3.0
vllm:num_requests_running{engine="1",model_name="instructloop"} 2.0
vllm:num_requests_waiting{engine="0",model_name="instructloop"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="instructloop",reason="x"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="instructloop"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="instructloop"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="a prompt in a label"} 100.0
vllm:prompt_tokens_cached_total{engine="0",model_name="instructloop"} 1000.0
vllm:generation_tokens_total{engine="0",model_name="instructloop"} 40.0
vllm:generation_tokens_created{engine="0",model_name="instructloop"} 1.7e+09
vllm:prefix_cache_queries_total{engine="0"} 90.0
vllm:prefix_cache_hits_total{engine="0"} 64.0
vllm:num_preemptions_total 2.0
vllm:e2e_request_latency_seconds_bucket{le="0.3",model_name="instructloop"} 5.0
"""


@pytest.fixture
def replica(request):
    name = f"of-{request.node.name}"
    yield name
    figures.forget(name)


def shown(replica: str) -> dict[str, float]:
    """The figures of a replica, by name and kind."""
    found = {}
    for family in metrics.registry().collect():
        for one in family.samples:
            if one.labels.get("replica") == replica and not one.name.endswith("_created"):
                name = one.name.removeprefix("instructloop_engine_")
                found[" ".join([name, *filter(None, [one.labels.get("kind")])])] = one.value
    return found


ALL = {
    "requests_running": 5,
    "requests_waiting": 7,
    "kv_cache_usage": 0.5,
    "tokens_total prompt": 100,
    "tokens_total completion": 40,
    "prefix_tokens_total asked": 90,
    "prefix_tokens_total hit": 64,
    "preemptions_total": 2,
}


def test_the_chosen_series_are_shown_for_a_replica_and_no_other(replica):
    figures.show(SAID, replica=replica)
    assert shown(replica) == ALL
    names = {sample.name for family in metrics.registry().collect() for sample in family.samples}
    assert not any("vllm" in name for name in names)


def test_counters_grow_by_what_an_engine_did_also_when_it_begins_again_at_0(replica):
    figures.show(SAID, replica=replica)
    figures.show(SAID, replica=replica)
    assert shown(replica) == ALL
    figures.show(SAID.replace(b" 100.0", b" 130.0"), replica=replica)
    assert shown(replica)["tokens_total prompt"] == 130
    figures.show(SAID.replace(b" 100.0", b" 10.0"), replica=replica)  # another engine
    assert shown(replica)["tokens_total prompt"] == 140


def test_an_engine_that_is_gone_runs_nothing_and_the_next_counts_on(replica):
    figures.show(SAID, replica=replica)
    figures.forget(replica)
    gone = shown(replica)
    assert (gone["requests_running"], gone["requests_waiting"], gone["kv_cache_usage"]) == (0, 0, 0)
    assert gone["tokens_total prompt"] == 100
    figures.show(SAID, replica=replica)
    assert shown(replica)["tokens_total prompt"] == 200


def test_a_foreign_page_shows_nothing(replica):
    figures.show(b"<html>vllm:num_requests_running</html>\n\n# nothing", replica=replica)
    assert shown(replica) == {}
