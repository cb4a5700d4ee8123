"""Wire shapes of the feedback and labeling routes; every string and list has a bound.

An unknown field is an error, so that nothing a person tells us is dropped in silence. What the
fields mean together is checked in intake.py and labeling.py; records are in core/records.py.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from core.records import FLAGS, FeedbackKind

MAX_OUTPUTS = 9
_MAX_COMMENT = 10_000
_MAX_TEXT = 200_000

Name = Annotated[str, Field(min_length=1, max_length=200)]
CompletionId = Annotated[str, Field(min_length=1, max_length=200)]
Comment = Annotated[str, Field(max_length=_MAX_COMMENT)]
Text = Annotated[str, Field(min_length=1, max_length=_MAX_TEXT)]
ChoiceIndex = Annotated[int, Field(strict=True, ge=0, le=10_000)]
Rating = Annotated[int, Field(strict=True, ge=1, le=7)]
Flags = Annotated[
    dict[str, Annotated[bool, Field(strict=True)]],
    Field(json_schema_extra={"propertyNames": {"enum": list(FLAGS)}}),
]


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Judged(Body):
    """What may be said of one answer."""

    rating: Rating | None = None
    flags: Flags = {}

    @field_validator("flags")
    @classmethod
    def _known(cls, flags: dict[str, bool]) -> dict[str, bool]:
        if not flags.keys() <= set(FLAGS):
            raise ValueError(f"flags are: {', '.join(FLAGS)}")
        return flags


class OutputRef(Body):
    """One answer: a completion id and the index of the choice."""

    completion_id: CompletionId
    choice: ChoiceIndex = 0


class FeedbackRequest(Judged):
    """`POST /v1/feedback`: what somebody thinks of one answer."""

    completion_id: CompletionId
    choice: ChoiceIndex = 0
    thumb: Literal["up", "down"] | None = None
    comment: Comment | None = None
    signal: Literal["regenerate", "copy"] | None = None
    """What the end user did with the answer; a record of its own, so it comes alone."""
    rater: Name | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "FeedbackRequest":
        said = (self.thumb, self.rating, self.flags or None, self.comment or None)
        silent = all(part is None for part in said)
        if silent and self.signal is None:
            raise ValueError("say at least one of thumb, rating, flags, comment (or a signal)")
        if self.signal is not None and not silent:
            raise ValueError("a signal comes alone: send what is said of the answer apart")
        return self


class RankingRequest(Body):
    """`POST /v1/rankings`: answers to one prompt, best first; an inner list is a tie."""

    ranking: Annotated[
        list[Annotated[list[OutputRef], Field(min_length=1, max_length=MAX_OUTPUTS)]],
        Field(min_length=1, max_length=MAX_OUTPUTS),
    ]
    rater: Name | None = None


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=_MAX_TEXT)]


class DemonstrationRequest(Body):
    """`POST /v1/demonstrations`: what the answer should have been."""

    completion_id: CompletionId | None = None
    choice: ChoiceIndex = 0
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)] | None = None
    prompt: Text | None = None
    text: Text
    rater: Name | None = None

    @model_validator(mode="after")
    def _about_one_thing(self) -> "DemonstrationRequest":
        if sum(x is not None for x in (self.completion_id, self.messages, self.prompt)) != 1:
            raise ValueError("give exactly one of completion_id, messages, prompt")
        return self


class LabeledOutput(Judged):
    """What a rater says of one output of a labeling task."""

    output_id: Name
    notes: Comment | None = None


class LabelingRequest(Body):
    """`POST /v1/labeling/{id}`: each output rated, then all of them ranked, best first."""

    outputs: Annotated[list[LabeledOutput], Field(max_length=MAX_OUTPUTS)] = []
    ranking: Annotated[
        list[Annotated[list[Name], Field(min_length=1, max_length=MAX_OUTPUTS)]],
        Field(min_length=1, max_length=MAX_OUTPUTS),
    ]


class SkipRequest(Body):
    """`POST /v1/labeling/{id}/skip`."""

    reason: Comment | None = None


class Recorded(BaseModel):
    """The reply of every POST here: it survives `kill -9` of any of our processes."""

    id: str
    status: Literal["recorded", "withdrawn", "skipped"]


class FeedbackState(BaseModel):
    """`GET /v1/feedback/{id}`: what was recorded and what became of it."""

    id: str
    kind: FeedbackKind
    status: Literal["pending", "joined", "used", "unjoinable", "held", "withdrawn"]
    reason: str | None = None
    """Why it is unjoinable or held."""
    used_in: list[str] = []
    """Versions that were trained on it."""
    created_at: float
    updated_at: float


class ShownOutput(BaseModel):
    """One answer of a labeling task; its id says nothing about who wrote it."""

    output_id: str
    text: str


class ShownTask(BaseModel):
    """`GET /v1/labeling/next`: a task, leased to this rater until `leased_until`."""

    id: str
    mode: Literal["training", "evaluation"]
    messages: list[dict[str, Any]]
    outputs: list[ShownOutput]
    leased_until: float


class ErrorDetail(BaseModel):
    """The inside of OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail
