"""Which prompts of held-out users are used for what: an order that a key decides, users in turn.

The gate takes from its front, attempt by attempt; the choice among a run's checkpoints from its
end, so that the two meet only where prompts are few. Pure.
"""

from collections.abc import Sequence

from learning.training.rollouts import Prompt, order_of


def choose_prompts(
    prompts: Sequence[Prompt], *, count: int, key: str, attempt: int = 1
) -> list[Prompt]:
    """At most `count` prompts for an attempt counted from 1, one of each user in turn.

    A second attempt begins where the first ended, so that no prompt is met again before all were.
    """
    turns = in_turn(prompts, key=key)
    start = count * (attempt - 1) % max(len(turns), 1)
    return (turns[start:] + turns[:start])[:count]


def last_prompts(prompts: Sequence[Prompt], *, count: int, key: str) -> list[Prompt]:
    """At most `count` prompts from the end of the same order."""
    return in_turn(prompts, key=key)[-count:]


def in_turn(prompts: Sequence[Prompt], *, key: str) -> list[Prompt]:
    """All prompts: each user's first, then each user's second, and so on."""
    by_user: dict[str, list[Prompt]] = {}
    for at in order_of(len(prompts), key):
        by_user.setdefault(prompts[at].user, []).append(prompts[at])
    most = max((len(theirs) for theirs in by_user.values()), default=0)
    return [theirs[i] for i in range(most) for theirs in by_user.values() if i < len(theirs)]
