"""Sealed requests against vLLM's own block pool: whose keys each of them finds, slot by slot.

vLLM is imported in a process of its own, because its import changes the one that it happens in.
"""

import functools
import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest

from core.engine import prefix_cache
from core.engine.prefix_cache import KeepsRunning, why_not

BLOCK = 4


@pytest.fixture(scope="module")
def beside() -> Iterator[ProcessPoolExecutor]:
    """A process in which vLLM may be imported."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@functools.cache
def vllm() -> SimpleNamespace:
    """What is used of vLLM, whose import takes seconds."""
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.request import Request

    kv_cache_utils.init_none_hash(sha256)
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
    config = KVCacheConfig(
        num_blocks=40,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        hash_block_size=BLOCK,
        cache_hit_alignment_tokens=BLOCK,
    )
    hasher = kv_cache_utils.get_request_block_hasher(BLOCK, sha256)

    def manager():
        return KVCacheManager(
            config, 400, scheduler_block_size=BLOCK, hash_block_size=BLOCK, log_stats=True
        )

    def request(name: str, tokens: list[int]):
        sampling = SamplingParams(max_tokens=300)
        return Request(name, tokens, sampling, None, cache_salt="user", block_hasher=hasher)

    return SimpleNamespace(manager=manager, request=request)


class Plain:
    """Where vLLM's scheduler is asked when ours passes a reset on."""

    asked: tuple[bool, bool] | None = None

    def reset_prefix_cache(self, running: bool = False, connector: bool = False) -> bool:
        self.asked = (running, connector)
        return running


class Scheduler(KeepsRunning, Plain):
    """As much of a scheduler as a reset looks at."""

    def __init__(self, manager) -> None:
        self.kv_cache_manager = manager
        self.requests: dict[str, object] = {}
        self.pause_state = SimpleNamespace(name="PAUSED_ALL")
        self.connector = self.aux_output_connector = None


