"""The learner's engine without vLLM: what it samples, how it goes about it, its weights."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
)

from core.engine.client import Sample
from core.errors import CorruptVersion, NotFinite
from learning.policy.experience import row_logprobs
from learning.training import transformers_engine as transformers_engine_module
from learning.training.models import load_policy
from learning.training.packing import Group, pack
from learning.training.transformers_engine import TransformersEngine, transformers_engine
from tests.tiny_model import make_tiny_model

PROMPTS = [[5, 900, 41, 7], [33, 4000], [12, 13, 14, 15, 16, 17, 18], [44_000, 9, 300]]


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> Iterator[None]:
    """The library collects garbage after each call, and all that tests have imported is old."""
    gc.freeze()
    yield
    gc.unfreeze()


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


def test_a_call_takes_any_number_of_answers_to_prompts_of_any_length(folder, monkeypatch) -> None:
    """More answers than fit at a time, a prompt of one token, and one that is read in parts."""
    engine = transformers_engine(folder, max_num_seqs=3)
    prompts = [[77], list(range(500, 541)), [5, 6]]
    expected = [sample(engine, [p], n=4, seed=11 + 4 * i)[0] for i, p in enumerate(prompts)]
    monkeypatch.setattr(transformers_engine_module, "_STEP_TOKENS", 16)
    found = sample(engine, prompts, n=4)
    assert [[len(a.token_ids) for a in answers] for answers in found] == [[6] * 4] * 3
    for together, alone in zip(found, expected, strict=True):
        for one, other in zip(together, alone, strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=0.15)  # bf16
    assert sample(engine, []) == []


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


# --- how it goes about it --------------------------------------------------------------------


def test_a_model_with_windowed_layers_answers_by_the_librarys_own_attention(tmp_path) -> None:
    config = MistralConfig(
        vocab_size=211, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=6,
        initializer_range=0.5, eos_token_id=None, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = MistralForCausalLM(config)
    model.save_pretrained(tmp_path / "windowed")
    engine = transformers_engine(tmp_path / "windowed", max_num_seqs=3)
    engine.model.float()
    prompts = [[5, 90, 41, 7, 8, 9, 10, 3, 77], [33, 40], [12, 13, 14, 15, 16]]
    answers = sample(engine, prompts, n=2, temperature=0.0, max_tokens=8)
    for prompt, (answer, other) in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.token_ids[:-1]]])
        logits = engine.model(ids).logits[0, len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == answer.token_ids == other.token_ids


@pytest.fixture
def fickle(engine) -> TransformersEngine:
    """Ends an answer with every eighth token of the vocabulary, so that lengths differ."""
    return TransformersEngine(engine.model, frozenset(range(0, 49_152, 8)), 3)


ASKED = {"n": 1, "max_tokens": 40, "temperature": 1.0, "seed": 11}
MANY = [[40 + k, 9, 700 - k] for k in range(9)]


def test_what_is_finished_makes_room_before_the_longest_is(fickle) -> None:
    """Continuous: with three at a time, one of the first three goes on beside later ones."""
    finished = [number for number, _ in fickle.answers(MANY, **ASKED)]
    assert sorted(finished) == list(range(9))
    assert max(finished.index(early) for early in range(3)) > finished.index(3)
    lengths = {len(answer.token_ids) for (answer,) in fickle.generate(MANY, **ASKED)}
    assert len(lengths) > 4


def test_first_answers_are_there_before_the_last_are_begun(fickle) -> None:
    read = []
    hook = fickle.model.register_forward_pre_hook(
        lambda model, args, inputs: read.extend(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    answers = fickle.answers(MANY, **ASKED)
    next(answers)
    begun = [prompt[0] in read for prompt in MANY]
    answers.close()
    hook.remove()
    assert begun[:3] == [True] * 3
    assert not all(begun)
    assert fickle.model.config._attn_implementation == "sdpa"
    assert len(fickle.generate(MANY, **ASKED)) == 9  # what was left does not stand in the way


def test_a_prompt_is_read_once_for_all_of_its_answers(engine) -> None:
    sizes = []
    hook = engine.model.register_forward_pre_hook(
        lambda model, args, inputs: sizes.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    sample(engine, [list(range(600, 630))], n=5, max_tokens=4)
    hook.remove()
    assert sizes == [29, 5, 5, 5, 5]  # all but its last token, which each answer reads by itself


def test_it_leaves_no_thread_no_cache_and_no_seed_behind(engine) -> None:
    threads, state = threading.active_count(), torch.random.get_rng_state()
    with mock.patch.object(torch, "zeros", wraps=torch.zeros) as zeros:
        sample(engine)
    assert threading.active_count() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    (cache,) = [call for call in zeros.call_args_list if call.kwargs.get("dtype") is torch.uint8]
    token = 2 * 2 * 2 * 32 * 2  # layers, keys and values, heads, size, bytes
    assert cache.args[0] == (5 + 2) * 32 * token  # a page for each answer, two that hold nothing
    assert not [
        thing
        for thing in gc.get_objects()
        if type(thing) is torch.Tensor
        and thing.dtype is torch.uint8
        and thing.numel() == cache.args[0]
    ]


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
