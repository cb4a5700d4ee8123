"""What is kept: the records that serving, feedback and learning agree on.

Frozen pydantic models, stored as JSON. Text in them has passed the PII filter; users and raters
are keyed hashes. Wire shapes of HTTP are elsewhere (serving/, feedback/schemas.py).
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Split = Literal["train", "validation", "test"]
Scope = Literal["complete", "feedback", "label", "admin"]
FLAGS = (
    "fails_task",
    "inappropriate_customer_assistant",
    "hallucination",
    "satisfies_constraint",
    "sexual_content",
    "violent_content",
    "encourages_violence",
    "denigrates_protected_class",
    "harmful_advice",
    "expresses_opinion",
    "moral_judgment",
)
"""The paper's eleven binary labels (Table 3)."""


class Record(BaseModel):
    """A frozen record; an unknown field is an error, so that nothing is dropped in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyLimits(Record):
    """Limits of one key, in place of those of the settings; None leaves these, 0 is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    user_requests_per_minute: int | None = None
    user_tokens_per_minute: int | None = None
    user_concurrency: int | None = None


class ApiKey(Record):
    """A key as it is kept: the SHA-256 of the secret, never the secret."""

    id: str
    name: str
    tenant: str
    scopes: tuple[Scope, ...]
    digest: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    previous_digest: str | None = None
    """Of the secret before the last rotation, good until `previous_until`."""
    previous_until: float | None = None
    trains: bool = True
    """Whether what is said through this key may train a policy."""
    limits: KeyLimits | None = None


class Choice(Record):
    """One answer of a completion."""

    text: str
    finish_reason: str | None
    tokens: int | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Reply(Record):
    """What a request and its answers are, before the filter (feedback/entries.py) and after it.

    `messages` is a list of chat messages, or `{"prompt": text}` for a text completion.
    """

    token: str
    id: str
    tenant: str
    key_id: str
    user: str
    prompt_tag: str
    messages: list[dict[str, Any]] | dict[str, str]
    choices: tuple[Choice, ...]
    policy_versions: tuple[str, ...]
    created_at: float
    trains: bool = True
    error: str | None = None
    """Why the reply broke off: `hung_up`, `engine`, ...; such an answer is never rated."""
    sampling: dict[str, Any] = {}
    metadata: dict[str, str] = {}


class Completion(Reply):
    """A logged request with its answers.

    `counted` is false for prompts over the user's cap and for duplicates: their answers can be
    rated, but they give no new prompt to train on.
    """

    split: Split
    counted: bool
    outcome: str = "logged"
    pii: dict[str, int] = {}
    pii_version: str = ""

    @property
    def mixed(self) -> bool:
        """A swap crossed this reply: it never trains."""
        return len(self.policy_versions) > 1


class Output(Record):
    """One answer that feedback is about."""

    token: str
    choice: int


FeedbackKind = Literal["rating", "ranking", "demonstration", "signal"]


class Feedback(Record):
    """What one rater said last about one thing. The id is a keyed hash of who and what.

    `ranking` is best first, an inner list is a tie. `sealed` holds raw text (comment, notes,
    demonstration) until the PII filter has turned it into `text`.
    """

    id: str
    kind: FeedbackKind
    tenant: str
    key_id: str
    rater: str
    rater_name_digest: str = ""
    heldout_rater: bool = False
    by_end_user: bool = False
    """The rater is whoever the completion was for, whom feedback/speakers.py finds in the log;
    `rater` is the application's key, which stands in where that is not one person."""
    created_at: float
    updated_at: float
    outputs: tuple[Output, ...] = ()
    ranking: tuple[tuple[int, ...], ...] = ()
    """Positions into `outputs`."""
    thumb: Literal["up", "down"] | None = None
    rating: int | None = None
    signal: Literal["regenerate", "copy"] | None = None
    """What an end user did with the answer, without a word about it."""
    flags: dict[str, bool] = {}
    messages: list[dict[str, Any]] | dict[str, str] | None = None
    """The prompt of a demonstration that is not about a logged completion."""
    user: str = ""
    sealed: str | None = None
    text: dict[str, str] | None = None
    pii_version: str = ""
    trains: bool = True
    held: str | None = None
    """Why this is kept out of training until someone decides."""
    used_in: tuple[str, ...] = ()
    withdrawn: bool = False

    @property
    def comparisons(self) -> int:
        """Untied pairs that this says something about."""
        if self.kind == "demonstration":
            return 1 if self.outputs else 0
        sizes = [len(tie) for tie in self.ranking]
        total = sum(sizes)
        return (total * total - sum(size * size for size in sizes)) // 2


