"""What the dashboards show: every panel's question, query and unit, as data.

dashboards.py turns this into Grafana's JSON; tests ask a real Prometheus every query.
"""

from deploy.monitoring.board import Board, Panel, gauge, mean, quantiles, rate

_SERVING = (
    Panel(
        "Requests",
        {"{{route}} {{status}}": rate("instructloop_requests_total", by="route, status")},
        "reqps",
        "Answered requests by route and status. 5xx are ours, 4xx the clients'.",
    ),
    Panel(
        "Errors",
        {
            "5xx": 'sum(rate(instructloop_requests_total{status=~"5.."}[5m])) '
            "/ clamp_min(sum(rate(instructloop_requests_total[5m])), 1e-9)"
        },
        "percentunit",
        "Share of requests that failed on our side. The objective is one in a thousand.",
    ),
    Panel(
        "Time to first token",
        quantiles("instructloop_time_to_first_token_seconds"),
        "s",
        "What a person waits for before text appears. Grows with load and long prompts.",
    ),
    Panel(
        "What the gateway adds",
        quantiles("instructloop_gateway_overhead_seconds"),
        "s",
        "Time of a completion that is not the engine's. Grows when Redis or its disk is slow.",
    ),
    Panel(
        "Tokens",
        {
            "{{kind}} {{policy_version}}": rate(
                "instructloop_tokens_total", by="kind, policy_version"
            )
        },
        "short",
        "Tokens a second, read and written, by the version that answered.",
    ),
    Panel(
        "In flight",
        {"completions": gauge("instructloop_in_flight_requests")},
        "short",
        "Completions being answered now. Flat at the limit means that clients get 503.",
    ),
)
_INSIDE = (
    Panel(
        "Completions in engines",
        {
            "{{replica}} running": "max by (replica) (instructloop_engine_requests_running)",
            "{{replica}} waiting": "max by (replica) (instructloop_engine_requests_waiting)",
        },
        "short",
        "What vLLM generates now, and what waits for room. Waiting for long: add an engine.",
    ),
    Panel(
        "Memory for keys and values",
        {"{{replica}}": "max by (replica) (instructloop_engine_kv_cache_usage)"},
        "percentunit",
        "Share in use. Near 1 answers are put off and computed again.",
    ),
    Panel(
        "Prefix cache",
        {
            "{{replica}}": "sum by (replica) "
            '(rate(instructloop_engine_prefix_tokens_total{kind="hit"}[5m])) '
            "/ clamp_min(sum by (replica) "
            '(rate(instructloop_engine_prefix_tokens_total{kind="asked"}[5m])), 1e-9)'
        },
        "percentunit",
        "Share of prompts' tokens that an engine need not compute. 0 for a moment after a swap.",
    ),
    Panel(
        "Preemptions",
        {"{{replica}}": rate("instructloop_engine_preemptions_total", by="replica")},
        "short",
        "Answers put off for want of memory. Should be rare: raise `engine.kv_cache_gib`.",
    ),
    Panel(
        "Tokens by vLLM's count",
        {"{{replica}} {{kind}}": rate("instructloop_engine_tokens_total", by="replica, kind")},
        "short",
        "Of each engine, probes and samples for labeling among them.",
    ),
)
_REPLICAS = (
    Panel(
        "Replicas",
        {"{{version}} {{state}}": "sum by (version, state) (instructloop_replicas)"},
        "short",
        "Engines by the version they serve and their state.",
    ),
    Panel(
        "Live version",
        {"{{version}}": "instructloop_policy_version_info == 1"},
        "short",
        "The version that every replica should serve.",
        "table",
    ),
    Panel(
        "Swaps",
        {"{{outcome}}": "sum by (outcome) (increase(instructloop_swaps_total[1h]))"},
        "short",
        "Weights exchanged in running engines in an hour, by how that ended.",
    ),
    Panel(
        "Pause of a swap",
        quantiles("instructloop_swap_pause_seconds", "1h"),
        "s",
        "How long generation stood still. Requests wait, none fails.",
    ),
    Panel(
        "Attestations",
        {"{{outcome}}": "sum by (outcome) (increase(instructloop_attestations_total[1h]))"},
        "short",
        "Proofs that a replica holds the weights of its version. A mismatch is an alarm.",
    ),
)
_STORES = (
    Panel(
        "Redis",
        {"up": "min(instructloop_redis_up)"},
        "short",
        "0 when some process cannot reach Redis: completions flow, feedback gets 503.",
        "number",
    ),
    Panel(
        "Redis's memory",
        {
            "used": "max(instructloop_redis_memory_bytes)",
            "allowed": "max(instructloop_redis_memory_limit_bytes)",
        },
        "bytes",
        "Of the records. It evicts nothing: full, it refuses what people say.",
    ),
    Panel(
        "Disk",
        {
            "free": "min(instructloop_disk_free_bytes)",
            "{{what}} stopped": "max by (what) (instructloop_disk_stopped)",
        },
        "short",
        "Free bytes of the state folder. As they go, learning stops, then logging, then feedback.",
    ),
    Panel(
        "Log backlog",
        {"entries": gauge("instructloop_log_backlog")},
        "short",
        "Completions that wait to be filtered and recorded.",
    ),
    Panel(
        "Archive",
        {
            "completions": gauge("instructloop_archive_completions"),
            "bytes": gauge("instructloop_archive_bytes"),
        },
        "short",
        "Completions that have moved from Redis to Parquet, and what they take on disk.",
    ),
    Panel(
        "Completions not logged",
        {"{{reason}}": rate("instructloop_logs_dropped_total", by="reason")},
        "short",
        "Answers that were given and will never be rated. Should be nothing.",
    ),
)

