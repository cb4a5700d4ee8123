"""Which stages make a run: in order, complete, without a gap. Pure; knows no Redis and no files."""

from collections.abc import Collection

from core.errors import Unprocessable
from core.records import ALL_STAGES, SFT_STAGES, STAGES


def complete_stages(wanted: Collection[str]) -> tuple[str, ...]:
    """The stages of a run in their order, with those that others cannot do without.

    Supervised fine-tuning always ends at the gate. Raises Unprocessable for none, an unknown one,
    a gap between them, or two ways to learn in one run.
    """
    if unknown := sorted(set(wanted) - set(ALL_STAGES)):
        raise Unprocessable(
            f"no stage {unknown[0]!r}: there are {', '.join(ALL_STAGES)}", param="stages"
        )
    needed = set(wanted)
    if "sft" in needed:
        if needed & {"reward_model", "policy"}:
            raise Unprocessable(
                "a run learns from demonstrations (sft) or from comparisons "
                "(reward_model, policy), not from both",
                param="stages",
            )
        return SFT_STAGES
    if "reward_model" in needed:
        needed.add("snapshot")
    if needed & {"vote", "gate"}:
        needed |= {"evaluate", "vote", "gate"}
    chosen = tuple(stage for stage in STAGES if stage in needed)
    if not chosen:
        raise Unprocessable("name at least one stage", param="stages")
    first = STAGES.index(chosen[0])
    if chosen != STAGES[first : first + len(chosen)]:
        raise Unprocessable(f"a run has no gaps: {', '.join(chosen)}", param="stages")
    return chosen
