"""`instructloop bench`: the figures of the README, measured on this machine."""

import json
import signal
import sys
from typing import Annotated

import typer
from rich.console import Console

from deploy.options import RedisUrl, StateDir, settings_from

app = typer.Typer(help="Figures, measured on this machine.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep `bench gateway` a sub-command though it is alone."""


@app.command()
def gateway(
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Everything is measured so often.")] = 3,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also how memory grows (some minutes).")
    ] = False,
    engine: Annotated[
        bool, typer.Option("--engine", help="Also tokens/s of vLLM through the gateway.")
    ] = False,
    peers: Annotated[bool, typer.Option(help="LiteLLM beside us, if installed.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Measure what the gateway adds to an engine, beside other gateways.

    A Redis that is given has to be empty; by default a new one is started.

    Example: instructloop bench gateway --seconds 2 --rounds 5 --json
    """
    from deploy.bench.gateway import Wanted, bench_gateway
    from deploy.bench.memory import REQUESTS

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing of ours is left
    report = bench_gateway(
        Wanted(seconds, rounds, REQUESTS if memory else 0, engine, peers),
        settings=settings_from(state_dir, None),
        redis_url=redis_url,
        say=lambda line: print(f"instructloop: {line}", file=sys.stderr, flush=True),
    )
    if as_json:
        print(json.dumps(report.document()))
    else:
        Console().print(report.tables())


@app.command()
def swap(
    swaps: Annotated[int, typer.Option(min=1, help="For each load and each way.")] = 50,
    streams: Annotated[list[int] | None, typer.Option(min=1, help="Default: 8 and 32.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Measure hot swaps of a real engine under streams: pause, longest gap, whose each token is.

    Exits with 1 if a reply failed or a token was another version's than its reply says.

    Example: instructloop bench swap --swaps 10 --streams 8 --json
    """
    from deploy.bench.swap import STREAMS, bench_swap

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing of ours is left
    report = bench_swap(
        settings_from(state_dir, None),
        swaps=swaps,
        streams=tuple(streams or STREAMS),
        say=lambda line: print(f"instructloop: {line}", file=sys.stderr, flush=True),
    )
    if as_json:
        print(json.dumps(report.document()))
    else:
        Console().print(report.table())
    if not report.is_sound:
        raise typer.Exit(1)
