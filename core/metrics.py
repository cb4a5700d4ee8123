"""Every Prometheus collector of the service: names, units, labels, buckets.

Labels are bounded: a version, a stage, a status, never a user, prompt or key. The only module that
imports prometheus_client. On one machine the processes share files (`PROMETHEUS_MULTIPROC_DIR`,
which `up` sets), so that the gateway's `/metrics` shows what all of them know.
"""

import os
import re
from collections.abc import Iterator, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from core.records import ALL_STAGES

__all__ = ["CONTENT_TYPE_LATEST", "Counter", "Gauge", "Histogram", "render", "serve", "show"]

VERSIONS_SHOWN = 50
_VERSION = re.compile(r"v\d{1,9}")
_FAST = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
_FRESH = (60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0)
_STAGE = (1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1800.0, 7200.0, 43200.0)


def registry() -> CollectorRegistry:
    """What to expose: this process, or all processes of the machine; of versions the newest."""
    everything = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        everything = CollectorRegistry()
        MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
    shown = CollectorRegistry()
    shown.register(_Newest(everything))
    return shown


class _Newest(Collector):
    """Of metrics by version the newest so many: a loop that turns for years makes thousands."""

    def __init__(self, source: CollectorRegistry) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        for family in self._source.collect():
            numbers = {number for sample in family.samples if (number := _number(sample.labels))}
            if len(numbers) > VERSIONS_SHOWN:
                oldest = sorted(numbers)[-VERSIONS_SHOWN]
                fresh = [s for s in family.samples if (_number(s.labels) or oldest) >= oldest]
                family.samples = fresh
            yield family


def _number(labels: Mapping[str, str]) -> int:
    """Of the version that a series is about; 0 for none, and for the first."""
    named = labels.get("policy_version") or labels.get("version", "")
    return int(named[1:]) if _VERSION.fullmatch(named) else 0


def render() -> bytes:
    """All metrics in the text format of Prometheus."""
    return generate_latest(registry())


def show(port: int | None, *, host: str) -> None:
    """Expose them where the settings say, unless a gateway of this machine shows them, too."""
    if port is not None and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        serve(port, host=host)


def serve(port: int, *, host: str) -> None:
    """Expose the metrics on a port of their own, from a daemon thread."""
    start_http_server(port, addr=host, registry=registry())


# --- serving
REQUESTS = Counter("instructloop_requests_total", "HTTP requests.", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "instructloop_request_seconds", "Whole time of a request.", ["route"], buckets=_SLOW
)
OVERHEAD_SECONDS = Histogram(
    "instructloop_gateway_overhead_seconds",
    "Time that the gateway itself added to a completion.",
    buckets=_FAST,
)
FIRST_TOKEN_SECONDS = Histogram(
    "instructloop_time_to_first_token_seconds", "Until the first token of a stream.", buckets=_SLOW
)
TOKENS = Counter("instructloop_tokens_total", "Tokens.", ["kind", "policy_version"])
IN_FLIGHT = Gauge(
    "instructloop_in_flight_requests",
    "Completions being answered now.",
    multiprocess_mode="mostrecent",
)
REPLICAS = Gauge(
    "instructloop_replicas",
    "Engine replicas.",
    ["version", "state"],
    multiprocess_mode="mostrecent",
)
BREAKER_OPENS = Counter(
    "instructloop_breaker_opens_total",
    "Engines taken out of service by a gateway, because of failed requests or of a failed probe.",
    ["reason"],
)
RATE_LIMITED = Counter(
    "instructloop_rate_limited_total", "Completions refused by a limit.", ["limit"]
)
REDIS_UP = Gauge(
    "instructloop_redis_up", "1 when Redis answers this process.", multiprocess_mode="mostrecent"
)
REDIS_MEMORY = Gauge(
    "instructloop_redis_memory_bytes",
    "Memory that the Redis of the records uses.",
    multiprocess_mode="mostrecent",
)
REDIS_MEMORY_LIMIT = Gauge(
    "instructloop_redis_memory_limit_bytes",
    "What it may use: its `maxmemory`, or without one the memory of its machine.",
    multiprocess_mode="mostrecent",
)
DISK_FREE = Gauge(
    "instructloop_disk_free_bytes",
    "Free disk under the state folder.",
    multiprocess_mode="mostrecent",
)
DISK_STOPPED = Gauge(
    "instructloop_disk_stopped",
    "1 when learning, logging or feedback has stopped because the disk is nearly full.",
    ["what"],
    multiprocess_mode="mostrecent",
)
POLICY_INFO = Gauge(
    "instructloop_policy_version_info",
    "1 for the version that is the target.",
    ["version"],
    multiprocess_mode="mostrecent",
)
SWAPS = Counter(
    "instructloop_swaps_total",
    "Hot swaps: done, refused (the version is bad and quarantined), restored (the engine "
    "failed and serves the old weights), restarted, gave_up (the engine failed too often), "
    "not_fetched (no room on the engine's disk, or no way to `policies_url`; tried again).",
    ["outcome"],
)
ATTESTATIONS = Counter(
    "instructloop_attestations_total",
    "Proofs at intervals that a replica holds its version's weights: ok, mismatch, unanswered.",
    ["outcome"],
)
SWAP_PAUSE_SECONDS = Histogram(
    "instructloop_swap_pause_seconds", "How long a swap paused generation.", buckets=_SLOW
)

