"""The work of a simulation on one prompt: ask for K answers, rank them, send the rankings.

Speaks `POST /v1/chat/completions` and `POST /v1/rankings` and nothing else. Which prompts, how
many at once and what is shown meanwhile is deploy/simulate/run.py's.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from deploy.simulate.journal import Journal, Vote
from deploy.simulate.judges import Judge
from deploy.simulate.prompt_sets import Prompt
from deploy.simulate.raters import num_pairs, rank, who_ranks
from deploy.simulate.service_client import Refused, ServiceClient

HOT_FROM = 8
"""From this many answers on, two of them are sampled hotter, so that a prompt's answers differ."""
HOT_ANSWERS = 2
HOT_TEMPERATURE = 1.3


@dataclass(slots=True)
class Collected:
    """What was said, counted."""

    prompts: int = 0
    answers: int = 0
    ended: int = 0
    """Answers that ended by themselves rather than at the cap."""
    rankings: int = 0
    heldout_rankings: int = 0
    pairs: int = 0
    """Untied pairs in the rankings that may train."""
    tied_pairs: int = 0
    skipped: int = 0
    """Prompts with fewer than two different answers: nothing to rank."""
    resumed: int = 0
    """Prompts that an earlier run of the same simulation had finished."""
    retries: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that does not change while prompts are worked on."""

    client: ServiceClient
    judge: Judge
    names: Sequence[str]
    heldout_names: Sequence[str]
    answers: int
    max_tokens: int
    seed: int
    noise: float
    journal: Journal
    counts: Collected


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer that can be ranked."""

    completion_id: str
    index: int
    text: str


async def work_on(plan: Plan, index: int, prompt: Prompt) -> None:
    """Ask, rank, send, count; nothing that the journal says is done. Raises InstructLoopError."""
    key = _key(plan, prompt)
    if key in plan.journal.done:
        plan.counts.resumed += 1
        return
    votes = plan.journal.votes.get(key)
    if votes is None:
        votes = _votes(plan, index, prompt, await _ask(plan, prompt))
        plan.journal.intend(key, votes)
    for vote in votes:
        await plan.client.post("/v1/rankings", vote, idempotency_key=digest(vote))
        _count(plan, vote)
    plan.journal.finish(key)
    plan.counts.prompts += 1
    plan.counts.skipped += not votes


async def _ask(plan: Plan, prompt: Prompt) -> list[Choice]:
    """K answers to one prompt; of equal texts the first, so that nobody ranks a thing twice."""
    hot = HOT_ANSWERS if plan.answers >= HOT_FROM else 0
    found: dict[str, Choice] = {}
    for n, temperature in ((plan.answers - hot, 1.0), (hot, HOT_TEMPERATURE)):
        if not n:
            continue
        body = {
            "model": "instructloop",
            "messages": [{"role": "user", "content": prompt.prompt}],
            "n": n,
            "max_tokens": plan.max_tokens,
            "temperature": temperature,
            "user": prompt.user,
        }
        reply = await plan.client.post("/v1/chat/completions", body)
        for choice, ended in _read(reply):
            plan.counts.answers += 1
            plan.counts.ended += ended
            found.setdefault(choice.text, choice)
    return list(found.values())


def _read(reply: httpx.Response) -> list[tuple[Choice, bool]]:
    """The choices of a reply, and whether each ended by itself."""
    try:
        body = reply.json()
        return [
            (
                Choice(body["id"], choice["index"], choice["message"].get("content") or ""),
                choice["finish_reason"] == "stop",
            )
            for choice in body["choices"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"not a chat completion: {reply.text[:200]!r}") from None


def _votes(plan: Plan, index: int, prompt: Prompt, choices: Sequence[Choice]) -> list[Vote]:
    """What each rater of this prompt says: bodies for `POST /v1/rankings`."""
    if len(choices) < 2:
        return []
    scores = [plan.judge.score(prompt.prompt, choice.text) for choice in choices]
    groups = [names for names in (plan.names, plan.heldout_names) if names]
    votes = []
    for names in groups:
        rater = who_ranks(index, names, seed=plan.seed)
        ranking = rank(scores, noise=plan.noise, seed=plan.seed, rater=rater, about=prompt.prompt)
        shown = [
            [{"completion_id": choices[i].completion_id, "choice": choices[i].index} for i in tie]
            for tie in ranking
        ]
        votes.append({"ranking": shown, "rater": rater})
    return votes


def _count(plan: Plan, vote: Vote) -> None:
    if vote["rater"] in plan.heldout_names:
        plan.counts.heldout_rankings += 1
        return
    size = sum(len(tie) for tie in vote["ranking"])
    pairs = num_pairs(vote["ranking"])
    plan.counts.rankings += 1
    plan.counts.pairs += pairs
    plan.counts.tied_pairs += size * (size - 1) // 2 - pairs


def _key(plan: Plan, prompt: Prompt) -> str:
    """Names the work on one prompt, so that another simulation does not take it for its own."""
    return digest(
        str(plan.client.http.base_url),
        [plan.judge.name, plan.seed, plan.noise, plan.answers, plan.max_tokens],
        [plan.names, plan.heldout_names],
        [prompt.user, prompt.prompt],
    )


def digest(*parts: Any) -> str:
    """A name for these values, the same wherever and whenever it is made."""
    text = json.dumps(parts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:40]
