"""Every Redis key of the service. No key is spelled anywhere else.

All begin with one hash tag, so that a Redis Cluster has them in one slot: scripts name several.

Each function's docstring says type, time to live, and who writes and reads it; the table in
docs/architecture.md is tested against this file.
"""

PREFIX = "{il}:"


def schema() -> str:
    """string, version of how all of this is laid out; no expiry. Every start checks it."""
    return PREFIX + "schema"


def first_schema() -> str:
    """string, the same where the first release looks, so that it refuses; no expiry."""
    return "il:schema"


def migration() -> str:
    """string, whose `migrate` works here; expires in seconds. `migrate`, `up`."""
    return PREFIX + "migration"


def promised() -> str:
    """string, written before replicas are waited for, so that there is something to wait for."""
    return PREFIX + "promised"


# --- API keys -------------------------------------------------------------------------------


def api_keys() -> str:
    """hash id -> ApiKey JSON; no expiry. Written by the CLI, read by gateways every second."""
    return PREFIX + "api-keys"


def session(digest: str) -> str:
    """string, digest of a browser's API key and the session's end; expires unused. Gateway."""
    return f"{PREFIX}session:{digest}"


# --- limits and usage ------------------------------------------------------------------------


def limit(subject: str, kind: str) -> str:
    """hash, what is left of a limit and who holds slices; expires when full. Gateways."""
    return f"{PREFIX}limit:{kind}:{subject}"


def limit_gateways() -> str:
    """zset gateway -> milliseconds when it last leased; expires in seconds. Gateways."""
    return PREFIX + "limit-gateways"


def usage(day: str) -> str:
    """hash `KEY-ID:WHAT` -> count, of one day; expires after `usage_days`. Gateways."""
    return f"{PREFIX}usage:{day}"


def usage_writer(writer: str) -> str:
    """string, number of a gateway's last batch of usage that is in; expires. Gateways."""
    return f"{PREFIX}usage-writer:{writer}"


# --- prompts and completions ----------------------------------------------------------------


def inbox() -> str:
    """stream of sealed completions; an entry goes once it is recorded. Gateway -> ingest."""
    return PREFIX + "inbox"


def inbox_writer(writer: str) -> str:
    """string, number of a gateway process's last entry that is in; expires after 30 days."""
    return f"{PREFIX}inbox-writer:{writer}"


def quarantine() -> str:
    """hash name -> sealed text that the filter could not clear; until retried. Ingest."""
    return PREFIX + "quarantine"


def quarantine_since() -> str:
    """zset name -> milliseconds since when it is in quarantine. Ingest."""
    return PREFIX + "quarantine-since"


def quarantine_retry() -> str:
    """zset name -> milliseconds from which it is tried again. Ingest, tick."""
    return PREFIX + "quarantine-retry"


def day_keys_checked() -> str:
    """string, there while old day keys need no look; expires after an hour. Ingest, tick."""
    return PREFIX + "day-keys-checked"


def completion(token: str) -> str:
    """string, Completion JSON without PII, until it is archived. Ingest -> readers of the log."""
    return f"{PREFIX}completion:{token}"


def prompts() -> str:
    """zset token -> milliseconds of the prompts that count, here in Redis. Ingest -> snapshots."""
    return PREFIX + "prompts"


def user_prompts(user: str) -> str:
    """zset end of a token -> milliseconds: a user's prompts that count; of the window. Ingest."""
    return f"{PREFIX}user-prompts:{user}"


def user_completions(user: str) -> str:
    """set of tokens: what Redis has of one end user; more may be archived. Ingest -> erasure."""
    return f"{PREFIX}user-completions:{user}"


def openings(bucket: str) -> str:
    """zset digest of a prompt's opening -> when and whose; of the window. Ingest, erasure."""
    return f"{PREFIX}openings:{bucket}"


def logged() -> str:
    """zset token -> milliseconds of completions that are here, not in the archive. Ingest, tick."""
    return PREFIX + "logged"


def archive() -> str:
    """hash Parquet file -> what is in it, `#root`, `#generation`: the archive. Worker -> all."""
    return PREFIX + "archive"


