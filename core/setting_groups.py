"""The groups of settings that concern serving, the log and what people say, with their bounds.

core/settings.py puts them together with those of learning (core/hyperparameters.py). Pure.
"""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from core.engine.address import read_advertised, read_listen
from core.hyperparameters import Group

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class GatewaySettings(Group):
    """The HTTP door for applications, raters and ops."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Where `/metrics` listens when `host` is not loopback."""
    max_body_bytes: int = Field(1_048_576, ge=1024)
    """Largest request body."""
    body_seconds: float = Field(30.0, gt=0)
    """How long a client may take to send it."""
    max_prompt_chars: int = Field(200_000, ge=1)
    """Longest prompt, all messages together."""
    max_choices: int = Field(16, ge=1, le=128)
    """Largest `n` of a request."""
    max_concurrent_requests: int = Field(512, ge=1)
    """Completions answered at one time; more get 503."""
    request_timeout_seconds: float = Field(600.0, gt=0)
    """Longest whole time of a completion."""
    first_token_timeout_seconds: float = Field(120.0, gt=0)
    """Longest wait for the first byte from an engine."""
    probe_interval_seconds: float = Field(5.0, gt=0)
    """An engine without traffic generates one token this often, to show that it is well."""
    probe_timeout_seconds: float = Field(15.0, gt=0)
    """An engine that gives no sign of life for so long is asked no more until it does."""
    shutdown_seconds: int = Field(20, ge=0)
    """How long requests in flight may finish after SIGTERM."""
    leave_seconds: float = Field(0.0, ge=0)
    """After SIGTERM: how long new requests are still taken while `/readyz` says 503, so that who
    spreads them over gateways can notice."""
    cors_origins: tuple[str, ...] = ()
    """Origins of browsers that may call the API."""
    session_hours: int = Field(12, ge=1, le=720)
    """How long a browser stays signed in to the pages without using them."""
    session_max_days: int = Field(7, ge=1, le=366)
    """How long it stays signed in at most, however much it uses them."""
    feedback_token_seconds: int = Field(3600, ge=1, le=604_800)
    """How long a browser may use a token for feedback on one completion."""
    access_log: bool = False
    """Whether each request is a line of the log: route, status, seconds and the key's id."""


class LimitSettings(Group):
    """What each key and each end user of a key may ask for; 0 is no limit.

    A key may have limits of its own (`keys create`).
    """

    requests_per_minute: int = Field(0, ge=0)
    """Completions of one key in a minute."""
    tokens_per_minute: int = Field(0, ge=0)
    """Tokens of one key in a minute, prompts and answers together."""
    concurrency: int = Field(0, ge=0)
    """Completions of one key at one time."""
    user_requests_per_minute: int = Field(0, ge=0)
    """Completions of one end user in a minute."""
    user_tokens_per_minute: int = Field(0, ge=0)
    """Tokens of one end user in a minute."""
    user_concurrency: int = Field(0, ge=0)
    """Completions of one end user at one time."""
    expected_tokens: int = Field(256, ge=1)
    """How long an answer counts until it has ended, if the request does not say `max_tokens`."""
    usage_days: int = Field(90, ge=1, le=366)
    """How long the usage of a day is kept."""


class EngineSettings(Group):
    """The vLLM engines that serve the current policy, and how weights are swapped."""

    urls: tuple[str, ...] = ()
    """Engines that already run; nothing is swapped into them."""
    count: int = Field(1, ge=1, le=64)
    """Engines of our own on this machine."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Name of the replica that `instructloop engine` runs; no two alive share one. Unset:
    `engine-0`, by `--number`."""
    listen: str | None = None
    """`HOST:PORT` where `instructloop engine` listens for gateways on other machines, such as
    `0.0.0.0:8100`. Unset: a Unix socket in the state folder."""
    advertise: str | None = None
    """URL at which gateways reach it, such as `http://10.1.2.3:8100`. Unset: from `listen`, with
    this machine's name where that is every address."""
    max_model_len: int = Field(2048, ge=64)
    """Longest prompt and completion together, in tokens."""
    max_num_seqs: int = Field(32, ge=1)
    """Completions that an engine generates at one time."""
    kv_cache_gib: int = Field(1, ge=1)
    """Memory of an engine for keys and values, on a CPU or a GPU; on a GPU raise it."""
    start_timeout_seconds: float = Field(300.0, gt=0)
    """How long an engine may take to start."""
    hang_seconds: float = Field(120.0, gt=0)
    """An engine of our own that has work and generates nothing for so long is started again."""
    attest_seconds: float = Field(300.0, ge=0)
    """How often each engine proves that its weights are its version's; 0: only after loads."""
    drain_seconds: float = Field(0.0, ge=0)
    """How long a swap waits for replies in flight before it pauses them; new requests wait, too."""
    swap_share: float = Field(0.1, gt=0, le=1)
    """Share of the replicas that may swap at one time; one always may."""
    copies: int = Field(1, ge=0)
    """Fetched versions that an engine's machine keeps beside the live one, the one before it, a
    canary's and those in use. Without `policies_url` nothing is fetched."""
    copies_gib: float = Field(0.0, ge=0)
    """Disk for all of them together; what must stay stays. 0: as much as there is."""

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, listen: str | None) -> str | None:
        return None if listen is None else str(read_listen(listen))

    @field_validator("advertise")
    @classmethod
    def _is_a_place(cls, advertise: str | None) -> str | None:
        return None if advertise is None else read_advertised(advertise)

    @model_validator(mode="after")
    def _advertise_what_listens(self) -> "EngineSettings":
        if self.advertise is not None and self.listen is None:
            raise ValueError("advertise needs listen: a Unix socket is for this machine only")
        return self


