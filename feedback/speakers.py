"""Who said it, where that is whoever the completion was for: found in the log when it is joined.

At intake a completion id is known and no person; here the record may be there. So the cap on a
rater, agreement, the firewall and what is held out see the person, not the application's key.
Pure; dataset.py and firewall.py ask before they look at raters.
"""

from collections.abc import Iterable, Mapping

from core.records import Completion, Feedback
from core.setting_groups import FeedbackSettings
from feedback.split import share_of


def with_speakers(
    feedback: Iterable[Feedback],
    completions: Mapping[str, Completion],
    *,
    settings: FeedbackSettings,
) -> list[Feedback]:
    """The feedback with the end user (a keyed hash) as its rater where they are the one who speaks.

    Where the completions are not in the log, or belong to several users, the key stays the rater.
    """
    return [_spoken(said, completions, settings=settings) for said in feedback]


def end_user(said: Feedback, completions: Mapping[str, Completion]) -> str | None:
    """The one user of all completions that this is about, if there is one."""
    known = [completions.get(output.token) for output in said.outputs]
    users = {completion.user if completion else "" for completion in known}
    return (users.pop() or None) if len(users) == 1 else None


def _spoken(
    said: Feedback, completions: Mapping[str, Completion], *, settings: FeedbackSettings
) -> Feedback:
    user = end_user(said, completions) if said.by_end_user else None
    if user is None:
        return said
    heldout = said.heldout_rater
    if not settings.heldout_raters:
        heldout = share_of(user) < settings.heldout_rater_share
    return said.model_copy(update={"rater": user, "heldout_rater": heldout})
