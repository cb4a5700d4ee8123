"""The learner's engine without vLLM: what it samples, with which weights, and beside vLLM's."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from core.engine.client import Sample
from core.errors import CorruptVersion, NotFinite
from learning.policy.experience import row_logprobs
from learning.training.learner_engine import engine_kind, learner_engine
from learning.training.models import load_policy
from learning.training.packing import Group, pack
from learning.training.transformers_engine import (
    TransformersEngine,
    drawn,
    transformers_engine,
)
from tests.learning.policy_stage import POLICY, prepare, run, write_inputs
from tests.tiny_model import make_tiny_model

PROMPTS = [[5, 900, 41, 7], [33, 4000], [12, 13, 14, 15, 16, 17, 18], [44_000, 9, 300]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return transformers_engine(folder, max_num_seqs=5)


def sample(engine, prompts=PROMPTS, *, n=3, max_tokens=6, temperature=1.0, seed=11):
    return engine.generate(prompts, n=n, max_tokens=max_tokens, temperature=temperature, seed=seed)


def trainers_logprobs(folder: Path, prompt, answer, temperature: float) -> list[float]:
    (row,) = pack([Group(prompt=prompt, answers=[answer])], token_budget=99)
    logprobs, _ = row_logprobs(load_policy(folder), row, temperature=temperature or 1.0)
    return logprobs.tolist()


# --- what it samples ------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_log_probabilities_are_those_of_the_trainer(folder, engine, temperature: float) -> None:
    answers = sample(engine, n=2, temperature=temperature)
    for prompt, both in zip(PROMPTS, answers, strict=True):
        for answer in both:
            expected = trainers_logprobs(folder, prompt, answer.token_ids, temperature)
            assert answer.logprobs == pytest.approx(expected, abs=0.15)  # bf16


def test_greedy_answers_are_the_most_likely_tokens_one_by_one(folder, engine) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for prompt, (answer,) in zip(
        PROMPTS, sample(engine, n=1, temperature=0.0, max_tokens=4), strict=True
    ):
        ids = list(prompt)
        for token in answer.token_ids:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].float()
            assert float(logits.max() - logits[token]) < 0.1  # but for ties in bf16
            ids.append(token)
        assert (answer.finish_reason, len(answer.token_ids)) == ("length", 4)


def test_an_answer_follows_from_its_seed_whoever_shares_its_batch(folder, engine) -> None:
    together = sample(engine)
    apart = sample(transformers_engine(folder, max_num_seqs=2))
    ids = [[answer.token_ids for answer in answers] for answers in together]
    assert ids == [[answer.token_ids for answer in answers] for answers in apart]
    (alone,) = sample(engine, PROMPTS[1:2], seed=11 + 3)
    assert [answer.token_ids for answer in alone] == ids[1]
    assert len({tuple(answer) for answers in ids for answer in answers}) == 12
    assert ids != [[a.token_ids for a in answers] for answers in sample(engine, seed=12)]


def test_numbers_spread_evenly_draw_each_token_as_often_as_it_is_likely() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0, 0.9]])
    numbers = torch.arange(1000) / 1000
    for row in probabilities:
        tokens = drawn(row.log().expand(1000, 6), numbers)
        counts = torch.bincount(tokens[:, 0], minlength=6) / 1000
        assert torch.allclose(counts, row, atol=0.0011)
        assert int(counts[row == 0.0].sum()) == 0
    largest = torch.tensor([1.0 - 2.0**-24])
    assert drawn(probabilities[:1].log(), largest).tolist() == [[4]]


def test_an_answer_ends_with_its_end_token_and_counts_it(folder) -> None:
    engine = transformers_engine(folder, max_num_seqs=5)
    ((first,),) = sample(engine, PROMPTS[:1], n=1, temperature=0.0)
    engine = TransformersEngine(engine.model, frozenset({first.token_ids[2]}), 5)
    ((cut,),) = sample(engine, PROMPTS[:1], n=1, temperature=0.0)
    assert cut == Sample(first.token_ids[:3], first.logprobs[:3], "stop")


def test_what_a_folder_says_of_sampling_does_not_bend_the_distribution(
    folder, engine, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=True, top_p=0.1, repetition_penalty=3.0, min_new_tokens=5, eos_token_id=[2, 7]
    )
    model.save_pretrained(tmp_path / "opinionated")
    opinionated = transformers_engine(tmp_path / "opinionated", max_num_seqs=5)
    assert opinionated.end_tokens == {2, 7}
    assert sample(opinionated) == sample(engine)


# --- its weights ----------------------------------------------------------------------------


def test_it_answers_with_the_weights_that_were_loaded_last(folder, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=5)
    engine = transformers_engine(folder, max_num_seqs=5)
    first = sample(engine, temperature=0.0, n=1)
    engine.load_folder(other, version="other")
    second = sample(engine, temperature=0.0, n=1)
    assert second == sample(transformers_engine(other, max_num_seqs=5), temperature=0.0, n=1)
    assert second != first
    engine.load_model(load_policy(folder), version="again")
    assert sample(engine, temperature=0.0, n=1) == first


def test_weights_that_do_not_fit_or_are_no_numbers_are_refused_and_the_old_ones_stay(
    folder, tmp_path: Path
) -> None:
    engine = transformers_engine(folder, max_num_seqs=5)
    before = sample(engine)
    tensors = load_file(folder / "model.safetensors")
    name = "model.norm.weight"
    for number, (wrong, said) in enumerate(
        [
            ({name: tensors[name][:-1]}, "shape"),
            ({name: torch.full_like(tensors[name], torch.nan)}, "finite"),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        save_file(tensors | wrong, tmp_path / str(number) / "model.safetensors")
        with pytest.raises(CorruptVersion, match=said):
            engine.load_folder(tmp_path / str(number), version="wrong")
    assert sample(engine) == before


def test_a_model_that_computes_nan_is_named(folder) -> None:
    engine = transformers_engine(folder, max_num_seqs=5)
    with torch.no_grad():
        engine.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NotFinite):
        sample(engine)


# --- which engine, and the other one --------------------------------------------------------


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
    answers = sample(engine, prompts, n=1, temperature=0.0, max_tokens=tokens)
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
        theirs = sample(vllm, prompts, n=1, temperature=0.0, max_tokens=4)
    ours = sample(engine, prompts, n=1, temperature=0.0, max_tokens=4)
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
