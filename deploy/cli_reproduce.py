"""`instructloop reproduce`: the paper in miniature, without a service."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.options import settings_from

Size = Literal["quick", "short", "full"]


def reproduce(
    out: Annotated[Path, typer.Option(help="Folder of all steps and the report.")] = Path(
        "reproduction"
    ),
    seeds: Annotated[int, typer.Option(min=1, max=20, help="So many seeds, from 0.")] = 3,
    judge: Annotated[str, typer.Option(help="Main taste: NAME or FILE.py:FUNCTION.")] = "sentiment",
    size: Annotated[Size, typer.Option(help="How much of everything.")] = "full",
    quick: Annotated[bool, typer.Option("--quick", help="One seed of size quick.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would run.")] = False,
    model: Annotated[
        str | None, typer.Option(help="A Hugging Face id, a folder, or smollm2.")
    ] = None,
    lm_eval: Annotated[
        list[str] | None, typer.Option(help="A task of lm-eval, data at hand; repeatable.")
    ] = None,
    lm_eval_limit: Annotated[int, typer.Option(min=1, help="Items of each of those.")] = 100,
) -> None:
    """Compare base, prompted, SFT, FLAN-style, PPO and PPO-ptx as the paper does, and report.

    The same command goes on where an earlier one was stopped or killed.

    Example: instructloop reproduce --quick --out reproduction
    """
    from deploy.reproduce.plan import Wanted
    from deploy.reproduce.run import print_plan
    from deploy.reproduce.run import reproduce as run

    wanted = Wanted(
        size="quick" if quick else size,
        judge=judge,
        seeds=(0,) if quick else tuple(range(seeds)),
        lm_eval=tuple(lm_eval or ()),
        lm_eval_limit=lm_eval_limit,
    )
    if plan:
        print_plan(wanted, out=out, say=print)
        return
    settings = settings_from(out.resolve(), None, model=model)
    path = run(wanted, settings, out=out, say=_say)
    print(path.read_text(encoding="utf-8"))


def _say(line: str) -> None:
    print(f"instructloop: {line}", flush=True)
