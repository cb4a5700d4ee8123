"""Forgetting cached prefixes while replies are in flight: all that we know of vLLM's scheduler.

vLLM's own reset drops the keys and values of all replies in flight and computes them again, which
two cores need seconds for. Here replies keep what they have and go on at once, and still no later
request meets a block of the old weights:

* no block can be found any more: all hashes are removed, also those of blocks in use;
* what a crossed request fills from now on is filed under hashes that start from random bytes and
  a random salt, which no other request can have, and it reads nothing from the cache itself. If
  it is put back for lack of memory, it is computed anew.

vLLM loads `scheduler` by name (`--scheduler-cls`) in the process that schedules. A reset without
`reset_running_requests`, which vLLM refuses while blocks are in use, then does the above, if
generation is paused and vLLM is as it is known here. Otherwise it refuses as before, and who asked
has to let everything be computed again. Called by core/engine/client.py; it knows no weights.
"""

import copy
import logging
import secrets
from typing import Any

log = logging.getLogger(__name__)

_HASH_BYTES = 32
# all that is used of vLLM; by owner
_SCHEDULER = ("requests", "pause_state", "kv_cache_manager", "connector", "aux_output_connector")
_MANAGER = ("block_pool", "coordinator", "evict_blocks", "log_stats", "prefix_cache_stats")
_POOL = ("blocks", "cached_block_hash_to_block", "cached_block_hashes_by_block")
_REQUEST = (
    "block_hashes",
    "cache_salt",
    "skip_reading_prefix_cache",
    "num_in_flight_tokens",
    "has_encoder_inputs",
    "resumable",
)


def scheduler(**arguments: Any) -> Any:
    """The scheduler that vLLM would choose itself, with `KeepsRunning` mixed in."""
    config = copy.copy(arguments["vllm_config"].scheduler_config)
    config.scheduler_cls = None
    made = type("KeepingScheduler", (KeepsRunning, config.get_scheduler_cls()), {})(**arguments)
    if why := why_not(made):
        log.warning("After a swap replies in flight are computed again: %s", why)
    return made


class KeepsRunning:
    """Mixed into vLLM's scheduler."""

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """True if no prefix of before can be found any more; replies in flight may go on."""
        if not reset_running_requests and _forget(self):
            return True
        vllm: Any = super()
        return bool(vllm.reset_prefix_cache(reset_running_requests, reset_connector))


def why_not(scheduler: Any) -> str:
    """Why this scheduler cannot keep replies in flight; empty if it can."""
    manager = getattr(scheduler, "kv_cache_manager", None)
    pool = getattr(manager, "block_pool", None)
    parts = ((scheduler, _SCHEDULER), (manager, _MANAGER), (pool, _POOL))
    missing = [name for owner, names in parts for name in names if not hasattr(owner, name)]
    if missing:
        return f"this vLLM has no {', '.join(missing)}"
    # others find blocks in other ways: partly filled ones, the last ones first
    kinds = [type(one).__name__ for one in manager.coordinator.single_type_managers]  # type: ignore[union-attr]
    if kinds != ["FullAttentionManager"]:
        return f"its caches are of {', '.join(kinds) or 'no'} kinds"
    if scheduler.connector is not None or scheduler.aux_output_connector is not None:
        return "its caches are also kept elsewhere"
    return ""


def _forget(scheduler: Any) -> bool:
    """Let no block be found, and seal every request; False, if vLLM has to reset in its own way."""
    if why_not(scheduler) or scheduler.pause_state.name != "PAUSED_ALL":
        return False
    requests = list(scheduler.requests.values())
    if not all(_can_be_sealed(request) for request in requests):
        return False
    for request in requests:
        _seal(request)
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    manager.evict_blocks({block.block_id for block in pool.blocks})
    if (
        len(pool.cached_block_hash_to_block)
        or pool.cached_block_hashes_by_block
        or any(block.block_hash is not None for block in pool.blocks)
    ):
        return False
    if manager.log_stats:
        manager.prefix_cache_stats.reset = True
    return True


def _can_be_sealed(request: Any) -> bool:
    """Whether nothing of it is being computed, and its keys are functions of its tokens alone."""
    return (
        all(hasattr(request, name) for name in _REQUEST)
        and request.num_in_flight_tokens == 0
        and not request.has_encoder_inputs
        and not request.resumable
    )


def _seal(request: Any) -> None:
    """Let the request share no block with another one, nor with its own past.

    Each hash continues the one before, so random ones make all later ones random; the salt does it
    for a request that has not filled its first block.
    """
    request.cache_salt = secrets.token_hex(_HASH_BYTES)
    request.block_hashes[:] = [secrets.token_bytes(_HASH_BYTES) for _ in request.block_hashes]
    request.skip_reading_prefix_cache = True