# --- vLLM's own, by replica (core/engine/figures.py)
ENGINE_RUNNING = Gauge(
    "instructloop_engine_requests_running",
    "Completions that an engine generates now.",
    ["replica"],
    multiprocess_mode="mostrecent",
)
ENGINE_WAITING = Gauge(
    "instructloop_engine_requests_waiting",
    "Completions that wait for room in an engine.",
    ["replica"],
    multiprocess_mode="mostrecent",
)
ENGINE_CACHE_USAGE = Gauge(
    "instructloop_engine_kv_cache_usage",
    "Share of an engine's memory for keys and values that is in use, 0 to 1.",
    ["replica"],
    multiprocess_mode="mostrecent",
)
ENGINE_TOKENS = Counter(
    "instructloop_engine_tokens_total", "Tokens by vLLM's own count.", ["replica", "kind"]
)
ENGINE_PREFIX_TOKENS = Counter(
    "instructloop_engine_prefix_tokens_total",
    "Tokens of prompts that were asked of the prefix cache, and those it had.",
    ["replica", "kind"],
)
ENGINE_PREEMPTIONS = Counter(
    "instructloop_engine_preemptions_total",
    "Completions that an engine put off for want of memory, and computed again.",
    ["replica"],
)

# --- canary
CANARY_INFO = Gauge(
    "instructloop_canary_info",
    "1 for the canary that is on, or the last, and its state.",
    ["version", "state"],
    multiprocess_mode="mostrecent",
)
CANARY_EVIDENCE = Gauge(
    "instructloop_canary_evidence",
    "E-values and figures of the canary, by signal; `side` says which.",
    ["signal", "side"],
    multiprocess_mode="mostrecent",
)
CANARY_USERS = Gauge(
    "instructloop_canary_users",
    "Users who asked anything while the canary is on.",
    ["cohort"],
    multiprocess_mode="mostrecent",
)
CANARY_FALLBACKS = Counter(
    "instructloop_canary_fallbacks_total",
    "Completions of the canary's users that the live version answered: no replica could.",
)

