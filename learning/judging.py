"""The last stages of a round: the gate's verdict, and the version that comes of it.

The verdict is written down before anything is published, so that a worker that takes over reaches
the same. A refused candidate becomes a version too: a person may promote it. Knows Redis and
folders; the decision itself is learning/gate.py, publishing is learning/publish.py.
"""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from core import loop, registry
from core.errors import NotFound
from core.records import Outcome, Run
from feedback import store
from learning.child import numbers, read_figures
from learning.comparisons import broken_share, by_score, length_ratio
from learning.folders import Folders
from learning.gate import Estimate, Evidence, Verdict, attempt_number, judge
from learning.lease_keeper import Lease
from learning.observe import observe_win_rate
from learning.publish import (
    compatibility,
    promote_once,
    publish_candidate,
    reserve_version,
    reward_model_cards,
)
from learning.stage import write_json
from learning.stage_inputs import ANCHOR, Sources
from learning.votes import read_rows, read_votes
from learning.work import Result, Work


async def judge_and_publish(work: Work, run: Run, sources: Sources, lease: Lease) -> Result:
    """Judge the candidate, register it, and promote it where that is wanted and it passed."""
    verdict = await _verdict_once(work, run)
    run = await _with_version(work, run, sources, lease)
    version = _version_of(run)
    model = work.folders.out(sources.policy or run.id, "policy") / "model"
    fields = card_fields(work, run, sources, verdict, model)
    await publish_candidate(
        work.redis,
        work.keyring,
        work.folders,
        model=model,
        fields=fields,
        checksums=_evaluated(work.folders, run).get("engine_checksums", {}),
        lease=lease,
    )
    await _mark_used(work, sources, version)
    outcome, remark = await _promote(work, version, run.parent, verdict, lease)
    if verdict.win_rate is not None:
        observe_win_rate(version, run.parent, verdict.win_rate.value)
    return Result(
        "done",
        reason="; ".join([*verdict.reasons, *remark]),
        figures=_shown(verdict),
        outcome=outcome,
        run=run,
    )


async def _mark_used(work: Work, sources: Sources, version: str) -> None:
    """Note on every word that trained which version came of it; what was erased since is not."""
    snapshot = work.folders.out(sources.snapshot, "snapshot")
    for feedback_id in feedback_trained_on(snapshot):
        with suppress(NotFound):
            await store.mark_used(work.redis, [feedback_id], version)


def feedback_trained_on(snapshot: Path) -> list[str]:
    """Ids of the feedback in a snapshot that training reads: train split, not held-out raters'."""
    columns = ["feedback_id", "split", "heldout_rater"]
    rows = [
        row
        for name in ("rankings", "ratings", "demonstrations")
        for row in parquet.read_table(snapshot / f"{name}.parquet", columns=columns).to_pylist()
    ]
    return sorted(
        {row["feedback_id"] for row in rows if row["split"] == "train" and not row["heldout_rater"]}
    )


async def _promote(
    work: Work, version: str, parent: str, verdict: Verdict, lease: Lease
) -> tuple[Outcome, list[str]]:
    if not verdict.passed:
        return ("refused" if verdict.verdict == "fail" else "not_enough_data"), []
    if work.settings.promotion == "manual":
        return "passed", [f"`instructloop policies promote {version}` makes it live"]
    lease.check()
    why = f"the gate: {verdict.reasons[0]}"
    obstacle = await promote_once(work.redis, version, parent=parent, why=why)
    return ("promoted", []) if obstacle is None else ("passed", [obstacle])


async def _verdict_once(work: Work, run: Run) -> Verdict:
    path = work.folders.stage(run.id, "gate") / "verdict.json"
    if not path.exists():
        attempt = attempt_number(await loop.list_runs(work.redis, 0), run)
        verdict = judge(
            read_evidence(work.folders, run.id),
            settings=work.settings.learning.gate,
            attempt=attempt,
            seed=work.settings.learning.seed,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dataclasses.asdict(verdict))
    return _read_verdict(path)


def read_evidence(folders: Folders, run_id: str) -> Evidence:
    """What the stages before the gate found out."""
    rows = read_rows(folders.out(run_id, "evaluate") / "answers.jsonl")
    figures = read_figures(folders.stage(run_id, "evaluate"))
    return Evidence(
        votes=read_votes(folders.stage(run_id, "vote")),
        proxies=by_score(rows),
        kl_per_token=float(figures["kl_per_token"]),
        pretraining_loss_change=float(figures["pretraining_loss_change"]),
        length_ratio=length_ratio(rows),
        broken_share=broken_share(rows, "candidate"),
    )


