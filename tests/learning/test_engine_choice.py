"""Which engine a learner gets, and that both give the same answers."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from learning.training.learner_engine import engine_kind, learner_engine
from learning.training.transformers_engine import TransformersEngine, transformers_engine
from tests.learning.policy_stage import POLICY, prepare, run, write_inputs
from tests.tiny_model import make_tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def greedy(engine, prompts, tokens: int):
    return engine.generate(prompts, n=1, max_tokens=tokens, temperature=0.0, seed=0)


def test_without_vllm_transformers_answers_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [engine_kind(asked) for asked in ("auto", "vllm", "transformers")] == [
        "vllm", "vllm", "transformers",
    ]  # fmt: skip
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert engine_kind("auto") == "transformers"


@torch.no_grad()
def clear_prompts(folder: Path, engine: TransformersEngine, *, tokens: int) -> list[list[int]]:
    """Prompts to which the most likely answer is clear at every token, further than bf16 rounds."""
    draw = torch.Generator().manual_seed(3)
    prompts = torch.randint(100, 49_000, (150, 5), generator=draw).tolist()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = greedy(engine, prompts, tokens)
    ids = torch.tensor([p + a.token_ids for p, (a,) in zip(prompts, answers, strict=True)])
    best = model(ids[:, :-1]).logits[:, 4:].topk(2, dim=-1)  # (prompts, tokens, 2)
    clear = (best.indices[..., 0] == ids[:, 5:]) & (best.values[..., 0] - best.values[..., 1] > 0.3)
    return [prompts[number] for number in clear.all(dim=1).nonzero().flatten().tolist()]


@pytest.mark.slow
def test_vllm_and_transformers_give_the_same_greedy_answers(folder, tmp_path: Path) -> None:
    engine = transformers_engine(folder, max_num_seqs=32)
    prompts = clear_prompts(folder, engine, tokens=4)
    assert len(prompts) > 4
    asked = {"kind": "vllm", "socket": str(tmp_path / "e.sock"), "max_num_seqs": 5}
    with learner_engine(
        folder, asked, log=tmp_path / "log", fallback=tmp_path / "weights", idle_priority=False
    ) as vllm:
        vllm.wait()
        theirs = greedy(vllm, prompts, 4)
    ours = greedy(engine, prompts, 4)
    for (one,), (other,) in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        assert one.logprobs == pytest.approx(other.logprobs, abs=0.15)  # bf16


@pytest.mark.slow
def test_a_policy_stage_runs_through_without_vllm(tmp_path: Path) -> None:
    settings = POLICY.model_copy(update={"iterations": 2})
    stage = prepare(tmp_path / "s", write_inputs(tmp_path / "in"), settings)
    told = json.loads((stage / "stage.json").read_text())
    told["engine"]["kind"] = "transformers"
    (stage / "stage.json").write_text(json.dumps(told))
    figures = run("learning.policy.train", stage)
    assert not (stage / "engine.log").exists()
    assert len(figures["iterations"]) == 2
    assert max(part["engine_kl"] for part in figures["iterations"]) < 0.05
    assert figures["iterations"][1]["kl_k3_per_token"] > 0.0  # it answered with the new weights
    assert figures["changed_share"] > 0.0
