"""The console script `instructloop`: options in, one function call, one line on failure.

Exit codes: 0 success, 1 failure with one line on stderr that says what to do, 2 bad usage.
Each sub-command imports what it needs when it runs, so that `--help` is quick.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from core import logs
from core.errors import InstructLoopError
from core.settings import PREFIX
from deploy import (
    cli_audit,
    cli_backup,
    cli_bench,
    cli_keys,
    cli_labeling,
    cli_loop,
    cli_migrate,
    cli_policies,
    cli_reproduce,
)
from deploy.options import RedisUrl, StateDir, override, read_admin_key, settings_from

app = typer.Typer(
    name="instructloop",
    help="InstructGPT as a living service: it serves a policy, takes feedback, and learns from it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_labeling.app, name="labeling")
app.add_typer(cli_labeling.feedback_app, name="feedback")
app.add_typer(cli_loop.app, name="loop")
app.add_typer(cli_policies.app, name="policies")
app.command("audit")(cli_audit.audit)
app.command("backup")(cli_backup.backup)
app.command("restore")(cli_backup.restore)
app.command("migrate")(cli_migrate.migrate)
app.command("reproduce")(cli_reproduce.reproduce)

What = Literal["comparisons", "ratings", "demonstrations", "prompts"]
Form = Literal["trl", "argilla", "parquet", "jsonl"]
Origin = Literal["trl", "open-webui", "langfuse"]


def main() -> None:
    """Run a sub-command; an error of ours ends as one line on stderr and exit code 1."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level="INFO")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    try:
        app()
    except InstructLoopError as error:
        if logs.is_json():
            print(logs.line(logging.CRITICAL, error.message), file=sys.stderr)
        else:
            print(f"instructloop: {error.message}", file=sys.stderr)
        sys.exit(1)


