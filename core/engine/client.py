"""Talk to an engine: generate from token ids, and change its weights.

The only client of vLLM's control routes, and of the guard's own. It knows no policy and no traffic:
the agent decides when to swap (serving/swap.py has the order), the learner owns an engine of its
own and calls `replace_weights` and `generate`.

Every request has a connection of its own: after an error vLLM closes the connection, and the next
request on it, in the middle of a swap, would be lost. To the own machine, which is where the engine
is, a connection costs 0.1 ms. Gateways, which may be elsewhere, keep theirs (serving/upstream.py).
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import orjson

from core.engine.progress import tokens
from core.errors import CorruptVersion, EngineError, NotFinite

log = logging.getLogger(__name__)

# 96 tokens that every vocabulary has: longer than two blocks of the prefix cache
PROBE_PROMPT: tuple[int, ...] = tuple(range(100, 196))
_CONTROL_SECONDS = 30.0
_LOOK_SECONDS = 5.0
_LOAD_SECONDS = 600.0  # reading a large checkpoint from a slow disk
_LONG_METHODS = frozenset({"safe_reload", "parameter_checksums"})  # all others work in slices
_GENERATE_SECONDS = 3600.0
_POLL_SECONDS = 0.02
_SLICE_SECONDS = 0.03  # about one step of decoding
_NO_LOGPROB = -9999.0  # what vLLM sends for NaN and minus infinity


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer as the engine sampled it.

    Example: Sample(token_ids=[504, 3575, 2], logprobs=[-0.1, -0.02, -0.5], finish_reason="stop")
    """

    token_ids: list[int]  # the end-of-sequence token included, where it ended the answer
    logprobs: list[float]  # of each token, under the distribution it was drawn from
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GuardState:
    """What the guard says of itself."""

    version: str
    held: bool
    in_flight: int
    waiting: int