def _read_verdict(path: Path) -> Verdict:
    raw = json.loads(path.read_text())
    estimate = raw["win_rate"]
    if estimate is not None:
        estimate = Estimate(**{**estimate, "interval": tuple(estimate["interval"])})
    return Verdict(**{**raw, "reasons": tuple(raw["reasons"]), "win_rate": estimate})


async def _with_version(work: Work, run: Run, sources: Sources, lease: Lease) -> Run:
    """The run with its version's number, reserved once and written down before it is used.

    A candidate that an earlier run registered keeps the version it has.
    """
    if run.version is not None:
        return run
    version: str | None = None
    if sources.policy not in (None, run.id):
        version = (await loop.get_run(work.redis, str(sources.policy))).version
    version = version or await reserve_version(work.redis, work.folders)
    run = run.model_copy(update={"version": version})
    await loop.save_run(work.redis, run, fencing_token=lease.token)
    return run


def _version_of(run: Run) -> str:
    assert run.version is not None, "_with_version comes first"
    return run.version


# --- the card -------------------------------------------------------------------------------


def card_fields(
    work: Work, run: Run, sources: Sources, verdict: Verdict, model: Path
) -> dict[str, Any]:
    """Every field of the card but the hash of the weights."""
    learning = work.settings.learning
    trained = read_figures(work.folders.stage(sources.policy or run.id, "policy"))
    evaluated = _evaluated(work.folders, run)
    return {
        "version": _version_of(run),
        "parent": run.parent,
        "created_at": registry.timestamp(),
        "kind": "ppo" if trained.get("ptx_coef") == 0 else "ppo-ptx",
        "algorithm": {
            "reward_model": learning.reward_model.model_dump(mode="json"),
            "policy": learning.policy.model_dump(mode="json"),
            "evaluation": learning.evaluation.model_dump(mode="json"),
            "gate": learning.gate.model_dump(mode="json"),
            "seed": learning.seed,
            "released_weights": "exponential moving average of the training run",
        },
        "data": snapshot_data(work.folders, sources.snapshot) | {"run": run.id},
        "reward_model": _reward_model_name(work.folders, sources),
        "anchor": ANCHOR,
        "figures": _card_figures(run, verdict, trained, evaluated),
        "gate": {
            "passed": verdict.passed,
            "verdict": verdict.verdict,
            "reasons": list(verdict.reasons),
            "attempt": verdict.attempt,
            "alpha": verdict.alpha,
        },
        "compatible": compatibility(model)
        | {"engine_checksums": evaluated.get("engine_checksums", {})},
    }


def snapshot_data(folders: Folders, snapshot_run: str) -> dict[str, Any]:
    """The card's `data`: which snapshot, and how much of what is in it."""
    manifest = json.loads((folders.out(snapshot_run, "snapshot") / "manifest.json").read_text())
    return {"snapshot": snapshot_run, "sha256": manifest["sha256"], **manifest["counts"]}


def _card_figures(
    run: Run, verdict: Verdict, trained: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> dict[str, Any]:
    win_rate = None if verdict.win_rate is None else dataclasses.asdict(verdict.win_rate)
    return {
        "reward": trained.get("reward"),
        "kl_to_anchor": evaluated.get("kl_to_anchor"),
        "win_rate_vs_parent": win_rate,
        "win_rate_vs_sft": win_rate if run.parent == ANCHOR else None,
        "pretraining_loss_change": evaluated.get("pretraining_loss_change"),
        "length_change": evaluated.get("length_change"),
        "regressions": [],
        "training": numbers(trained),
        "evaluation": numbers(
            {name: v for name, v in evaluated.items() if name != "engine_checksums"}
        ),
    }


def _reward_model_name(folders: Folders, sources: Sources) -> str | None:
    kept = (card for card in reward_model_cards(folders) if card.run == sources.reward_model)
    return next((card.version for card in kept), None)


def _evaluated(folders: Folders, run: Run) -> dict[str, Any]:
    return read_figures(folders.stage(run.id, "evaluate"))


def _shown(verdict: Verdict) -> dict[str, float]:
    """What the run's record keeps of the verdict."""
    shown = {"attempt": float(verdict.attempt), "alpha": verdict.alpha}
    if verdict.win_rate is not None:
        low, high = verdict.win_rate.interval
        shown |= {"win_rate": verdict.win_rate.value, "win_rate_low": low, "win_rate_high": high}
    return shown