class LabelingOutput(Record):
    """An answer shown to raters, who never see which policy wrote it."""

    output_id: str
    text: str
    policy: str
    finish_reason: str | None = None


class Answer(Record):
    """A rater's answer to a labeling task: output ids best first, inner lists are ties."""

    rater: str
    heldout_rater: bool
    ranking: tuple[tuple[str, ...], ...]
    ratings: dict[str, int] = {}
    flags: dict[str, dict[str, bool]] = {}
    sealed_notes: str | None = None
    """Raw notes, until the PII filter has turned them into `notes`."""
    notes: dict[str, str] = {}
    """By output id; the reason of a skip by `skip`."""
    notes_digest: str = ""
    """Keyed hash of the raw notes, by which the same answer is known again."""
    answered_at: float
    held: str | None = None
    """Why this neither trains nor counts as a vote until someone decides."""
    released: bool = False
    """Someone has decided that it counts."""


class LabelingTask(Record):
    """A prompt and K answers to rate and rank (the paper, Figure 12)."""

    id: str
    tenant: str
    mode: Literal["training", "evaluation"]
    run_id: str
    user: str
    messages: list[dict[str, Any]] | dict[str, str]
    outputs: tuple[LabelingOutput, ...]
    created_at: float
    leased_by: str | None = None
    leased_until: float = 0.0
    answers: tuple[Answer, ...] = ()
    wanted: int = 1
    """How many raters answer before it is done."""
    gold: tuple[tuple[str, ...], ...] = ()
    """The order that is right, where ops know it: raters are measured by it, nothing is trained."""


STAGES = ("snapshot", "reward_model", "policy", "evaluate", "vote", "gate")
"""Of a round: it learns from comparisons."""
SFT_STAGES = ("snapshot", "sft", "evaluate", "vote", "gate")
"""Of a run that learns from demonstrations, when somebody asks for it."""
ALL_STAGES = ("snapshot", "sft", "reward_model", "policy", "evaluate", "vote", "gate")
Outcome = Literal[
    "running", "promoted", "passed", "refused", "not_enough_data", "failed", "cancelled"
]


class StageState(Record):
    """Where one stage of a run is."""

    started_at: float | None = None
    finished_at: float | None = None
    attempts: int = 0
    fraction: float = 0.0
    message: str = ""
    figures: dict[str, float] = {}


class Run(Record):
    """One round of learning."""

    id: str
    stages: tuple[str, ...]
    outcome: Outcome = "running"
    reason: str = ""
    created_at: float
    finished_at: float | None = None
    stage: str = ""
    """The stage that runs or comes next; empty when the run is over."""
    states: dict[str, StageState] = {}
    parent: str = ""
    version: str | None = None
    wanted_by: str = "schedule"
    comparisons: int = 0


class Replica(Record):
    """What an engine agent says of its engine, every second."""

    name: str
    url: str
    """`http://host:port` or `unix:PATH`."""
    version: str
    state: Literal["starting", "ready", "swapping", "failed", "draining"]
    detail: str = ""
    seen_at: float
    probed_at: float | None = None


class Card(Record):
    """A policy's birth certificate: written once, signed, never changed."""

    version: str
    parent: str | None
    created_at: str
    kind: Literal["base", "sft", "ppo", "ppo-ptx"]
    algorithm: dict[str, Any]
    data: dict[str, Any]
    reward_model: str | None
    anchor: str | None
    weights_sha256: str
    figures: dict[str, Any]
    gate: dict[str, Any]
    compatible: dict[str, Any]
    signature: str = ""
