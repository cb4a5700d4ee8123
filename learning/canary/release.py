"""Learning begins a canary in place of a promotion, once. Knows no statistics."""

from core import canary, registry
from core.errors import Conflict, Unprocessable
from core.records import Run
from core.redis_client import Redis


async def begin_once(
    redis: Redis,
    version: str,
    *,
    run: Run,
    share: float,
    why: str,
    fencing_token: int,
) -> str:
    """Give a share of users the version; says what came of it.

    A worker that takes over finds the canary of its run as it is. A version that had a canary, or
    was live, is left to people. Raises LeaseLost: another worker took over, nothing was begun.
    """
    last = (await canary.read(redis)).canary
    if last is not None and (last.run_id, last.candidate) == (run.id, version):
        return _remark(last)
    before = await registry.history(redis, version)
    if any(entry["action"] in ("promoted", "canary started") for entry in before):
        return f"{version} was given to users before, so it is left to people to promote"
    try:
        return _remark(
            await canary.start(
                redis,
                version,
                share=share,
                who="gate",
                why=why,
                expected=run.parent,
                run_id=run.id,
                fencing_token=fencing_token,
            )
        )
    except (Conflict, Unprocessable) as refusal:
        return refusal.message


def _remark(begun: canary.Canary) -> str:
    if begun.mode == "watch":
        return f"{begun.candidate} is live and watched: it goes back if users say worse of it"
    source = ", from a second engine" if begun.second_engine else ""
    return (
        f"a canary gives {begun.candidate} to {begun.share:.0%} of users{source}; "
        "what they say decides"
    )
