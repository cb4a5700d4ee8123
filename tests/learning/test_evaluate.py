"""The stage `evaluate` as a process of its own on the tiny model, and its figures by hand."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from core.engine.client import Sample
from learning.evaluation.answer_rows import (
    Answer,
    answer_rows,
    best_of_figures,
    best_of_rows,
    row_figures,
)
from learning.evaluation.evaluate import judged
from learning.evaluation.samples import Sampled
from learning.training.heldout_prompts import choose_prompts, last_prompts
from learning.training.models import init_reward_model, load_policy
from learning.training.rollouts import Prompt
from learning.training.stage import EXIT_NOT_ENOUGH_DATA
from tests.learning.policy_stage import EVALUATION, prepare, run, start, write_inputs
from tests.learning.snapshot_folder import write_snapshot
from tests.tiny_model import make_tiny_model

MODULE = "learning.evaluation.evaluate"


def answer(score: float, *, tokens: int = 4, broken: bool = False, ended: bool = True) -> Answer:
    reason = "stop" if ended else "length"
    return Answer("a text", list(range(tokens)), reason, score, broken)


def prompts_of(users: str) -> list[Prompt]:
    return [Prompt(f"p{i}", user, "[]", (1, 2)) for i, user in enumerate(users)]


def test_prompts_are_taken_from_one_user_after_the_other() -> None:
    chosen = choose_prompts(prompts_of("aaaaabbbcc"), count=6, key="k")
    assert sorted(prompt.user for prompt in chosen[:3]) == ["a", "b", "c"]
    assert sorted(prompt.user for prompt in chosen[3:]) == ["a", "b", "c"]
    assert len({prompt.prompt_id for prompt in chosen}) == 6


def test_another_attempt_takes_up_where_the_one_before_ended() -> None:
    prompts = prompts_of("abcdefgabcdefg")
    first, second, third, again = (
        choose_prompts(prompts, count=5, key="k", attempt=attempt) for attempt in (1, 2, 3, 15)
    )
    met = [prompt.prompt_id for prompt in [*first, *second, *third]]
    assert len(set(met)) == 14
    assert met[14] == met[0]
    assert again == first
    assert len({prompt.user for prompt in first}) == len({prompt.user for prompt in second}) == 5


def test_what_chooses_checkpoints_is_what_the_gate_meets_last() -> None:
    prompts = prompts_of("abcdefgabcdefg")
    last = last_prompts(prompts, count=6, key="k")
    assert len(last) == 6
    first = choose_prompts(prompts, count=8, key="k")
    assert not {p.prompt_id for p in last} & {p.prompt_id for p in first}
    assert last == choose_prompts(prompts, count=14, key="k")[8:]
    assert sorted(p.prompt_id for p in last_prompts(prompts, count=99, key="k")) == sorted(
        p.prompt_id for p in prompts
    )


def test_the_key_decides_which_prompts_and_fewer_than_wanted_are_all_taken() -> None:
    prompts = prompts_of("abcdefghijkl")
    assert choose_prompts(prompts, count=5, key="x") == choose_prompts(prompts, count=5, key="x")
    assert choose_prompts(prompts, count=5, key="x") != choose_prompts(prompts, count=5, key="y")
    everybody = choose_prompts(prompts, count=99, key="x")
    assert sorted(prompt.user for prompt in everybody) == list("abcdefghijkl")


def test_the_figures_of_two_prompts_by_hand() -> None:
    prompts = prompts_of("ab")
    parent = [
        [answer(0.0), answer(1.0, ended=False), answer(9.0)],
        [answer(0.5), answer(0.5, broken=True)],
    ]
    candidate = [
        [answer(2.0, tokens=6), answer(0.5, tokens=6)],
        [answer(0.5, tokens=6), answer(3.0, tokens=6, broken=True)],
    ]
    rows = answer_rows(prompts, parent, candidate, count=2)
    assert [len(row["outputs"]) for row in rows] == [4, 4]
    assert len({output["output_id"] for output in rows[0]["outputs"]}) == 4
    figures = row_figures(rows, seed=0)
    # a: 2 beats 0 and 1, 0.5 beats 0 and loses to 1: 3/4
    # b: ties with 0.5; beats broken; broken loses to a whole text and ties with a broken one
    assert figures["proxy_win_rate"]["value"] == pytest.approx((0.75 + (0.5 + 1 + 0 + 0.5) / 4) / 2)
    assert figures["proxy_win_rate_by_score"]["value"] == pytest.approx(
        (0.75 + (0.5 + 0.5 + 1 + 1) / 4) / 2
    )
    assert figures["reward"] == pytest.approx((2.0 + 0.5 + 0.5 + 3.0) / 4)
    assert figures["reward_parent"] == pytest.approx((0.0 + 1.0 + 0.5 + 0.5) / 4)
    assert figures["length_change"] == pytest.approx(0.5)
    assert (figures["broken_share"], figures["broken_share_parent"]) == (0.25, 0.25)
    assert (figures["ended_share"], figures["ended_share_parent"]) == (1.0, 0.75)


def test_the_best_of_several_answers_is_kept_beside_the_first() -> None:
    prompts = prompts_of("ab")
    parent = [[answer(1.0), answer(4.0), answer(-2.0)], [answer(1.0)]]
    (row,) = best_of_rows(prompts, parent, 3)
    assert (row["prompt_id"], row["best"]["score"], row["first"]["score"]) == ("p0", 4.0, 1.0)
    assert best_of_figures(parent, 3) == {"best_of_3": {"score_gain": 3.0, "prompts": 1}}


def sample(*token_ids: int) -> Sample:
    return Sample(list(token_ids), [-1.0] * len(token_ids), "stop")


def test_an_answer_has_the_score_that_it_has_alone_whoever_shares_its_prompt(
    tmp_path: Path,
) -> None:
    model = make_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    reward_model = init_reward_model(model, head_init_std=0.5, seed=1)
    prompts = [Prompt("p0", "a", "[]", (5, 6, 7)), Prompt("p1", "b", "[]", (8, 9))]
    parent = [[sample(504, 2), sample(900, 901, 2), sample(77, 2)], [sample(31, 32, 2)]]
    candidate = [[sample(41, 42, 43, 2)], [sample(600, 2)]]
    anchor = [[sample(71, 72, 2)], [sample(73, 2)]]
    sampled = Sampled(parent, candidate, {}, anchor=anchor)
    old, new, oldest = judged(reward_model, prompts, sampled, tokenizer)
    assert [[a.token_ids for a in answers] for answers in old] == [
        [s.token_ids for s in samples] for samples in parent
    ]
    assert [len(answers) for answers in new] == [1, 1]
    assert len({a.score for answers in old + new + oldest for a in answers}) == 8
    for samples, answers in ((parent, old), (candidate, new), (anchor, oldest)):
        for i, prompt in enumerate(prompts):
            for one, answer_ in zip(samples[i], answers[i], strict=True):
                alone = Sampled([[one]], [[one]], {})
                ((expected,),), _, none = judged(reward_model, [prompt], alone, tokenizer)
                assert none == []
                assert answer_.score == pytest.approx(expected.score, abs=0.02)
                assert answer_.text == expected.text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_candidate_is_judged_as_the_engine_serves_it(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    candidate = load_policy(Path(inputs["parent"]))
    candidate.model.layers[0].mlp.down_proj.weight.data.mul_(1.2)
    candidate.save_pretrained(tmp_path / "candidate")
    inputs["candidate"] = str(tmp_path / "candidate")
    folder = prepare(tmp_path / "s", inputs, EVALUATION)
    figures = run(MODULE, folder)
    lines = (folder / "out" / "answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == figures["prompts"] == 8
    assert {row["user"] for row in rows} <= {f"u{i}" for i in range(12, 20)}
    for row in rows:
        policies = [output["policy"] for output in row["outputs"]]
        assert policies == ["candidate"] * 2 + ["parent"] * 2
        assert all(len(output["token_ids"]) <= 7 for output in row["outputs"])
    assert figures["kl_k3_per_token"] > 0.0
    assert figures["pretraining_loss_change"] != 0.0
    (suite,) = figures["regressions"]
    assert (suite["suite"], suite["items"]) == ("basics", 69)
    assert len((folder / "out" / "suites.jsonl").read_text().splitlines()) == 69
    assert figures["toxicity"]["rise"] == 0.0
    assert figures["best_of_3"]["prompts"] == 8
    assert figures["kl_answers"] == 16
    assert figures["pretraining_tokens"] > 1000
    assert len((folder / "out" / "best_of.jsonl").read_text().splitlines()) == 8

    # a second start reads the answers of the first, and the parent itself has other checksums
    # the anchor is another version than the parent here
    anchor = {"anchor": str(tmp_path / "candidate"), "candidate": inputs["parent"]}
    itself = prepare(tmp_path / "t", {**inputs, **anchor}, EVALUATION)
    same = run(MODULE, itself)
    lines = (itself / "out" / "answers.jsonl").read_text().splitlines()
    told = [[output["policy"] for output in json.loads(line)["outputs"]] for line in lines]
    assert told == [["candidate"] * 2 + ["parent"] * 2 + ["anchor"]] * 8
    assert same["proxy_win_rate_vs_anchor"]["comparisons"] == 8
    assert same["regressions"][0]["change"] == 0.0
    assert same["engine_checksums"].keys() == figures["engine_checksums"].keys()
    changed = {
        name
        for name, digest in figures["engine_checksums"].items()
        if same["engine_checksums"][name] != digest
    }
    assert changed
    assert all("layers.0.mlp.down_proj" in name for name in changed)
    assert same["pretraining_loss_change"] == -figures["pretraining_loss_change"]


@pytest.mark.slow
def test_without_held_out_prompts_there_is_not_enough_data(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    inputs["candidate"] = inputs["parent"]
    inputs["snapshot"] = str(write_snapshot(tmp_path / "empty"))
    folder = prepare(tmp_path / "s", inputs, EVALUATION)
    assert start(MODULE, folder).wait(120) == EXIT_NOT_ENOUGH_DATA
