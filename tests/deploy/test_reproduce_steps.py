"""Which steps there are, that finished ones are not done again, and what a failure says."""

import dataclasses
import json
import os
import signal
import threading

import pytest
from typer.testing import CliRunner

from core.errors import InstructLoopError, StartError
from deploy.cli import app
from deploy.reproduce.estimates import MIN_UNITS
from deploy.reproduce.plan import POLICIES, Machine, Step, Wanted, seconds_left, steps_of
from deploy.reproduce.prompts import families_of, prompt_sets
from deploy.reproduce.run import _keep_options, print_plan
from deploy.reproduce.sizes import SIZES
from deploy.reproduce.steps import Asked, only_one, run_steps, stopping

STAGE = "tests.deploy.reproduce_stage"


def planned(tmp_path, **more):
    wanted = Wanted(**{"size": "quick", "seeds": (0, 1), **more})
    machine = Machine(tmp_path / "model", tmp_path / "s")
    return steps_of(wanted, root=tmp_path, machine=machine)


def play(tmp_path, *does):
    return [Step(f"seed-0/{n}", STAGE, {"does": what}, 1.0, what) for n, what in enumerate(does)]


def run(steps, tmp_path, asked=None):
    said, shown = [], []
    run_steps(
        steps,
        tmp_path,
        asked=asked or Asked(),
        say=said.append,
        show=lambda step, progress: shown.append(progress.message),
    )
    return said, shown


def test_every_path_that_a_step_reads_is_left_by_an_earlier_one(tmp_path):
    for judge in ("sentiment", "brevity"):
        left = set()
        for step in planned(tmp_path, judge=judge):
            seed = tmp_path / step.name.split("/")[0]
            told = json.dumps(step.inputs)
            for path in [p for p in told.split('"') if p.startswith(f"{seed}/")]:
                assert path.split("/out/")[0] in left, f"{step.name} reads {path}"
            left.add(str(step.folder(tmp_path)))


def test_the_three_ppo_runs_differ_in_what_they_should_and_share_the_rest(tmp_path):
    by_name = {step.name: step.inputs for step in planned(tmp_path)}
    ppo, ptx, still = (by_name[f"seed-0/{name}"] for name in ("ppo", "ppo-ptx", "still"))
    assert (ppo["settings"]["ptx_coef"], ptx["settings"]["ptx_coef"]) == (0.0, None)
    assert still["settings"]["learning_rate"] == 0.0
    assert {**ppo, "settings": {**ppo["settings"], "ptx_coef": None}} == ptx
    assert ppo["anchor"] == ppo["parent"] == ptx["anchor"] == still["parent"]
    assert by_name["seed-0/shuffled"]["shuffle_labels"]
    assert not by_name["seed-0/reward-model"]["shuffle_labels"]


def test_seeds_differ_in_seed_and_folder_only(tmp_path):
    steps = planned(tmp_path)
    half = len(steps) // 2
    for first, second in zip(steps[:half], steps[half:], strict=True):
        moved = (
            json.dumps(first.inputs).replace("seed-0/", "seed-1/").replace('"seed": 0', '"seed": 1')
        )
        assert json.loads(moved) == second.inputs


def test_each_size_has_prompts_enough_and_takes_less_time_the_smaller_it_is(tmp_path):
    for size in SIZES.values():
        for form, seed in (("open", 2), ("short", 1)):
            assert len(prompt_sets(size, form, seed=seed).test) == size.test
    sizes = ("little", "quick", "short", "full")
    times = [seconds_left(planned(tmp_path, size=name), tmp_path) for name in sizes]
    assert times == sorted(times)


def test_three_seeds_test_every_family_once_and_none_of_them_learns_what_it_is_tested_on():
    for form in ("open", "short"):
        tested = []
        for seed in (3, 4, 5):
            sets = prompt_sets(SIZES["short"], form, seed=seed)
            held_out = set(families_of(sets.test))
            for others in (sets.training, sets.validation):
                assert not held_out & set(families_of(others))
                for name in ("user", "topic", "template"):
                    ours, theirs = ({getattr(p, name) for p in one} for one in (sets.test, others))
                    assert not ours & theirs
            tested += held_out
        assert len(tested) == len(set(tested)) >= MIN_UNITS
        again = families_of(prompt_sets(SIZES["short"], form, seed=0).test)
        assert set(again) <= set(tested)