SERVICE = Board(
    "instructloop-service",
    "InstructLoop: service",
    {"Completions": _SERVING, "Engines": _REPLICAS, "vLLM": _INSIDE, "Stores": _STORES},
)

LOOP = Board(
    "instructloop-loop",
    "InstructLoop: the loop",
    {
        "What comes in": (
            Panel(
                "Prompts",
                {"{{outcome}}": rate("instructloop_prompts_total", by="outcome")},
                "short",
                "Logged prompts, and why others do not count: cap, duplicate, opt-out, filter.",
            ),
            Panel(
                "Feedback",
                {"{{kind}}": rate("instructloop_feedback_total", by="kind")},
                "short",
                "Thumbs, ratings, rankings and demonstrations a second.",
            ),
            Panel(
                "Personal data hidden",
                {"{{kind}}": rate("instructloop_pii_entities_total", by="kind")},
                "short",
                "Items replaced by placeholders, by kind.",
            ),
            Panel(
                "Quarantine",
                {
                    "texts": gauge("instructloop_quarantine_texts"),
                    "oldest, hours": "max(instructloop_quarantine_oldest_seconds) / 3600 ",
                },
                "short",
                "Texts that the filter could not clear; encrypted, retried.",
            ),
        ),
        "What comes out": (
            Panel(
                "Win rate",
                {"{{version}} against {{against}}": "instructloop_policy_win_rate"},
                "percentunit",
                "How often people preferred a version over another, by the gate's votes.",
            ),
            Panel(
                "Over-optimised",
                {"candidates": "sum(increase(instructloop_over_optimised_total[1d]))"},
                "short",
                "Candidates in a day that the reward model liked and people did not.",
            ),
            Panel(
                "From word to weights",
                quantiles("instructloop_freshness_seconds", "7d"),
                "s",
                "Age of what people said when weights that learned from it first serve.",
            ),
            Panel(
                "Stages that ended",
                {
                    "{{stage}} {{outcome}}": "sum by (stage, outcome) "
                    "(increase(instructloop_learning_runs_total[1d]))"
                },
                "short",
                "Stages of rounds in a day, by outcome.",
            ),
            Panel(
                "Canary evidence",
                {"{{signal}} {{side}}": "instructloop_canary_evidence"},
                "short",
                "E-values: 100 against the canary rolls it back, 20 for it promotes.",
            ),
            Panel(
                "Canary users",
                {"{{cohort}}": "instructloop_canary_users"},
                "short",
                "Users in each cohort. Their ratio should be the share that was set.",
            ),
        ),
    },
)

LEARNING = Board(
    "instructloop-learning",
    "InstructLoop: learning",
    {
        "Now": (
            Panel(
                "Progress",
                {"{{stage}}": "max by (stage) (instructloop_learning_stage_progress)"},
                "percentunit",
                "How far each stage of the current round is.",
            ),
            Panel(
                "Time of a stage",
                {"{{stage}}": mean("instructloop_learning_stage_seconds", by="stage", window="1d")},
                "s",
                "Mean time of a stage over a day.",
            ),
        ),
        "Reward model": (
            Panel(
                "Accuracy",
                {"{{split}}": "max by (split) (instructloop_reward_model_accuracy)"},
                "percentunit",
                "Share of held-out pairs in people's order. Half is chance; PPO needs .65.",
            ),
        ),
        "PPO": (
            Panel(
                "Reward",
                {"score": gauge("instructloop_ppo_reward")},
                "short",
                "Mean score of the newest answers. It rises; if votes do not, see reward hacking.",
            ),
            Panel(
                "KL from the anchor",
                {"nats": gauge("instructloop_ppo_kl")},
                "short",
                "How far the policy is from where it began, in nats for each answer.",
            ),
            Panel(
                "Clipped",
                {"share": gauge("instructloop_ppo_clip_fraction")},
                "percentunit",
                "Share of tokens whose ratio left its bounds. Over a third: steps are too large.",
            ),
            Panel(
                "Entropy",
                {"nats": gauge("instructloop_ppo_entropy")},
                "short",
                "Nats for each token. A fall towards 0 means that it says one thing only.",
            ),
            Panel(
                "Engine and trainer",
                {
                    "nats": gauge("instructloop_ppo_engine_kl"),
                    "alarms": gauge("instructloop_ppo_engine_alarms"),
                },
                "short",
                "How far apart they are for the same weights. A jump: weights did not arrive.",
            ),
            Panel(
                "Loss on plain text",
                {"nats": gauge("instructloop_ppo_ptx_loss")},
                "short",
                "On the pretraining mix. A rise means that it forgets.",
            ),
        ),
    },
)

RATERS = Board(
    "instructloop-raters",
    "InstructLoop: raters",
    {
        "Labeling": (
            Panel(
                "Tasks",
                {"{{state}}": "sum by (state) (instructloop_labeling_tasks)"},
                "short",
                "Ranking tasks by state.",
            ),
            Panel(
                "Agreement",
                {"pairs": gauge("instructloop_rater_agreement")},
                "percentunit",
                "Share of pairs that two raters put in one order. The paper's raters: 73 %.",
            ),
            Panel(
                "Feedback by kind",
                {"{{kind}}": "sum by (kind) (increase(instructloop_feedback_total[1h]))"},
                "short",
                "What was said in an hour.",
            ),
        ),
    },
)

BOARDS = (SERVICE, LOOP, LEARNING, RATERS)