class EngineClient:
    """An async context manager over one engine, by its Unix socket or by a base URL."""

    def __init__(
        self,
        *,
        socket: Path | None = None,
        base_url: str = "http://engine",
        data_token: str,
        control_token: str,
    ) -> None:
        self._socket = socket
        self._base_url = base_url
        self.data_token = data_token
        """What opens the data routes; whoever owns the engine may exchange it."""
        self._control_token = control_token
        self._http: aiohttp.ClientSession | None = None
        self.on_metrics: Callable[[bytes], None] | None = None
        """Given vLLM's metrics whenever they are read."""

    async def __aenter__(self) -> Self:
        connector = (
            aiohttp.TCPConnector(force_close=True, limit=0)
            if self._socket is None
            else aiohttp.UnixConnector(str(self._socket), force_close=True, limit=0)
        )
        self._http = aiohttp.ClientSession(self._base_url, connector=connector)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def health(self) -> bool:
        """Whether the engine answers and vLLM says it lives. True of a paused one, too."""
        try:
            await self._call("GET", "/health", token=self.data_token, timeout=5.0)
        except EngineError:
            return False
        return True

    async def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        seed: int | None = None,
        concurrency: int = 32,
        priority: int = 0,
    ) -> list[list[Sample]]:
        """Sample `n` answers to each prompt (token ids); at most `concurrency` answers at a time.

        On an engine that also answers clients give a `priority` above 0, which makes these wait
        behind theirs, and a `concurrency` below its `max_num_seqs`: what runs is not put back.

        Sampling is by `temperature` and `top_p` alone: no other default applies. With a seed each
        answer has its own; yet how requests fall into batches changes the last bits of the logits,
        so two runs may differ. Raises EngineError if any prompt fails.
        """
        slots = asyncio.Semaphore(max(1, concurrency // n))

        async def answers(index: int, prompt: Sequence[int]) -> list[Sample]:
            sampling = {
                "n": n,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "seed": None if seed is None else seed + index * n,
            }
            async with slots:
                return await self._sample(
                    prompt, sampling, timeout=_GENERATE_SECONDS, priority=priority
                )

        tasks = [asyncio.create_task(answers(i, prompt)) for i, prompt in enumerate(prompts)]
        try:
            return await asyncio.gather(*tasks)
        finally:  # after a failure the others would go on for nobody
            for task in tasks:
                task.cancel()

    async def probe(self, prompt: Sequence[int] = PROBE_PROMPT) -> Sample:
        """Generate one greedy token, held or not; raises NotFinite if it is not a number.

        On a prompt that was probed before a swap, a stale prefix cache shows in the logprob.
        """
        sampling = {"n": 1, "max_tokens": 1, "temperature": 0.0}
        (sample,) = await self._sample(prompt, sampling, timeout=_CONTROL_SECONDS, priority=0)
        return sample

    async def pause(self, mode: Literal["keep", "wait"] = "keep") -> None:
        """Freeze requests in flight ("keep") or let them finish first ("wait", unbounded)."""
        await self._control("POST", f"/pause?mode={mode}&clear_cache=false")

    async def resume(self) -> None:
        """Go on after a pause."""
        await self._control("POST", "/resume")

    async def reload(self, folder: Path) -> None:
        """Load the checkpoint in `folder` in place; pause first.

        Raises CorruptVersion when it was refused and the old weights still serve; EngineError when
        loading failed: reload the previous folder before the next token, or restart the engine.
        """
        replies = await self._worker("safe_reload", folder=str(folder))
        refusals = [reply["refused"] for reply in replies if "refused" in reply]
        if len(refusals) == len(replies):
            raise CorruptVersion(f"The engine refused {folder}: {refusals[0]}")
        if refusals:
            raise EngineError(f"{self._name} loaded {folder} in part: {refusals[0]}")

    async def checksums(self) -> dict[str, str]:
        """SHA-256 of every live parameter; equal checksums are the same policy.

        They depend on how the model is cut over devices (one key per rank), not on the machine.
        """
        return _by_rank(await self._worker("parameter_checksums"))

    async def stage(self, folder: Path) -> dict[str, str] | None:
        """Load a checkpoint beside the live weights while the engine answers; its checksums.

        None where this engine can only `reload`. Raises CorruptVersion when it was refused. Nothing
        that is live is touched. Twice the weights' memory is needed until the next swap.
        """
        return await self._in_slices("stage", folder=str(folder))

    async def install(self) -> None:
        """Exchange the live weights for the staged ones; pause first.

        Raises EngineError when a layer then computes something else than it did when staged.
        """
        for reply in await self._worker("install"):
            if "wrong" in reply:
                raise EngineError(f"{self._name} did not take in {reply['wrong']}")

    async def attest(self, rest: float = 0.0) -> dict[str, str]:
        """`checksums`, in slices between which the engine answers; `rest` seconds between two."""
        checksums = await self._in_slices("checksums", rest=rest)
        if checksums is None:
            raise EngineError(f"{self._name} gave no checksums")
        return checksums

    async def reset_prefix_cache(self, *, keep: bool = False) -> None:
        """Forget all cached prefixes; pause first.

        With `keep` requests in flight go on with their own keys and values, which no other request
        can meet, where the engine can do that (core/engine/prefix_cache.py). Otherwise they are
        computed again. vLLM answers 200 even when it did nothing, so the body counts.
        """
        for computed_again in ("false", "true") if keep else ("true",):
            reply = await self._control(
                "POST", f"/reset_prefix_cache?reset_running_requests={computed_again}"
            )
            if reply == {"success": True}:
                return
        raise EngineError(
            f"{self._name} did not reset its prefix cache ({reply}). Pause it first, or restart it."
        )

    async def set_weight_version(self, version: str) -> None:
        """Say which policy the weights are, to the guard and vLLM; while paused, before resume."""
        await self._control("POST", "/instructloop/version", {"version": version})
        await self._control("POST", "/update_weight_version", {"new_version": version})

    async def replace_weights(self, folder: Path, version: str) -> None:
        """The whole exchange for an engine that serves nobody else (a learner's).

        Raises as `reload` does; after CorruptVersion the engine serves on with the old weights.
        """
        await self.pause()
        try:
            await self.reload(folder)
            await self.reset_prefix_cache()
            await self.set_weight_version(version)
        except CorruptVersion:
            await self.resume()
            raise
        await self.resume()

    async def hold(self) -> None:
        """Let new data requests wait at the guard."""
        await self._control("POST", "/instructloop/hold")

    async def admit(self, version: str) -> None:
        """Let data requests pass, as requests to `version`."""
        await self._control("POST", "/instructloop/admit", {"version": version})

    async def state(self) -> GuardState:
        """The version, whether requests are held, how many are in flight and how many wait."""
        return GuardState(**await self._control("GET", "/instructloop/state"))

    async def in_flight(self) -> int:
        """How many data requests vLLM is working on."""
        return (await self.state()).in_flight

    async def tokens(self) -> float:
        """How many tokens it has read and written since its start."""
        text = await self._send("GET", "/metrics", token=self.data_token, timeout=_LOOK_SECONDS)
        if self.on_metrics is not None:
            self.on_metrics(text)
        return tokens(text)

    async def drain(self, seconds: float) -> int:
        """Wait until nothing is in flight, at most `seconds`; returns how many are left."""
        deadline = time.monotonic() + seconds
        while (left := await self.in_flight()) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        return left

    @property
    def _name(self) -> str:
        return f"The engine at {self._socket or self._base_url}"

    async def _sample(
        self, prompt: Sequence[int], sampling: dict[str, Any], *, timeout: float, priority: int
    ) -> list[Sample]:
        """One request to vLLM's route with token ids in and out."""
        body = {
            "token_ids": list(prompt),
            "sampling_params": {**sampling, "logprobs": 0, "detokenize": False},
            "priority": priority,
        }
        reply = await self._control("POST", "/inference/v1/generate", body, timeout=timeout)
        choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
        return [self._checked(choice) for choice in choices]

    def _checked(self, choice: dict[str, Any]) -> Sample:
        logprobs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        if choice["finish_reason"] not in ("stop", "length"):
            raise EngineError(f"{self._name} ended an answer with {choice['finish_reason']}.")
        if any(not math.isfinite(value) or value == _NO_LOGPROB for value in logprobs):
            raise NotFinite(
                f"{self._name} computes NaN. Restart it from a good version: its cache is poisoned."
            )
        return Sample(choice["token_ids"], logprobs, choice["finish_reason"])

    async def _in_slices(
        self, work: str, *, rest: float = 0.0, **arguments: str
    ) -> dict[str, str] | None:
        """Have long work done a few milliseconds at a time; None where that is not supported."""
        await self._worker("begin", work=work, **arguments)
        done: dict[int, dict[str, str]] = {}
        while True:
            replies = await self._worker("go_on", seconds=_SLICE_SECONDS)
            for rank, reply in enumerate(replies):
                if "refused" in reply:
                    raise CorruptVersion(f"{self._name} refused it: {reply['refused']}")
                if "unread" in reply:
                    raise EngineError(f"{self._name} could not read it: {reply['unread']}")
                if "unsupported" in reply:
                    log.info("%s can only be reloaded: %s", self._name, reply["unsupported"])
                    return None
                if "done" in reply:
                    done[rank] = reply["done"]
            if len(done) == len(replies):
                return _by_rank([done[rank] for rank in sorted(done)])
            await asyncio.sleep(rest)

    async def _worker(self, method: str, **arguments: str | float) -> list[dict[str, Any]]:
        """Call a method of core/engine/worker.py on every rank."""
        body = {"method": method, "kwargs": arguments}
        timeout = _LOAD_SECONDS if method in _LONG_METHODS else _CONTROL_SECONDS
        reply = await self._control("POST", "/collective_rpc", body, timeout=timeout)
        results = reply.get("results") if isinstance(reply, dict) else None
        if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
            raise EngineError(f"{self._name} answered {method} with {reply!r:.300}")
        return results

    async def _control(
        self, method: str, path: str, body: object = None, *, timeout: float | None = None
    ) -> Any:
        seconds = _CONTROL_SECONDS if timeout is None else timeout
        return await self._call(method, path, body, token=self._control_token, timeout=seconds)

    async def _call(
        self, method: str, path: str, body: object = None, *, token: str, timeout: float
    ) -> Any:
        """The JSON of a 2xx reply, else EngineError."""
        return self._parsed(
            path, await self._send(method, path, body, token=token, timeout=timeout)
        )

    async def _send(
        self, method: str, path: str, body: object = None, *, token: str, timeout: float
    ) -> bytes:
        """One request on a connection of its own; the body of a 2xx reply, else EngineError."""
        if self._http is None:
            raise EngineError("Use EngineClient as an async context manager.")
        try:
            async with self._http.request(
                method,
                path,
                data=None if body is None else orjson.dumps(body),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(
                f"{self._name} did not answer {path} within {timeout:g} s ({error!r}). Look at its "
                "log; if it is gone, it will be started again."
            ) from error
        if response.status >= 300:
            said = content[:300].decode(errors="replace")
            raise EngineError(f"{self._name} answered {response.status} to {path}: {said}")
        return content

    def _parsed(self, path: str, content: bytes) -> Any:
        try:
            return orjson.loads(content) if content else None
        except orjson.JSONDecodeError as error:
            raise EngineError(f"{self._name} answered {path} with broken JSON: {error}") from error


def _by_rank(replies: Sequence[dict[str, str]]) -> dict[str, str]:
    """One rank's checksums as they are, several ranks' with the rank in the name."""
    if len(replies) == 1:
        return replies[0]
    return {
        f"{name}@{rank}": digest
        for rank, reply in enumerate(replies)
        for name, digest in reply.items()
    }
