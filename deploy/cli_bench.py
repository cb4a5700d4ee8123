"""`instructloop bench`: the figures of the README, measured on this machine."""

import json
import signal
import sys
from collections.abc import Iterable
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console

from deploy.options import RedisUrl, StateDir, settings_from

app = typer.Typer(help="Figures, measured on this machine.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep the figures sub-commands, however many there are."""


class _Report(Protocol):
    """What a benchmark gives back."""

    def document(self) -> Any:
        """For programs, as JSON."""

    def tables(self) -> Any:
        """For people."""


def _show(report: _Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.document()))
    else:
        Console().print(report.tables())


def _say(line: str) -> None:
    print(f"instructloop: {line}", file=sys.stderr, flush=True)


def _named(only: list[str] | None, targets: Iterable[str], *, peers: bool) -> tuple[str, ...]:
    """What to measure: what was named, else everything."""
    return tuple(name for name in only or targets if peers or name != "trl")


def _leave_nothing_behind() -> None:
    """A bench that is told to stop ends what it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


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

    _leave_nothing_behind()
    report = bench_gateway(
        Wanted(seconds, rounds, REQUESTS if memory else 0, engine, peers),
        settings=settings_from(state_dir, None),
        redis_url=redis_url,
        say=_say,
    )
    _show(report, as_json=as_json)


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

    _leave_nothing_behind()
    report = bench_swap(
        settings_from(state_dir, None),
        swaps=swaps,
        streams=tuple(streams or STREAMS),
        say=_say,
    )
    if as_json:
        print(json.dumps(report.document()))
    else:
        Console().print(report.table())
    if not report.is_sound:
        raise typer.Exit(1)


@app.command()
def feedback(
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Everything is measured so often.")] = 3,
    count: Annotated[
        int, typer.Option(min=0, help="Pieces acknowledged while processes are killed.")
    ] = 100_000,
    completions: Annotated[
        int, typer.Option(min=0, help="To log for the bytes of one (5,000 or more; 0: not).")
    ] = 100_000,
    pii: Annotated[bool, typer.Option(help="The PII filter's recall and speed, too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Measure how much feedback a gateway takes, how fast, and that it keeps all of it.

    Redis is killed with -9 three times and the gateway twice while clients insist on every word.
    Exits with 1 if anything that was acknowledged is lost, doubled or wrong.

    Example: instructloop bench feedback --seconds 1 --count 10000 --completions 10000 --json
    """
    from deploy.bench.feedback import Wanted, bench_feedback

    _leave_nothing_behind()
    report = bench_feedback(
        Wanted(seconds, rounds, count, completions=completions, pii=pii),
        settings=settings_from(state_dir, None),
        say=_say,
    )
    _show(report, as_json=as_json)
    if not report.is_sound:
        raise typer.Exit(1)


@app.command("reward-model")
def reward_model(
    rounds: Annotated[int, typer.Option(min=1, help="Everything is measured so often.")] = 3,
    accuracy: Annotated[
        bool, typer.Option(help="Also what ours and TRL's have learned after an epoch.")
    ] = True,
    speed: Annotated[bool, typer.Option(help="Also comparisons per second.")] = True,
    only: Annotated[
        list[str] | None, typer.Option(help="ours, half, unpacked, two or trl; may come again.")
    ] = None,
    peers: Annotated[bool, typer.Option(help="TRL beside us, if installed.")] = True,
    step_prompts: Annotated[
        int, typer.Option(min=2, max=64, help="Of an optimiser step; the paper's is 64.")
    ] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="One round, without accuracy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Measure reward-model training: comparisons/s beside TRL's, and share of what is possible.

    `deploy/install.sh peers-training` installs TRL in an environment of its own.

    Example: instructloop bench reward-model --rounds 5 --only ours --only trl --json
    """
    from deploy.bench.reward_model import TARGETS, Wanted, bench_reward_model

    _leave_nothing_behind()
    report = bench_reward_model(
        Wanted(
            1 if quick else rounds,
            accuracy=accuracy and not quick,
            speed=speed,
            only=_named(only, TARGETS, peers=peers),
            step_prompts=step_prompts,
        ),
        settings=settings_from(state_dir, None),
        say=_say,
    )
    _show(report, as_json=as_json)


@app.command()
def policy(
    rounds: Annotated[int, typer.Option(min=1, help="Everything is measured so often.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="ours or trl; by default both.")] = None,
    peers: Annotated[bool, typer.Option(help="TRL beside us, if installed.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="One round.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Measure updates of the policy with given answers: episodes/s beside TRL's PPO, cost of ptx.

    `deploy/install.sh peers-training` installs TRL in an environment of its own.

    Example: instructloop bench policy --rounds 5 --json
    """
    from deploy.bench.policy import TARGETS, Wanted, bench_policy

    _leave_nothing_behind()
    report = bench_policy(
        Wanted(1 if quick else rounds, only=_named(only, TARGETS, peers=peers)),
        settings=settings_from(state_dir, None),
        say=_say,
    )
    _show(report, as_json=as_json)
