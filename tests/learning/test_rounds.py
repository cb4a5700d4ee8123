"""When a round is due, what a choice of stages means, what an exit or a failure leads to."""

import dataclasses

import pytest

from core.errors import Unprocessable
from core.records import SFT_STAGES, STAGES, Run
from learning.rounds.decisions import (
    RETRY_DELAYS,
    Facts,
    after_failure,
    describe_exit,
    meaning_of_exit,
    next_stage,
    reason_for_round,
    stages_for,
    stages_named,
)

QUIET = Facts(
    now=1_000.0,
    paused=False,
    running=False,
    comparisons=40,
    consumed=40,
    tried=40,
    last_round=900.0,
)


def reason(**changes):
    facts = dataclasses.replace(QUIET, **changes)
    return reason_for_round(facts, min_new_comparisons=50, interval_seconds=300)


def test_nothing_new_starts_no_round_however_long_ago_the_last_was():
    assert reason(last_round=0.0) is None


def test_enough_new_comparisons_start_a_round_at_once():
    assert reason(comparisons=89) is None
    assert reason(comparisons=90) == "50 new comparisons"


def test_a_few_new_comparisons_wait_for_the_interval():
    assert reason(comparisons=41, last_round=701.0) is None
    assert "schedule" in reason(comparisons=41, last_round=700.0)


def test_a_paused_loop_and_a_running_round_start_none():
    assert reason(comparisons=900, paused=True) is None
    assert reason(comparisons=900, running=True) is None


def test_a_failed_round_is_tried_again_only_after_the_interval():
    failed = {"comparisons": 140, "tried": 140, "consumed": 40}
    assert reason(**failed) is None
    assert "100 new comparisons" in reason(**failed, last_round=100.0)


def test_before_the_loop_was_ever_alive_no_interval_is_over():
    assert reason(comparisons=41, last_round=None) is None


def test_choices_of_the_command_line_become_stages_in_order():
    assert stages_named("all") == STAGES
    assert stages_named("reward-model") == ("snapshot", "reward_model")
    assert stages_named("policy") == ("policy",)
    assert stages_named("sft") == SFT_STAGES == stages_for(["sft", "snapshot", "gate"])
    assert stages_named("evaluate") == ("evaluate", "vote", "gate")
    assert stages_for(["evaluate", "policy"]) == ("policy", "evaluate", "vote", "gate")
    assert stages_for(["gate", "reward_model", "policy"]) == STAGES


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["sft", "policy"], "not from both"),
        (["poetry"], "no stage 'poetry'"),
        ([], "at least one"),
        (["snapshot", "policy"], "no gaps"),
        (["reward-model", "evaluate"], "no gaps"),
    ],
)
def test_stages_that_cannot_be_run_are_refused_with_the_reason(names, said):
    with pytest.raises(Unprocessable, match=said):
        stages_for(names)


def test_the_next_stage_follows_the_runs_own_list():
    run = Run(id="r", stages=("evaluate", "vote", "gate"), created_at=0.0, stage="evaluate")
    assert next_stage(run) == "vote"
    assert next_stage(run.model_copy(update={"stage": "gate"})) is None


def test_exit_codes_mean_what_the_stage_says():
    assert [meaning_of_exit(code) for code in (0, 3, 75, 1, -9, 137)] == [
        "done",
        "not_enough_data",
        "again",
        "failed",
        "failed",
        "failed",
    ]


def test_a_killed_stage_hints_at_memory_and_a_failed_one_quotes_its_log():
    assert "memory" in describe_exit(-9, last_line="")
    assert describe_exit(1, last_line="ValueError: no").endswith("ValueError: no")
    assert "signal 6" in describe_exit(-6, last_line="")


def test_retries_wait_longer_each_time_and_then_end():
    delays = []
    failures, fraction = 0, 0.0
    while True:
        retry = after_failure(failures, fraction=fraction, failed_fraction=0.0)
        failures = retry.failures
        if retry.delay is None:
            break
        delays.append(retry.delay)
    assert tuple(delays) == RETRY_DELAYS
    assert delays == sorted(delays)
    assert failures == len(RETRY_DELAYS) + 1


def test_a_failure_further_on_than_the_one_before_counts_as_the_first():
    retry = after_failure(2, fraction=0.4, failed_fraction=0.3)
    assert (retry.failures, retry.delay) == (1, RETRY_DELAYS[0])
    assert after_failure(2, fraction=0.3, failed_fraction=0.3).delay is None