def archive_broken() -> str:
    """hash token -> why it broke off, of answers in the archive. Worker -> feedback routes."""
    return PREFIX + "archive-broken"


def retention_checked() -> str:
    """string, there while nothing can have become too old; expires after an hour. Worker."""
    return PREFIX + "retention-checked"


def users() -> str:
    """set of user hashes seen. Ingest -> the split rule for few users."""
    return PREFIX + "users"


def opted_out() -> str:
    """set of user hashes whose prompts are not kept. Ops -> ingest."""
    return PREFIX + "opted-out"


def counts() -> str:
    """hash of totals: prompts, ratings, rankings, demonstrations, comparisons. -> status."""
    return PREFIX + "counts"


# --- feedback -------------------------------------------------------------------------------


def feedback(feedback_id: str) -> str:
    """string, Feedback JSON; no expiry. Feedback routes -> ingest, snapshots."""
    return f"{PREFIX}feedback:{feedback_id}"


def feedback_index() -> str:
    """zset feedback id -> milliseconds of the last word. Feedback routes -> snapshots."""
    return PREFIX + "feedback-index"


def feedback_text() -> str:
    """set of feedback ids, and `notes:` task ids, whose sealed text is unfiltered. -> ingest."""
    return PREFIX + "feedback-text"


def feedback_of(token: str) -> str:
    """set of feedback ids about one completion. Feedback routes -> erasure, labeling."""
    return f"{PREFIX}feedback-of:{token}"


def idempotency(scope: str) -> str:
    """string, request digest and reply; expires after a day. Every POST of feedback."""
    return f"{PREFIX}idempotency:{scope}"


# --- erasure --------------------------------------------------------------------------------


def tombstones() -> str:
    """hash user hash -> milliseconds: what they said until then is gone. Erasure -> ingest."""
    return PREFIX + "tombstones"


def erasures_open() -> str:
    """hash user hash -> id of the erasure that is not finished. Routes -> worker, CLI."""
    return PREFIX + "erasures-open"


def erasure(erasure_id: str) -> str:
    """hash, an erasure: whom, until when, steps done, counts, receipt; no expiry. -> routes."""
    return f"{PREFIX}erasure:{erasure_id}"


def erasure_tokens(erasure_id: str) -> str:
    """set of tokens of completions that go with a user; until it is finished. Erasure."""
    return f"{PREFIX}erasure-tokens:{erasure_id}"


def erasures_read() -> str:
    """string, bytes of the erasures' log outside Redis that were taken in. Worker, CLI."""
    return PREFIX + "erasures-read"


# --- labeling -------------------------------------------------------------------------------


def labeling_task(task_id: str) -> str:
    """string, LabelingTask JSON; no expiry. Learning -> labeling routes -> gate."""
    return f"{PREFIX}labeling-task:{task_id}"


def labeling_open(mode: str) -> str:
    """zset task id -> milliseconds from which it may be leased, also `gold-MODE`. Labeling."""
    return f"{PREFIX}labeling-open:{mode}"


def labeling_of(run_id: str) -> str:
    """set of task ids that a run opened. Learning -> gate."""
    return f"{PREFIX}labeling-of:{run_id}"


def labeling_seen(rater: str) -> str:
    """set of task ids that a rater has answered or skipped. Labeling routes."""
    return f"{PREFIX}labeling-seen:{rater}"


def labeling_sampling() -> str:
    """string, there while answers for tasks are sampled, and a moment after; expires. Worker."""
    return PREFIX + "labeling-sampling"


def labeling_set_aside(task_id: str) -> str:
    """string, there for an hour after a prompt did not give enough answers for a task. Worker."""
    return f"{PREFIX}labeling-set-aside:{task_id}"


def disagreement() -> str:
    """hash token -> how much the newest reward model's heads disagree; 30 days. Worker."""
    return PREFIX + "disagreement"


def held_decisions() -> str:
    """hash feedback id or rater -> `released` or `rejected`, by whom, when. Ops -> snapshots."""
    return PREFIX + "held-decisions"


# --- learning -------------------------------------------------------------------------------


def loop() -> str:
    """hash: paused, consumed (comparisons already learned from), last_round. Loop routes, tick."""
    return PREFIX + "loop"


