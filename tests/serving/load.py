"""Clients of the `openai` library that keep asking, and what became of each request."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import openai

from tests.serving.conftest import Gateway


@dataclass
class Outcome:
    """One request, as its client saw it."""

    stream: bool
    engine: str | None = None
    """The version that the reply's header names: each engine has one of its own here."""
    begun: bool = False
    """Whether its client has seen a first chunk."""
    whole: bool = False
    error: str | None = None


@dataclass
class Load:
    """Everything that was asked."""

    outcomes: list[Outcome] = field(default_factory=list)
    stopping: bool = False

    def streaming_from(self, engine: str) -> list[Outcome]:
        """The streams that an engine is in the middle of."""
        return [
            said
            for said in self.outcomes
            if said.begun and said.engine == engine and not said.whole and not said.error
        ]

    def answered_by(self, engine: str) -> int:
        """How many whole replies an engine gave."""
        return sum(said.whole for said in self.outcomes if said.engine == engine)


@asynccontextmanager
async def load_on(gateway: Gateway, *, clients: int, **sampling):
    """So many clients ask on, every second one for streams; all have ended when the block has."""
    load = Load()
    async with openai.AsyncOpenAI(
        base_url=gateway.url + "/v1", api_key=gateway.secret, max_retries=0, timeout=60
    ) as client:
        tasks = [
            asyncio.create_task(_keep_asking(client, load, number, sampling))
            for number in range(clients)
        ]
        try:
            yield load
        finally:
            load.stopping = True
            await asyncio.gather(*tasks)


async def _keep_asking(client: openai.AsyncOpenAI, load: Load, number: int, sampling) -> None:
    asked = 0
    while not load.stopping:
        asked += 1
        outcome = Outcome(stream=number % 2 == 0)
        load.outcomes.append(outcome)
        try:
            await _ask(client, outcome, f"Client {number}, request {asked}", sampling)
        except openai.APIError as error:
            outcome.error = str(error)


async def _ask(client: openai.AsyncOpenAI, outcome: Outcome, text: str, sampling) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="instructloop",
        messages=[{"role": "user", "content": text}],
        stream=outcome.stream,
        **sampling,
    )
    outcome.engine = raw.headers["x-policy-version"]
    reply = raw.parse()
    if not outcome.stream:
        outcome.whole = reply.choices[0].finish_reason in ("stop", "length")
        return
    async for chunk in reply:
        outcome.begun = True
        if chunk.choices and chunk.choices[0].finish_reason in ("stop", "length"):
            outcome.whole = True