@app.command()
def up(
    model: Annotated[
        str | None, typer.Option(help="A Hugging Face id, a folder, or smollm2.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
    engines: Annotated[int | None, typer.Option(min=1, help="Engines of our own.")] = None,
    no_learning: Annotated[bool, typer.Option("--no-learning", help="Start no rounds.")] = False,
    engine_url: Annotated[
        list[str] | None, typer.Option(help="A server that runs; repeatable. Nothing is swapped.")
    ] = None,
) -> None:
    """Run the whole service here, in the foreground.

    Example: instructloop up --port 8010 --state-dir /var/lib/instructloop
    """
    from deploy.up import up as run

    override("GATEWAY__PORT", port)
    override("GATEWAY__HOST", host)
    override("ENGINE__COUNT", engines)
    if engine_url:
        override("ENGINE__URLS", json.dumps(engine_url))
    settings = settings_from(state_dir, redis_url, model=model)
    run(settings, learning=not no_learning, say=_say)


@app.command()
def init(
    model: Annotated[
        str | None, typer.Option(help="A Hugging Face id, a folder, or smollm2.")
    ] = None,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make the first policy and the admin key, before the processes below start one by one.

    Once is enough, again does no harm; `up` needs none of it.

    Example: instructloop init --redis-url redis://redis:6379/0 --model smollm2
    """
    from deploy.init import init as run

    run(settings_from(state_dir, redis_url, model=model), say=_say)


@app.command()
def gateway(
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    engine_url: Annotated[
        list[str] | None, typer.Option(help="A fixed engine; repeatable.")
    ] = None,
) -> None:
    """Run one gateway process.

    Example: instructloop gateway --host 0.0.0.0 --engine-url http://engine:8001
    """
    from serving.server import serve

    override("GATEWAY__PORT", port)
    override("GATEWAY__HOST", host)
    if engine_url:
        override("ENGINE__URLS", json.dumps(engine_url))
    serve(settings_from(state_dir, redis_url))


@app.command()
def engine(
    number: Annotated[int, typer.Option(min=0, help="Which engine of this machine.")] = 0,
    canary: Annotated[bool, typer.Option("--canary", help="A canary's own; `up` runs it.")] = False,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; default: a Unix socket.")] = None,
    advertise: Annotated[str | None, typer.Option(help="The URL for gateways elsewhere.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the replica; default: engine-N.")] = None,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run one vLLM engine and the agent that keeps it on the live policy.

    Example: instructloop engine --listen 0.0.0.0:8100 --name engine-a
    """
    from core.canary import SECOND_ENGINE
    from serving.agent import run_agent
    from serving.agent_start import replica_name

    override("ENGINE__LISTEN", listen)
    override("ENGINE__ADVERTISE", advertise)
    override("ENGINE__NAME", name)
    settings = settings_from(state_dir, redis_url)
    run_agent(settings, name=SECOND_ENGINE if canary else replica_name(settings, number=number))


@app.command()
def worker(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Run one learning worker (Celery): ingest, reward model, PPO-ptx, gate.

    Example: instructloop worker
    """
    from learning.worker.tasks import run_worker

    run_worker(settings_from(state_dir, redis_url))


@app.command()
def beat(state_dir: StateDir = None, redis_url: RedisUrl = None) -> None:
    """Run the clock of the loop (Celery beat). A second one does no harm.

    Example: instructloop beat
    """
    from learning.worker.tasks import run_beat

    run_beat(settings_from(state_dir, redis_url))


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Say what serves, what was said, and what was learned.

    Example: instructloop status --json
    """
    from deploy.status import show_status

    show_status(settings_from(state_dir, redis_url), as_json=as_json)


@app.command()
def train(
    stage: Annotated[str, typer.Option(help="sft, reward-model, policy, evaluate or all.")] = "all",
    wait: Annotated[bool, typer.Option("--wait", help="Until the round is over.")] = False,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Start a round of learning now. Without a live worker it runs here.

    Example: instructloop train --wait
    """
    cli_loop.train(settings_from(state_dir, redis_url), stage=stage, wait=wait)


@app.command()
def erase(
    user: Annotated[str, typer.Option(help="The name given as `user` in requests.")],
    tenant: Annotated[str, typer.Option(help="Whose end user.")] = "default",
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the end.")] = 120.0,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Erase everything of one end user; prints the receipt. Without a live worker it is done here.

    Example: instructloop erase --user ann@example.org
    """
    from deploy import cli_data

    settings = settings_from(state_dir, redis_url)
    cli_data.erase(settings, user=user, tenant=tenant, wait_seconds=wait)


@app.command()
def export(
    what: Annotated[What, typer.Option(help="What to export.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    form: Annotated[Form, typer.Option("--format", help="Who reads it.")] = "jsonl",
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's; default: all.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Write what people said to a file, as TRL, Argilla or `datasets` read it.

    Example: instructloop export --what comparisons --format trl --out comparisons.jsonl
    """
    from deploy import cli_data

    settings = settings_from(state_dir, redis_url)
    cli_data.export(settings, what=what, form=form, out=out, tenant=tenant, force=force)


@app.command("import")
def import_(
    what: Annotated[What, typer.Option(help="What the file holds.")],
    path: Annotated[Path, typer.Option("--in", help="JSONL, Parquet, or a JSON list.")],
    origin: Annotated[Origin, typer.Option("--from", help="Whose form it has.")] = "trl",
    tenant: Annotated[str, typer.Option(help="Whose data it becomes.")] = "default",
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Take data in, in the forms of TRL and Argilla or from an export. Twice is the same as once.

    From Open WebUI its feedback export; from Langfuse scores with their traces, also as CSV.

    Bad lines are told by number and the rest goes in; then the exit code is 1.

    Example: instructloop import --what comparisons --in comparisons.jsonl
    """
    from deploy import cli_data

    settings = settings_from(state_dir, redis_url)
    cli_data.import_(settings, what=what, path=path, tenant=tenant, origin=origin)


@app.command()
def simulate(
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts; default: ours.")] = None,
    judge: Annotated[str, typer.Option(help="NAME or FILE.py:FUNCTION.")] = "sentiment",
    raters: Annotated[int, typer.Option(min=1)] = 6,
    heldout_raters: Annotated[int, typer.Option(min=0)] = 0,
    answers: Annotated[int, typer.Option(min=2, max=9, help="K answers a prompt.")] = 4,
    noise: Annotated[float, typer.Option(min=0.0, help="Of the raters, in sd of scores.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many prompts.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 40,
    concurrency: Annotated[int, typer.Option(min=1, max=256)] = 4,
    url: Annotated[str, typer.Option(envvar=PREFIX + "URL")] = "http://127.0.0.1:8000",
    api_key: Annotated[str | None, typer.Option(envvar=PREFIX + "API_KEY")] = None,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Let raters with a known taste use the service through its public API.

    Example: instructloop simulate --judge sentiment --raters 6 --limit 100
    """
    from deploy.simulate import run as simulation

    settings = settings_from(state_dir, redis_url)
    simulation.main(
        judge=judge,
        raters=raters,
        heldout_raters=heldout_raters,
        prompts=prompts,
        base_url=url,
        api_key=api_key or read_admin_key(settings),
        answers=answers,
        seed=seed,
        noise=noise,
        max_tokens=max_tokens,
        concurrency=concurrency,
        limit=limit,
    )


@app.command()
def demo(
    judge: Annotated[str, typer.Option(help="NAME or FILE.py:FUNCTION.")] = "sentiment",
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    state_dir: StateDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Turn the whole loop once on this machine, in under 20 minutes, and report.

    Example: instructloop demo --judge brevity --seed 1 --out report
    """
    from deploy.demo.run import run_demo

    run_demo(
        judge=judge,
        seed=seed,
        out=out,
        port=port,
        state_dir=state_dir,
        redis_url=redis_url,
        say=_say,
    )


def _say(line: str) -> None:
    print(f"instructloop: {line}", flush=True)