class World:
    """Requests that come, write, are put back and end, and which weights computed each slot."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(vllm().manager())
        self.manager = self.scheduler.kv_cache_manager
        self.version = 0
        self.running: list = []
        self.waiting: list = []
        self.crossed: set[str] = set()
        self.texts: list[list[int]] = [[1]]
        self.slots: dict[tuple[int, int], tuple[int, int | None]] = {}  # token, version or mixed
        self.hits = self.wrong = self.after = 0

    def arrive(self) -> None:
        text = self.random.choice(self.texts)
        prompt = text[: self.random.randint(1, len(text))]
        request = vllm().request(f"r{len(self.texts)}-{self.random.random()}", prompt)
        self.scheduler.requests[request.request_id] = request
        self.waiting.append(request)

    def step(self) -> None:
        """Admit one, and compute what is missing of each; who finds no memory is put back."""
        self.manager.new_step_starts()
        if self.waiting and len(self.running) < 5:
            request = self.waiting.pop()
            found, count, _ = self.manager.get_computed_blocks(request)
            self.look_at(request, found.blocks[0])
            fits = self.manager.allocate_slots(request, request.num_tokens - count, count, found)
            if fits is None:
                self.waiting.append(request)
            else:
                self.running.append(request)
                self.write(request, count)
        for request in list(self.running):
            request.append_output_token_ids(sum(request.all_token_ids) % 3)
            missing = request.num_tokens - request.num_computed_tokens
            if self.manager.allocate_slots(request, missing) is None:
                self.put_back(request)
            else:
                self.write(request, request.num_computed_tokens)
            if request.num_tokens > 60:
                self.end(request)

    def look_at(self, request, blocks) -> None:
        """Each slot that is found has to hold the request's token, by the current weights."""
        self.hits += len(blocks)
        self.after += len(blocks) if self.version else 0
        for place, block in enumerate(blocks):
            for at in range(BLOCK):
                expected = (request.all_token_ids[place * BLOCK + at], self.version)
                self.wrong += self.slots[block.block_id, at] != expected

    def write(self, request, begin: int) -> None:
        (blocks,) = self.manager.get_block_ids(request.request_id)
        for at in range(begin, request.num_tokens):
            before = (blocks[(at - 1) // BLOCK], (at - 1) % BLOCK)
            pure = at == 0 or self.slots[before][1] == self.version
            value = (request.all_token_ids[at], self.version if pure else None)
            self.slots[blocks[at // BLOCK], at % BLOCK] = value
        request.num_computed_tokens = request.num_tokens

    def found(self, tokens: list[int]) -> int:
        """How many tokens a new request with these would find."""
        twin = vllm().request("twin", [*tokens, 5])
        return self.manager.get_computed_blocks(twin)[1]

    def put_back(self, request) -> None:
        self.manager.free(request)
        request.num_computed_tokens = 0
        self.running.remove(request)
        self.waiting.insert(0, request)

    def end(self, request) -> None:
        self.texts.append(list(request.all_token_ids))
        if request in self.running:
            self.running.remove(request)
            self.manager.free(request)
            del self.scheduler.requests[request.request_id]

    def swap(self) -> None:
        self.texts += [list(request.all_token_ids) for request in self.running]
        assert self.scheduler.reset_prefix_cache()
        self.version += 1

    def live(self, steps: int) -> None:
        for _ in range(steps):
            act = self.random.choices(
                [self.arrive, self.step, self.swap, self.preempt], [10, 60, 1, 2]
            )[0]
            act()

    def preempt(self) -> None:
        if self.running:
            self.put_back(self.random.choice(self.running))


def lived(seed: int, sealed: bool) -> tuple[int, int, int]:
    """How many swaps there were, what was found after one, and how much of that was not its own."""
    world = World(seed)
    with pytest.MonkeyPatch.context() as patch:
        if not sealed:
            patch.setattr(prefix_cache, "_seal", lambda _: None)
        world.live(900)
    return world.version, world.after, world.wrong


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_no_request_finds_a_block_that_other_weights_had_a_part_in(beside, seed):
    swaps, found, wrong = beside.submit(lived, seed, True).result()
    assert swaps > 3
    assert found > 50  # the cache of the new weights is used
    assert wrong == 0


@pytest.mark.slow
def test_without_the_seal_they_would(beside):
    assert sum(beside.submit(lived, seed, False).result()[2] for seed in range(6)) > 0


def hidden() -> tuple[bool, bool, list[int]]:
    """Whether a crossed request keeps its blocks, its hashes, and what is found of it later."""
    world = World(0)
    world.texts = [list(range(100, 122))]
    request = vllm().request("crossed", world.texts[0])
    world.scheduler.requests["crossed"] = request
    world.waiting.append(request)
    world.step()
    blocks, hashes = world.manager.get_block_ids("crossed"), list(request.block_hashes)
    found = [world.found(request.all_token_ids)]
    world.swap()
    kept = world.manager.get_block_ids("crossed") == blocks
    shares = bool(set(hashes) & set(request.block_hashes))
    found.append(world.found(request.all_token_ids))
    for _ in range(8):
        world.step()
    found.append(world.found(request.all_token_ids))
    world.manager.free(request)
    found.append(world.found(request.all_token_ids))
    found.append(world.manager.get_computed_blocks(request)[1])
    return kept, shares, found


@pytest.mark.slow
def test_a_request_keeps_its_blocks_and_nobody_finds_them_any_more(beside):
    kept, shares, found = beside.submit(hidden).result()
    assert kept
    assert not shares
    assert found == [20, 0, 0, 0, 0]


def left_to_vllm() -> list[str]:
    """What was passed on to vLLM, by what differed; nothing at last."""
    world = World(0)
    world.arrive()
    world.step()
    (request,) = world.running
    passed_on = []
    for owner, name, value in (
        (world.scheduler, "pause_state", SimpleNamespace(name="UNPAUSED")),
        (world.scheduler, "connector", object()),
        (request, "num_in_flight_tokens", 1),
        (request, "resumable", True),
        (request, "mm_features", [object()]),
        (world.manager, "coordinator", SimpleNamespace(single_type_managers=[object()])),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, value)
            world.scheduler.asked = None
            if not world.scheduler.reset_prefix_cache() and not request.skip_reading_prefix_cache:
                passed_on += [name] if world.scheduler.asked == (False, False) else []
    world.scheduler.asked = None
    if world.scheduler.reset_prefix_cache(True, False):
        passed_on += ["all again"] if world.scheduler.asked == (True, False) else []
    world.scheduler.asked = None
    if world.scheduler.reset_prefix_cache() and request.skip_reading_prefix_cache:
        passed_on += ["nothing"] if world.scheduler.asked is None else []
    return passed_on


@pytest.mark.slow
def test_what_is_not_as_it_is_known_here_is_left_to_vllm(beside):
    differing = ["pause_state", "connector", "num_in_flight_tokens", "resumable", "mm_features"]
    assert beside.submit(left_to_vllm).result() == [
        *differing,
        "coordinator",
        "all again",
        "nothing",
    ]


def test_a_scheduler_of_another_vllm_is_left_alone():
    assert why_not(SimpleNamespace(requests={})) == (
        "this vLLM has no pause_state, kv_cache_manager, connector, aux_output_connector, "
        "block_pool, coordinator, evict_blocks, log_stats, prefix_cache_stats, blocks, "
        "cached_block_hash_to_block, cached_block_hashes_by_block"
    )


def test_the_scheduler_that_vllm_would_choose_is_the_one_that_is_made(caplog):
    class Chosen(Plain):
        def __init__(self, *, vllm_config, more: int) -> None:
            self.more = more

    config = SimpleNamespace(scheduler_cls="ours", get_scheduler_cls=lambda: Chosen)
    made = prefix_cache.scheduler(vllm_config=SimpleNamespace(scheduler_config=config), more=7)
    assert isinstance(made, Chosen)
    assert made.more == 7
    assert config.scheduler_cls == "ours"
    assert made.reset_prefix_cache(True, False)
    assert "computed again: this vLLM has no" in caplog.text
