"""The last stages of a round: the gate's verdict, and the version that comes of it.

The verdict is written down before anything is published, so that a worker that takes over reaches
the same. A refused candidate becomes a version too: a person may promote it. Knows Redis and
folders; the decision itself is learning/gate/gate.py, publishing is learning/rounds/publish.py.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core import lineage, loop, registry
from core.errors import NotFound
from core.hyperparameters import LearningSettings
from core.records import Outcome, Run
from feedback import store
from learning.canary.release import begin_once
from learning.gate.comparisons import broken_share, by_score, length_ratio
from learning.gate.gate import Estimate, Verdict, attempt_number, judge
from learning.gate.limits import Evidence
from learning.gate.regressions import Regression
from learning.gate.toxicity import toxicity_rise
from learning.rounds.child import numbers, read_figures
from learning.rounds.folders import Folders
from learning.rounds.lease_keeper import Lease
from learning.rounds.observe import observe_over_optimised, observe_win_rate
from learning.rounds.publish import (
    compatibility,
    keep_anchor,
    promote_once,
    publish_candidate,
    reserve_version,
    reward_model_cards,
)
from learning.rounds.stage_inputs import FIRST, Sources, candidate_stage
from learning.rounds.trained_on import feedback_trained_on
from learning.rounds.votes import read_rows, read_votes
from learning.rounds.work import Result, Work
from learning.training.stage import write_json


async def judge_and_publish(work: Work, run: Run, sources: Sources, lease: Lease) -> Result:
    """Judge the candidate, register it, and promote it where that is wanted and it passed."""
    verdict = await _verdict_once(work, run)
    run = await _with_version(work, run, sources, lease)
    version = _version_of(run)
    trained = candidate_stage(work.folders, sources)
    model = trained / "out" / "model"
    trained_on = _trained_on(work.folders, sources, trained)
    fields = card_fields(work, run, sources, verdict, trained)
    fields["data"] |= lineage.card_data(trained_on)
    if (anchor := trained / "out" / "anchor").is_dir():
        fields["data"]["anchor_sha256"] = keep_anchor(
            work.folders, anchor, version=version, owner=lease.token
        )
    await publish_candidate(
        work.redis,
        work.keyring,
        work.folders,
        model=model,
        fields=fields,
        checksums=_evaluated(work.folders, run).get("engine_checksums", {}),
        lease=lease,
        trained_on=trained_on,
        kept_at=work.settings.policies_url,
    )
    await _mark_used(work, trained_on, version)
    outcome, remark = await _promote(work, version, run, verdict, lease)
    if verdict.win_rate is not None:
        observe_win_rate(version, run.parent, verdict.win_rate.value)
    if verdict.over_optimised:
        observe_over_optimised()
    return Result(
        "done",
        reason="; ".join([*verdict.reasons, *remark]),
        figures=_shown(verdict),
        outcome=outcome,
        run=run,
    )


def _trained_on(folders: Folders, sources: Sources, trained: Path) -> dict[str, str]:
    """By id the kind of what was learned from; fine-tuning reads demonstrations only."""
    read = feedback_trained_on(folders.out(sources.snapshot, "snapshot"))
    if trained.name == "sft":
        return {name: kind for name, kind in read.items() if kind == "demonstration"}
    return read


async def _mark_used(work: Work, trained_on: Iterable[str], version: str) -> None:
    """Note on every word that trained which version came of it; what was erased since is not."""
    for feedback_id in trained_on:
        with suppress(NotFound):
            await store.mark_used(work.redis, [feedback_id], version)


async def _promote(
    work: Work, version: str, run: Run, verdict: Verdict, lease: Lease
) -> tuple[Outcome, list[str]]:
    if not verdict.passed:
        return ("refused" if verdict.verdict == "fail" else "not_enough_data"), []
    if work.settings.promotion == "manual":
        return "passed", [f"`instructloop policies promote {version}` makes it live"]
    lease.check()
    why = f"the gate: {verdict.reasons[0]}"
    if share := work.settings.canary.share:
        return "passed", [
            await begin_once(
                work.redis, version, run=run, share=share, why=why, fencing_token=lease.token
            )
        ]
    obstacle = await promote_once(
        work.redis, version, parent=run.parent, why=why, fencing_token=lease.token
    )
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
        pretraining_loss_share=float(figures["pretraining_loss_share"]),
        length_ratio=length_ratio(rows),
        broken_share=broken_share(rows, "candidate"),
        votes_vs_anchor=read_votes(folders.stage(run_id, "vote"), against="anchor"),
        proxies_vs_anchor=by_score(rows, against="anchor"),
        regressions=[Regression(**found) for found in figures.get("regressions", ())],
        toxicity=toxicity_rise(rows),
    )


def _read_verdict(path: Path) -> Verdict:
    raw = json.loads(path.read_text())
    for name in ("win_rate", "win_rate_vs_anchor"):
        if raw.get(name) is not None:
            raw[name] = Estimate(**{**raw[name], "interval": tuple(raw[name]["interval"])})
    return Verdict(**{**raw, "reasons": tuple(raw["reasons"])})


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
    work: Work, run: Run, sources: Sources, verdict: Verdict, stage: Path
) -> dict[str, Any]:
    """Every field of the card but the hash of the weights; `stage` made the candidate."""
    learning = work.settings.learning
    trained = read_figures(stage)
    evaluated = _evaluated(work.folders, run)
    return {
        "version": _version_of(run),
        "parent": run.parent,
        "created_at": registry.timestamp(),
        "kind": _kind(stage, trained),
        "algorithm": _algorithm(learning, stage),
        "data": snapshot_data(work.folders, sources.snapshot) | {"run": run.id},
        "reward_model": _reward_model_name(work.folders, sources),
        "anchor": learning.anchor,
        "figures": _card_figures(run, verdict, trained, evaluated),
        "gate": {
            "passed": verdict.passed,
            "verdict": verdict.verdict,
            "reasons": list(verdict.reasons),
            "attempt": verdict.attempt,
            "alpha": verdict.alpha,
        },
        "compatible": compatibility(stage / "out" / "model")
        | {"engine_checksums": evaluated.get("engine_checksums", {})},
    }


def _kind(stage: Path, trained: Mapping[str, Any]) -> str:
    if stage.name == "sft":
        return "sft"
    return "ppo" if trained.get("ptx_coef") == 0 else "ppo-ptx"


def _algorithm(learning: LearningSettings, stage: Path) -> dict[str, Any]:
    """All hyper-parameters that the weights depend on."""
    used: dict[str, Any] = {
        "evaluation": learning.evaluation.model_dump(mode="json"),
        "gate": learning.gate.model_dump(mode="json"),
        "seed": learning.seed,
    }
    if stage.name == "sft":
        return used | {
            "sft": learning.sft.model_dump(mode="json"),
            "released_weights": "the epoch that the stage's judge liked best",
        }
    return used | {
        "reward_model": learning.reward_model.model_dump(mode="json"),
        "policy": learning.policy.model_dump(mode="json"),
        "released_weights": "between the last of the run and their averages: `checkpoint_back`",
    }


def snapshot_data(folders: Folders, snapshot_run: str) -> dict[str, Any]:
    """The card's `data`: which snapshot, and how much of what is in it."""
    manifest = json.loads((folders.out(snapshot_run, "snapshot") / "manifest.json").read_text())
    return {"snapshot": snapshot_run, "sha256": manifest["sha256"], **manifest["counts"]}


def _card_figures(
    run: Run, verdict: Verdict, trained: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> dict[str, Any]:
    win_rate, over_anchor = (
        None if estimate is None else dataclasses.asdict(estimate)
        for estimate in (verdict.win_rate, verdict.win_rate_vs_anchor)
    )
    return {
        "reward": trained.get("reward"),
        "kl_to_anchor": evaluated.get("kl_to_anchor"),
        "win_rate_vs_parent": win_rate,
        "win_rate_vs_sft": win_rate if run.parent == FIRST else over_anchor,
        "pretraining_loss_change": evaluated.get("pretraining_loss_change"),
        "length_change": evaluated.get("length_change"),
        "retention": verdict.retention,
        "over_optimised": verdict.over_optimised,
        "regressions": evaluated.get("regressions", []),
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