def runs() -> str:
    """zset run id -> start in milliseconds. Learning -> status, routes."""
    return PREFIX + "runs"


def run(run_id: str) -> str:
    """string, Run JSON; no expiry. Learning -> status, routes, metrics."""
    return f"{PREFIX}run:{run_id}"


def run_current() -> str:
    """string, id of the one run that is not finished. Learning."""
    return PREFIX + "run-current"


def no_room() -> str:
    """string, why learning waits for room on a disk; expires in seconds. Tick -> status."""
    return PREFIX + "no-room"


def learning_lease() -> str:
    """string, fencing token of the worker that runs a stage; expires in seconds. Worker."""
    return PREFIX + "learning-lease"


def ingest_lease() -> str:
    """string, owner of the ingest in progress; expires in seconds. Worker."""
    return PREFIX + "ingest-lease"


def fence() -> str:
    """integer, the newest fencing token given out. Worker; checked by every publish."""
    return PREFIX + "fence"


# --- policies and replicas ------------------------------------------------------------------


def policies() -> str:
    """zset version -> its number: the registry. A version not in it does not exist."""
    return PREFIX + "policies"


def policy(version: str) -> str:
    """string, signed card JSON; never changes. Learning -> gateways, agents, people."""
    return f"{PREFIX}policy:{version}"


def policy_prefixes() -> str:
    """hash version -> prefix under `policies_url` where it is kept. Learning -> agents."""
    return PREFIX + "policy-prefixes"


def policy_next() -> str:
    """integer, the newest version number given out. Learning."""
    return PREFIX + "policy-next"


def policy_checksums(version: str) -> str:
    """hash parameter -> checksum, as one engine build loaded it. Agents, evaluation."""
    return f"{PREFIX}policy-checksums:{version}"


def quarantined() -> str:
    """hash version -> reason why no engine may load it. Agents."""
    return PREFIX + "quarantined"


def collected() -> str:
    """hash version -> when its weights were removed; its card stays. Learning -> promotion."""
    return PREFIX + "collected"


def target() -> str:
    """string, the version that every replica should serve. Promotion -> agents."""
    return PREFIX + "target"


def target_history() -> str:
    """list, newest first, of versions that were the target before. Promotion -> rollback."""
    return PREFIX + "target-history"


def freshness() -> str:
    """hash version -> when it was first live, ISO 8601: its words are measured then. Worker."""
    return PREFIX + "freshness"


def canary() -> str:
    """string, Canary JSON: the one that is on, or the last. Learning, people -> all."""
    return PREFIX + "canary"


def canary_units() -> str:
    """hash, what each user's words for and against a canary came to; gone with it. Worker."""
    return PREFIX + "canary-units"


def canary_room() -> str:
    """string, there while a second engine could run for a canary; expires. `up` -> canary."""
    return PREFIX + "canary-room"


def canary_look() -> str:
    """string, there while and a moment after a worker looks at the canary; expires. Worker."""
    return PREFIX + "canary-look"


def audit() -> str:
    """stream of promotions, rollbacks, key changes and erasures; append-only. -> history."""
    return PREFIX + "audit"


def webhooks() -> str:
    """hash digest of an address -> how far it has heard the audit log, attempts. Worker."""
    return PREFIX + "webhooks"


def webhooks_lease() -> str:
    """string, there while a worker sends webhooks; expires in seconds. Worker."""
    return PREFIX + "webhooks-lease"


def probes(version: str) -> str:
    """hash replica -> when it last proved to serve a version, ISO 8601; no expiry. Agents."""
    return f"{PREFIX}probes:{version}"


def replica(name: str) -> str:
    """string, Replica JSON; expires after seconds without a heartbeat. Agent -> gateways."""
    return f"{PREFIX}replica:{name}"


def replica_holder(name: str) -> str:
    """string, which agent speaks for a replica's name; expires with its heartbeat. Agent."""
    return f"{PREFIX}replica-holder:{name}"


def replicas() -> str:
    """set of replica names. Agent -> gateways."""
    return PREFIX + "replicas"


def swap_lease(turn: int) -> str:
    """string, name of a replica that swaps now; expires. So many agents at a time have a turn."""
    return f"{PREFIX}swap-lease:{turn}"