class LogSettings(Group):
    """Which prompts are kept, of whom, and how they are split."""

    prompts_per_user: int = Field(200, ge=1)
    """The paper's cap (section 3.2), counted over `window_days`."""
    window_days: int = Field(30, ge=1)
    """The days over which the cap and duplicates are counted."""
    duplicate_prefix_chars: int = Field(120, ge=16)
    """Prompts whose normalised text shares this long a prefix count as duplicates."""
    validation_share: Share = 0.2
    """Share of users whose prompts only test, during learning."""
    test_share: Share = 0.1
    """Share of users whose prompts are kept for the very last test."""
    split_by_prompt_under_users: int = Field(10, ge=0)
    """With fewer users, prompts are split instead."""
    inbox_max_entries: int = Field(100_000, ge=1)
    """Completions that may wait for ingest; more go to the spool."""
    spool_max_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024)
    """Largest local file of completions while Redis is away."""
    max_deliveries: int = Field(5, ge=1)
    """After this many failed attempts an entry goes to quarantine."""
    keep_in_redis: int = Field(10_000, ge=0)
    """The newest so many completions stay in Redis; older ones move to the archive."""
    archive_after_days: int = Field(30, ge=1)
    """Older completions move there, too, a thousand at a time."""
    archive: str | None = None
    """Where Parquet files of completions lie: a folder, `s3://...`, `gs://...`. Unset: `archive` in
    the state folder."""
    sealed_days: int = Field(3, ge=1)
    """How long the key of a day is kept at least; then it goes, once nothing waits for it."""
    pii_seconds: float = Field(5.0, gt=0)
    """How long the PII filter may take for one record."""
    pii_second_tier: bool = True
    """Whether a snapshot asks a second model for names: some 10 ms of CPU for each new record."""
    pii_recognizers: tuple[str, ...] = ()
    """Recognizers of your own, `package.module:ClassOrInstance`, that speak Presidio's protocol."""

    @model_validator(mode="after")
    def _leave_room_for_training(self) -> "LogSettings":
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must leave users to train on")
        return self


class FeedbackSettings(Group):
    """Whose word trains and whose only tests."""

    heldout_raters: tuple[str, ...] = ()
    """Rater names that never train. Unset: `heldout_rater_share` of all, by a keyed hash."""
    heldout_rater_share: Share = 0.2
    """Share of raters whose word only tests."""
    rater_share_cap: Share = 0.25
    """The largest share of a round that one rater may give; twice an equal share is always free."""
    tasks_open: int = Field(12, ge=0)
    """Labeling tasks kept open for the tenants that have a `label` key; 0: none are made."""
    task_answers: int = Field(4, ge=4, le=9)
    """K, the answers of such a task (the paper: 4 to 9)."""
    overlap_share: Share = 0.2
    """Share of these tasks that several raters get, so that agreement can be measured."""
    overlap_raters: int = Field(2, ge=2, le=9)
    """How many raters get those."""
    gold_share: Share = 0.1
    """Share of the tasks given to a rater whose right order is known, while there are such."""
    hold_back: bool = True
    """Whether bursts, raters who are always extreme, and raters in lockstep wait for a decision."""
    suspect_after: int = Field(20, ge=10)
    """So many of somebody's words are looked at before they can be suspected by them."""
    burst_per_minute: int = Field(60, ge=1)
    """More than so many words of one rater a minute, for five minutes, are a burst."""
    signals_train: bool = False
    """Whether a copied answer trains as a thumb up and a regenerated one as a thumb down."""
    lease_seconds: int = Field(600, ge=5)
    """How long a labeling task is a rater's before it goes back."""
    idempotency_hours: int = Field(24, ge=1)
    """How long an `Idempotency-Key` is remembered."""


