"""Logged prompts with several answers that nobody has ranked: what the reward model is asked about.

A snapshot carries the newest of them with their answers, so that the model that was trained on it
can say where its word is worth least (learning/reward_model/unranked.py); nothing is trained on
them. Which answers belong to a prompt is what feedback/labeling_supply.py shows raters, too.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from core.records import Completion
from core.redis_client import Redis
from feedback import store
from feedback.labeling_supply import fits, logged_answers
from feedback.rows import RankingRow, UnrankedRow
from feedback.texts import plain_messages, prompt_json

MOST_PROMPTS = 512
"""The newest so many prompts are looked at."""
MOST_ANSWERS = 9
"""Of a prompt; a ranking has no more."""
_MOST_READ = 4 * MOST_PROMPTS
Asked = tuple[str, str]
"""A user and their prompt."""


async def further_answers(
    redis: Redis, tokens: Sequence[str], known: Mapping[str, Completion]
) -> dict[str, Completion]:
    """Other completions of the newest prompts: the same user asked the very same again.

    `tokens` are the prompts', oldest first; `known` are the completions that were read already.
    """
    asked = {_asked(known[t]) for t in tokens[-MOST_PROMPTS:] if t in known} - {None}
    users = sorted({user for user, _ in filter(None, asked)})
    logged = await store.tokens_of_users(redis, users)
    unread = sorted(logged - known.keys())[:_MOST_READ]
    found = await store.completions(redis, unread)
    return {token: one for token, one in found.items() if _asked(one) in asked}


def unranked_rows(
    tokens: Sequence[str], completions: Mapping[str, Completion], rankings: Iterable[RankingRow]
) -> list[UnrankedRow]:
    """The newest training prompts that have several different answers and no ranking.

    `tokens` are the prompts', oldest first.
    """
    ranked = {(row.said.user, row.said.messages) for row in rankings}
    newest = tokens[-MOST_PROMPTS:]
    users = {completions[token].user for token in newest if token in completions}
    together: defaultdict[Asked | None, list[Completion]] = defaultdict(list)
    for completion in completions.values():
        if completion.user in users:
            together[_asked(completion)].append(completion)
    rows = []
    for token in newest:
        about = completions.get(token)
        asked = _asked(about) if about and fits(about) else None
        if about is None or asked is None or asked in ranked:
            continue
        texts = [answer.text for answer in logged_answers(about, together[asked])]
        if len(texts) > 1:
            rows.append(
                UnrankedRow(
                    prompt_id=token,
                    messages=asked[1],
                    user=about.user,
                    created_at=about.created_at,
                    texts=tuple(texts[:MOST_ANSWERS]),
                )
            )
    return rows


def _asked(completion: Completion) -> Asked | None:
    """None where a prompt is more than text."""
    plain = plain_messages(completion.messages)
    return None if plain is None else (completion.user, prompt_json(plain))
