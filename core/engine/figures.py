"""A few of vLLM's own figures among ours: what an engine runs, caches and preempts, by replica.

The agent reads its engine's `/metrics` every few seconds to see whether it gets on, over whatever
it listens on, and hands the text to `show`; so the figures reach a Prometheus that could not reach
the engine. Of vLLM's hundred series these are kept: their number does not grow with anything but
replicas. Knows vLLM's metrics as text.
"""

from collections import defaultdict
from collections.abc import Mapping

from core import metrics
from core.metrics import Counter, Gauge

_GAUGES: Mapping[bytes, Gauge] = {
    b"vllm:num_requests_running": metrics.ENGINE_RUNNING,
    b"vllm:num_requests_waiting": metrics.ENGINE_WAITING,
    b"vllm:kv_cache_usage_perc": metrics.ENGINE_CACHE_USAGE,
}
_COUNTERS: Mapping[bytes, tuple[Counter, str]] = {
    b"vllm:prompt_tokens_total": (metrics.ENGINE_TOKENS, "prompt"),
    b"vllm:generation_tokens_total": (metrics.ENGINE_TOKENS, "completion"),
    b"vllm:prefix_cache_queries_total": (metrics.ENGINE_PREFIX_TOKENS, "asked"),
    b"vllm:prefix_cache_hits_total": (metrics.ENGINE_PREFIX_TOKENS, "hit"),
    b"vllm:num_preemptions_total": (metrics.ENGINE_PREEMPTIONS, ""),
}
_seen: dict[tuple[str, bytes], float] = {}
"""Counters as an engine said them last: one that was started again begins at 0."""


def show(text: bytes, *, replica: str) -> None:
    """Show what an engine's `/metrics` says."""
    said = chosen(text)
    for name, gauge in _GAUGES.items():
        if name in said:
            gauge.labels(replica).set(said[name])
    for name, (counter, kind) in _COUNTERS.items():
        if name in said:
            before = _seen.get((replica, name), 0.0)
            grown = said[name] - before if said[name] >= before else said[name]
            _seen[replica, name] = said[name]
            counter.labels(*((replica, kind) if kind else (replica,))).inc(grown)


def forget(replica: str) -> None:
    """There is no engine any more: nothing runs, and the next one counts from 0."""
    for gauge in _GAUGES.values():
        gauge.labels(replica).set(0)
    for name in _COUNTERS:
        _seen.pop((replica, name), None)


def chosen(text: bytes) -> dict[bytes, float]:
    """The series that are shown: sums over an engine's parts, of shares the largest (pure)."""
    found: dict[bytes, list[float]] = defaultdict(list)
    for line in text.splitlines():
        name, brace, _ = line.partition(b"{")
        if not brace:
            name = line.partition(b" ")[0]
        if name in _GAUGES or name in _COUNTERS:
            found[name].append(float(line.rsplit(b" ", 1)[1]))
    return {n: max(v) if n.endswith(b"_perc") else sum(v) for n, v in found.items()}