class CanarySettings(Group):
    """A share of users gets a new version first; what they say decides (docs/decisions/0013)."""

    share: float = Field(0.0, ge=0.0, lt=1.0)
    """Of users, when learning has made a version that passed the gate; 0: all get it at once."""
    alpha_rollback: float = Field(0.01, gt=0.0, lt=1.0)
    """How often a version that is no worse may be rolled back, over all looks together."""
    alpha_promote: float = Field(0.05, gt=0.0, lt=1.0)
    """How often a version that is worse by more than `margin` may be promoted."""
    margin: float = Field(0.05, gt=0.0, lt=1.0)
    """How much worse does not matter, in the range of a signal: 0.05 are 5 points of thumbs."""
    signals: tuple[Literal["thumbs", "ratings", "rankings", "signals"], ...] = (
        "thumbs",
        "ratings",
        "rankings",
        "signals",
    )
    """What is looked at; evidence is their average, so leave out what your users never give."""
    min_users: int = Field(40, ge=2)
    """Users of the canary who must have said something before it is promoted."""
    look_seconds: float = Field(10.0, gt=0.0)
    """How often is looked at what they say."""
    settle_seconds: float = Field(60.0, ge=0.0)
    """What a user says for so long after their first word counts, as one value that then stays."""
    max_days: float = Field(7.0, gt=0.0)
    """After so long without a verdict it ends and the live version stays."""
    before_days: float = Field(7.0, gt=0.0)
    """With one replica: how far back the words about the version before are taken from."""
    second_engine: Literal["auto", "never"] = "auto"
    """With one replica, on a CPU: `auto` runs another for a canary's length if memory allows."""


class RetentionSettings(Group):
    """What stays on the disk of old versions and runs; looked at when a round ends."""

    versions: int = Field(5, ge=1)
    """Versions that were live before the live one: those that `rollback` can go back to."""
    runs: int = Field(3, ge=1)
    """Newest runs whose outputs stay, with the versions that came of them."""
    pinned: tuple[str, ...] = ()
    """Versions whose weights always stay."""
    completions_days: int | None = Field(None, ge=1)
    """After so many days completions go, from Redis and archive. Unset: they stay."""
    feedback_days: int | None = Field(None, ge=1)
    """After so many days since the last word feedback goes. Unset: it stays."""


class RoomSettings(Group):
    """Free disk under the state folder below which something stops; 0: it never does."""

    learning_mib: int = Field(1024, ge=0)
    """No stage of learning begins with less; one that runs stops at a checkpoint."""
    logging_mib: int = Field(512, ge=0)
    """Completions are answered but not logged with less."""
    feedback_mib: int = Field(128, ge=0)
    """Feedback is refused with less, where our own Redis writes to this disk."""

    @model_validator(mode="after")
    def _stop_in_order(self) -> "RoomSettings":
        given = [n for n in (self.learning_mib, self.logging_mib, self.feedback_mib) if n]
        if given != sorted(given, reverse=True):
            raise ValueError("learning_mib, logging_mib, feedback_mib: each at most the one before")
        return self


class WebhookSettings(Group):
    """Who is told of promotions, roll backs, canary verdicts, failed runs, failed attestations."""

    urls: tuple[str, ...] = ()
    """Where a signed message is posted to: `https://`, or `http://` on this machine. The secret is
    in `secrets/webhook.secret`, as Standard Webhooks spells it."""
    allow_http: bool = False
    """Whether `http://` may leave this machine."""
    timeout_seconds: float = Field(5.0, gt=0, le=10.0)
    """How long a receiver may take to answer."""

    @model_validator(mode="after")
    def _refuse_what_others_can_read(self) -> "WebhookSettings":
        for url in self.urls:
            parts = urlsplit(url)
            near = parts.hostname in ("127.0.0.1", "::1", "localhost") or self.allow_http
            schemes = {"https", "http"} if near else {"https"}
            if not parts.hostname or parts.scheme not in schemes:
                raise ValueError(
                    "urls: https:// is needed, or http:// to this machine (or webhooks.allow_http)"
                )
        return self