# --- log and feedback
PROMPTS = Counter("instructloop_prompts_total", "Prompts by what became of them.", ["outcome"])
PII_ENTITIES = Counter("instructloop_pii_entities_total", "Items hidden by the filter.", ["kind"])
LOG_BACKLOG = Gauge(
    "instructloop_log_backlog", "Completions that wait for ingest.", multiprocess_mode="mostrecent"
)
LOGS_DROPPED = Counter("instructloop_logs_dropped_total", "Completions not logged.", ["reason"])
QUARANTINE_TEXTS = Gauge(
    "instructloop_quarantine_texts",
    "Sealed texts that the PII filter could not clear yet.",
    multiprocess_mode="mostrecent",
)
QUARANTINE_OLDEST_SECONDS = Gauge(
    "instructloop_quarantine_oldest_seconds",
    "How long the oldest text has been in quarantine; 0 when there is none.",
    multiprocess_mode="mostrecent",
)
ARCHIVE_ROWS = Gauge(
    "instructloop_archive_completions",
    "Completions in the Parquet files of the archive.",
    multiprocess_mode="mostrecent",
)
ARCHIVE_BYTES = Gauge(
    "instructloop_archive_bytes",
    "Size of these files.",
    multiprocess_mode="mostrecent",
)
FEEDBACK = Counter("instructloop_feedback_total", "Feedback recorded.", ["kind", "policy_version"])
LABELING_TASKS = Gauge(
    "instructloop_labeling_tasks", "Labeling tasks.", ["state"], multiprocess_mode="mostrecent"
)
RATER_AGREEMENT = Gauge(
    "instructloop_rater_agreement",
    "Share of pairs on which two raters of one task agree.",
    multiprocess_mode="mostrecent",
)

# --- learning
FRESHNESS_SECONDS = Histogram(
    "instructloop_freshness_seconds",
    "From a word of somebody's to weights that learned from it and serve.",
    buckets=_FRESH,
)
REWARD_MODEL_ACCURACY = Gauge(
    "instructloop_reward_model_accuracy",
    "Pair accuracy of the newest reward model.",
    ["split"],
    multiprocess_mode="mostrecent",
)
STAGE_SECONDS = Histogram(
    "instructloop_learning_stage_seconds", "Whole time of a stage.", ["stage"], buckets=_STAGE
)
STAGE_PROGRESS = Gauge(
    "instructloop_learning_stage_progress",
    "How far a stage is, 0 to 1.",
    ["stage"],
    multiprocess_mode="mostrecent",
)
LEARNING_RUNS = Counter(
    "instructloop_learning_runs_total", "Stages that ended.", ["stage", "outcome"]
)
PPO_REWARD = Gauge(
    "instructloop_ppo_reward", "Mean score of the newest rollouts.", multiprocess_mode="mostrecent"
)
PPO_KL = Gauge(
    "instructloop_ppo_kl", "KL from the anchor, nats per answer.", multiprocess_mode="mostrecent"
)
PPO_CLIP_FRACTION = Gauge(
    "instructloop_ppo_clip_fraction",
    "Share of ratios that were clipped.",
    multiprocess_mode="mostrecent",
)
PPO_ENTROPY = Gauge(
    "instructloop_ppo_entropy",
    "Entropy of the policy, nats per token.",
    multiprocess_mode="mostrecent",
)
PPO_PTX_LOSS = Gauge(
    "instructloop_ppo_ptx_loss",
    "Loss on pretraining text, nats per token.",
    multiprocess_mode="mostrecent",
)
PPO_ENGINE_KL = Gauge(
    "instructloop_ppo_engine_kl",
    "KL of the learner's engine from the trainer for the same weights, nats per token.",
    multiprocess_mode="mostrecent",
)
PPO_ENGINE_ALARMS = Gauge(
    "instructloop_ppo_engine_alarms",
    "Signs in the newest rollouts that engine and trainer do not hold the same policy.",
    multiprocess_mode="mostrecent",
)
OVER_OPTIMISED = Counter(
    "instructloop_over_optimised_total",
    "Candidates that the reward model liked clearly better than held-out raters did.",
)
WIN_RATE = Gauge(
    "instructloop_policy_win_rate",
    "Win rate of a version.",
    ["version", "against"],
    multiprocess_mode="mostrecent",
)

# --- counters that alerts watch begin at 0: Prometheus sees no increase in a series' first value
for _outcome in ("done", "refused", "restored", "restarted", "gave_up", "not_fetched"):
    SWAPS.labels(_outcome)
for _outcome in ("ok", "mismatch", "unanswered"):
    ATTESTATIONS.labels(_outcome)
for _reason in ("seal_failed", "spool_full", "spool_failed", "disk_full"):
    LOGS_DROPPED.labels(_reason)
for _stage in ALL_STAGES:
    LEARNING_RUNS.labels(_stage, "failed")
