"""Does this feedback fit a completion of ours, and what is the record of it?

Pure: the completion id proves what it is about (core/ids.py), so no lookup is needed and a reply
can be rated the moment it arrives. Joining with the logged text comes later, in preferences.py.
Keeps no state and reads no clock; store.py writes what comes out of here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from core.errors import Unprocessable
from core.ids import CompletionToken, read_id, token_of
from core.keyring import IDS, Keyring
from core.records import ApiKey, Feedback, FeedbackKind, Output
from core.setting_groups import FeedbackSettings
from feedback.schemas import (
    MAX_OUTPUTS,
    DemonstrationRequest,
    FeedbackRequest,
    OutputRef,
    RankingRequest,
)
from feedback.split import share_of
from feedback.texts import prompt_json


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who says it: a rater, known by a keyed hash.

    `by_end_user`: whoever the completion was for, if it is about one. Its id does not say who that
    is, and the log may not have it yet, so the person is looked up when it is joined (speakers.py).
    """

    tenant: str
    key_id: str
    rater: str
    heldout: bool
    trains: bool
    by_end_user: bool = False


def speaker(
    key: ApiKey,
    rater: str | None,
    *,
    keyring: Keyring,
    settings: FeedbackSettings,
    signed_in: bool = False,
) -> Speaker:
    """The rater behind a request.

    With an application's key (`feedback` or `admin`) `rater` is a name within that key, and without
    a name the end user of the completion speaks. A key that labels is a rater itself, and so is one
    that somebody `signed_in` with on a page.
    """
    scopes = set(key.scopes)
    is_application = bool({"feedback", "admin"} & scopes)
    named = rater if rater and is_application else None
    by_end_user = is_application and not (named or signed_in or "label" in scopes)
    within = f"{key.id}\x00{named}" if named else key.id
    digest = keyring.hashed(key.tenant, "rater", within)
    heldout = is_heldout(named or key.name, digest, settings=settings)
    return Speaker(key.tenant, key.id, digest, heldout, key.trains, by_end_user)


def is_heldout(name: str, digest: str, *, settings: FeedbackSettings) -> bool:
    """Whether this rater's word only tests: by name (`heldout-*` is a prefix), else by hash."""
    if settings.heldout_raters:
        return is_named_heldout(name, settings)
    return share_of(digest) < settings.heldout_rater_share


def is_named_heldout(name: str, settings: FeedbackSettings) -> bool:
    """Whether a pattern of `heldout_raters` fits the name."""
    return any(_matches(name, pattern) for pattern in settings.heldout_raters)


def rating(
    body: FeedbackRequest, who: Speaker, *, keyring: Keyring, sealed: str | None, now: float
) -> Feedback:
    """A thumb, rating, flags or comment on one answer, or a signal about it.

    Raises NotFound, Unprocessable.
    """
    about = _checked(body.completion_id, body.choice, who=who, keyring=keyring)[0]
    return _record(
        "signal" if body.signal else "rating",
        who,
        keyring=keyring,
        about=[_name(about), *([body.signal] if body.signal else [])],
        now=now,
        outputs=(about,),
        signal=body.signal,
        thumb=body.thumb,
        rating=body.rating,
        flags=body.flags,
        sealed=sealed,
    )


def ranking(body: RankingRequest, who: Speaker, *, keyring: Keyring, now: float) -> Feedback:
    """An order of 2 to 9 different answers to one prompt. Raises NotFound, Unprocessable."""
    ties = [[_resolve(ref, who=who, keyring=keyring) for ref in tie] for tie in body.ranking]
    flat = [output for tie in ties for output, _ in tie]
    if not 2 <= len(flat) <= MAX_OUTPUTS:
        raise Unprocessable(f"a ranking has 2 to {MAX_OUTPUTS} outputs", param="ranking")
    if len(set(flat)) != len(flat):
        raise Unprocessable("the same output is ranked twice", param="ranking")
    if len({facts.prompt_tag for tie in ties for _, facts in tie}) != 1:
        raise Unprocessable("the outputs answer different prompts", param="ranking")
    outputs = tuple(sorted(flat, key=_name))
    place = {output: position for position, output in enumerate(outputs)}
    return _record(
        "ranking",
        who,
        keyring=keyring,
        about=[_name(output) for output in outputs],
        now=now,
        outputs=outputs,
        ranking=tuple(tuple(sorted(place[output] for output, _ in tie)) for tie in ties),
    )


def demonstration(
    body: DemonstrationRequest, who: Speaker, *, keyring: Keyring, sealed: str, now: float
) -> Feedback:
    """What an answer should have been. Raises NotFound, Unprocessable."""
    outputs: tuple[Output, ...] = ()
    if body.completion_id is not None:
        outputs = _checked(body.completion_id, body.choice, who=who, keyring=keyring)[:1]
        about = [_name(outputs[0])]
    else:
        about = ["prompt", prompt_json(prompt_of(body))]
    return _record(
        "demonstration",
        who,
        keyring=keyring,
        about=about,
        now=now,
        outputs=outputs,
        sealed=sealed,
    )


def prompt_of(body: DemonstrationRequest) -> list[dict[str, str]] | dict[str, str]:
    """The prompt that a demonstration brings along."""
    if body.messages is not None:
        return [{"role": m.role, "content": m.content} for m in body.messages]
    return {"prompt": body.prompt or ""}


def _matches(name: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def _name(output: Output) -> str:
    return f"{output.token}/{output.choice}"


def _resolve(ref: OutputRef, *, who: Speaker, keyring: Keyring) -> tuple[Output, CompletionToken]:
    return _checked(ref.completion_id, ref.choice, who=who, keyring=keyring)


def _checked(
    completion_id: str, choice: int, *, who: Speaker, keyring: Keyring
) -> tuple[Output, CompletionToken]:
    """The answer that is meant, if it can take feedback."""
    facts = read_id(keyring.accepted(IDS), who.tenant, completion_id)
    if not facts.stored:
        raise Unprocessable(
            "this completion was made with store=false: it takes no feedback",
            param="completion_id",
        )
    if choice >= facts.choices:
        raise Unprocessable(
            f"this completion has {facts.choices} choices, counted from 0", param="choice"
        )
    return Output(token=token_of(completion_id), choice=choice), facts


def _record(
    kind: FeedbackKind,
    who: Speaker,
    *,
    keyring: Keyring,
    about: Iterable[str],
    now: float,
    outputs: tuple[Output, ...],
    **said: object,
) -> Feedback:
    """The id is a keyed hash of who and what, so that a second word replaces the first."""
    by_end_user = who.by_end_user and bool(outputs)
    subject = "\x00".join((kind, "its end user" if by_end_user else who.rater, *about))
    return Feedback.model_validate(
        {
            "id": "fb-" + keyring.hashed(who.tenant, "feedback", subject),
            "kind": kind,
            "tenant": who.tenant,
            "key_id": who.key_id,
            "rater": who.rater,
            "heldout_rater": who.heldout,
            "by_end_user": by_end_user,
            "trains": who.trains,
            "created_at": now,
            "updated_at": now,
            "outputs": outputs,
            **said,
        }
    )