def test_a_plan_says_each_step_and_what_is_done(tmp_path):
    (tmp_path / "seed-0" / "collect" / "out").mkdir(parents=True)
    said = []
    print_plan(Wanted(size="quick", seeds=(0,)), out=tmp_path, say=said.append)
    assert len(said) == 11
    assert said[0].split()[:2] == ["done", "seed-0/collect:"]
    assert "minutes left" in said[-1]


def test_the_command_plans_as_many_seeds_as_asked_for_and_writes_nothing(tmp_path):
    out = tmp_path / "reproduction"
    asked = ["reproduce", "--plan", "--seeds", "2", "--judge", "brevity", "--out", str(out)]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0
    assert "seed-1/ppo-ptx" in shown.stdout
    assert "seed-2/" not in shown.stdout
    assert not out.exists()


def test_quick_is_one_seed_and_other_sizes_are_three(tmp_path):
    out = ["reproduce", "--plan", "--out", str(tmp_path / "reproduction")]
    quick, short, wrong = (
        CliRunner().invoke(app, [*out, *more])
        for more in (["--quick"], ["--size", "short"], ["--size", "tiny"])
    )
    assert (quick.exit_code, short.exit_code, wrong.exit_code) == (0, 0, 2)
    assert len(quick.stdout.splitlines()) == 10 + 1
    assert len(short.stdout.splitlines()) == 3 * 10 + 1


def test_tasks_of_lm_eval_are_tried_before_anything_else(tmp_path):
    steps = planned(tmp_path, lm_eval=("piqa",))
    asking = [step.name for step in steps if step.inputs.get("lm_eval") == ["piqa"]]
    assert asking[:2] == ["seed-0/collect", "seed-0/exam"]


def test_steps_run_once_and_leave_nothing_they_do_not_need(tmp_path):
    steps = play(tmp_path, "write", "write")
    said, shown = run(steps, tmp_path)
    assert len(said) == 2
    assert "half way" in shown
    out = tmp_path / "seed-0" / "1" / "out" / "result"
    written = out.read_text()
    assert not list((tmp_path / "seed-0" / "1").glob("checkpoint*"))
    said, _ = run(steps, tmp_path)
    assert (said, out.read_text()) == ([], written)


def test_a_step_that_fails_says_why_and_the_next_start_goes_on_there(tmp_path):
    with pytest.raises(InstructLoopError, match=r"seed-0/1: it ended with code 1.*no such luck"):
        run(play(tmp_path, "write", "fail"), tmp_path)
    with pytest.raises(InstructLoopError, match="seed-0/1: too little"):
        run(play(tmp_path, "write", "refuse"), tmp_path)
    took = tmp_path / "seed-0" / "1" / "took.json"
    tried = json.loads(took.read_text())["seconds"]
    assert tried > 0.0
    said, _ = run(play(tmp_path, "write", "write"), tmp_path)
    assert len(said) == 1
    assert json.loads(took.read_text())["seconds"] > tried


def test_a_signal_lets_the_step_checkpoint_and_the_next_start_resumes(tmp_path):
    steps = play(tmp_path, "wait")
    with stopping() as asked:

        def show(step, progress):
            if progress.message == "half way":
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(InstructLoopError, match="stopped in seed-0/0"):
            run_steps(steps, tmp_path, asked=asked, say=str, show=show)
    assert (tmp_path / "seed-0" / "0" / "checkpoint").exists()
    run(steps, tmp_path)
    assert (tmp_path / "seed-0" / "0" / "out" / "result").read_text() == "resumed"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_two_at_once_and_other_options_are_refused(tmp_path, monkeypatch):
    refused = []

    def second():
        try:
            with only_one(tmp_path):
                pass
        except StartError as error:
            refused.append(error.message)

    with only_one(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another reproduction" in refused[0]
    _keep_options(tmp_path, Wanted(seeds=(0,)), "smollm2")
    _keep_options(tmp_path, Wanted(seeds=(0,)), "smollm2")
    with pytest.raises(StartError, match="with seeds"):
        _keep_options(tmp_path, Wanted(seeds=(0, 1)), "smollm2")
    other = dataclasses.replace(SIZES["full"], test=SIZES["full"].test + 1)
    monkeypatch.setitem(SIZES, "full", other)  # as another release may have it
    with pytest.raises(StartError, match="with numbers"):
        _keep_options(tmp_path, Wanted(seeds=(0,)), "smollm2")


def test_the_sets_of_policies_hold_together():
    assert len(set(POLICIES)) == len(POLICIES) == 8
