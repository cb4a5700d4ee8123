"""From the files of finished steps to the report: by hand where it is small, by its guards."""

import json

import numpy as np
import pytest
from PIL import Image

from deploy.reproduce.claims import CLAIMS, CONTROLS, Answered, answered, control_verdict
from deploy.reproduce.estimates import Estimate
from deploy.reproduce.markdown import SHOWN_AS
from deploy.reproduce.plan import MEASURED, POLICIES, Wanted
from deploy.reproduce.plots import alignment_tax, safety, win_rates
from deploy.reproduce.raters import people
from deploy.reproduce.run import write_report
from deploy.reproduce.scoring import pair_marks, read_seed, unseen_prompts
from deploy.reproduce.wins import (
    WIN,
    WIN_OVER_START,
    WIN_SIMILAR,
    WIN_UNRULED,
    preferred,
    ruled,
)
from deploy.simulate.prompt_sets import Prompt

WANTED = Wanted(size="quick", seeds=(0, 1, 2))
GLAD = "It was a wonderful day and everybody was happy with the lovely result."
PLAIN = "It was a day like others and nothing much is to be said of the result."
SAD = "It was a terrible day and everybody was sad about the awful result."
KINDS = ("none", "respectful", "biased")
SCALES = {"sentiment": 0.3, "address": 0.1, "plain": 0.5}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_seed(root, seed, *, says, shuffled=0.5, start=PLAIN):
    """The files of one seed in which each policy says one thing to every prompt."""
    folder, test = root / f"seed-{seed}", unseen_prompts(WANTED, seed)
    generator = np.random.default_rng(seed)
    tempted = {kind: [["Good grief."]] * 40 for kind in KINDS}
    tempted["biased"] = [["You bastard."]] * 40
    said = {**dict.fromkeys(POLICIES, PLAIN), "start": start, **says}
    answers = {
        name: {
            "test": [f"{text} ({n})" for n, _ in enumerate(test)],
            "ended": [True] * len(test),
            **({"words": {"w-0": True, "w-1": False}} if name in MEASURED else {}),
            **({"toxicity": tempted} if name not in ("start", "still") else {}),
        }
        for name, text in said.items()
    }
    answers["prompted"]["prefixes"] = [0.1, 0.3]
    units = [f"i-{n}" for n in range(60)]
    ordinary = {
        name: {"units": units, "values": [float(n % 2) for n in range(60)]}
        for name in ("truthfulness", "tasks", *(f"bias {kind}" for kind in KINDS))
    }
    prose = generator.normal(3.0, 0.2, size=50)
    exam = {
        name: {
            **ordinary,
            "loss on prose": {
                "units": [f"p{n}" for n in range(50)],
                "values": (prose + 0.1 * (name == "ppo")).tolist(),
            },
        }
        for name in MEASURED
    }
    for name, share in (("reward-model", 0.6), ("shuffled", shuffled)):
        # the base is sad and the others are alike: three pairs a prompt, all right or all wrong
        base = [-1.0 if 7 * n % 10 < 10 * share else 1.0 for n in range(len(test))]
        exam[name] = {"scores": [[score, 0.0, 0.0, 0.0] for score in base]}
    write(folder / "answers" / "out" / "answers.json", answers)
    write(folder / "answers" / "out" / "figures.json", {"prefixes": [0.1, 0.3]})
    write(folder / "exam" / "out" / "exam.json", exam)
    counts = {"agreed": 3, "pairs": 4}
    agreement = dict.fromkeys(("training", "heldout", "between"), counts)
    collected = {"scales": SCALES, "agreement": agreement}
    write(folder / "collect" / "out" / "figures.json", collected)
    iterations = [{"reward": 0.1 * n, "kl_per_token": 0.01 * n} for n in range(3)]
    for step in ("reward-model", "sft", "flan", "shuffled", "ppo", "ppo-ptx", "still"):
        figures = {"iterations": iterations, "kl_per_token": 0.02, "ptx_coef": 0.3}
        write(folder / step / "out" / "figures.json", figures)
        write(folder / step / "took.json", {"seconds": 1.5})


def report_of(root, **more):
    says = {"ppo": GLAD, "ppo-ptx": GLAD, "base": SAD}
    for seed in WANTED.seeds:
        write_seed(root, seed, **{"says": says, **more})
    path = write_report(WANTED, root)
    return json.loads((root / "report.json").read_text()), path.read_text()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The report of two ordinary seeds, its text, and its folder."""
    root = tmp_path_factory.mktemp("report")
    return *report_of(root), root


def test_points_by_hand_where_broken_text_loses():
    crowd = people("sentiment", SCALES)
    prompts = [Prompt(f"p{n}", f"u{n}", "t", "t", "open") for n in range(5)]
    new = [GLAD, SAD, "", PLAIN, ""]
    old = [SAD, GLAD, GLAD, PLAIN, ""]
    votes = preferred(crowd.pool(heldout=True), crowd, prompts, new, old, seed=0)
    assert votes == [1.0, 0.0, 0.0, 0.5, 0.5]
    assert ruled(votes, new, old) == [1.0, 0.0, 0.0, 0.5, 0.0]
    assert ruled([0.25], [GLAD], [""]) == [1.0]


def test_pairs_by_hand():
    scores, orders = [[3.0, 1.0, 2.0], [5.0, 5.0]], [[[0], [1, 2]], [[1], [0]]]
    assert pair_marks(["u", "v"], scores, orders) == (["u", "u", "v"], [1.0, 1.0, 0.5])
    assert pair_marks(["u"], [[1.0, 2.0, 3.0]], [[[0], [1], [2]]])[1] == [0.0, 0.0, 0.0]


def test_the_report_says_who_won_and_refuses_what_the_interval_does_not_show(told):
    report, text, _ = told
    for pool in WIN.values():
        row = report["figures"][pool]
        assert row["ppo-ptx"]["value"] > 0.9
        assert row["base"]["value"] < 0.1
        assert "sft" not in row
        assert (row["ppo"]["n"], len(row["ppo"]["per_seed"])) == (3 * WANTED.numbers.test, 3)
        assert row["ppo"]["units"] == 44  # all families of open prompts, each in one seed
    similar, unruled = (report["figures"][name] for name in (WIN_SIMILAR, WIN_UNRULED))
    assert set(similar) == {"start", "prompted", "flan"}  # the others say fewer words
    assert unruled["ppo"]["value"] == report["figures"][WIN["heldout"]]["ppo"]["value"]
    verdicts = {one["says"]: one for one in report["claims"]}
    assert verdicts["PPO-ptx against SFT"]["against_paper"] == "as in the paper"
    assert verdicts["PPO-ptx less PPO, win rate"]["verdict"] == "not shown"
    assert verdicts["loss on prose: PPO less its start"]["verdict"] == "higher"
    assert verdicts["loss on prose: PPO less its start"]["value"] == pytest.approx(0.1)
    assert verdicts["loss on prose: PPO-ptx less PPO"]["against_paper"] == "as in the paper"
    assert verdicts["truthfulness: PPO-ptx less SFT"]["against_paper"] == "open"
    assert "| PPO-ptx against SFT |" in text
    assert len(verdicts) == len(CLAIMS)
    tax = report["changes"]["loss on prose"]["ppo"]
    assert tax["value"] == pytest.approx(0.1)
    assert tax["high"] - tax["low"] < 1e-6  # item by item: how items differ is no part of it


def test_measures_are_counted_as_they_are(told):
    report, _, _ = told
    figures = report["figures"]
    assert figures["toxicity biased"]["ppo"]["value"] == 1.0
    assert figures["toxicity respectful"]["ppo"]["value"] == 0.0
    assert figures["tasks"]["base"]["n"] == 3 * 62
    assert figures["tasks"]["base"]["units"] == 62
    assert figures["broken answers"]["ppo"]["value"] == 0.0
    assert report["agreement"]["training"] == 0.75
    for one in report["reward_model"].values():
        assert one["value"] == pytest.approx(0.6)
        assert one["units"] == 44
    assert report["seconds"]["1"]["ppo"] == 1.5


def test_the_gate_passes_what_won_and_fails_what_learned_nothing(told):
    report, text, _ = told
    assert {one["verdict"] for one in report["gate"]["still"]} == {"fail"}
    # it won, but it forgot more than a hundredth of the loss on prose
    assert {one["verdict"] for one in report["gate"]["ppo"]} == {"fail"}
    assert {one["verdict"] for one in report["gate"]["ppo-ptx"]} == {"pass"}
    assert {one["verdict"] for one in report["controls"]} == {"nothing"}
    assert len(report["controls"]) == len(CONTROLS)
    assert "CONTROL FAILED" not in text


def test_a_control_that_finds_something_is_told_first(tmp_path):
    report, text = report_of(tmp_path, shuffled=0.9, says={"still": GLAD})
    assert "CONTROL FAILED" in report["warnings"][-1]
    assert "the gate passed learning rate 0 (seed 0)" in text
    assert text.index("CONTROL FAILED") < text.index("## Policies")
    seeds = [read_seed(tmp_path, WANTED, seed) for seed in WANTED.seeds]
    control = answered(CONTROLS[0], seeds)
    assert control.claim.left == (WIN_OVER_START, "still")
    assert control_verdict(control) == "alarm"


def test_a_control_of_few_users_is_no_alarm_and_one_near_a_half_is_none_either():
    claim = CONTROLS[1]

    def said(value, low, high, units, per_seed=(0.2, 0.3)):
        found = Estimate(value, low, high, n=900, units=units)
        return control_verdict(Answered(claim, found, per_seed, "not shown"))

    assert said(0.2, 0.1, 0.3, 39) == "too few"
    assert said(0.2, 0.1, 0.3, 40) == "alarm"
    assert said(0.46, 0.43, 0.49, 60) == "nothing"
    assert said(0.4, 0.2, 0.51, 60) == "nothing"
    assert said(0.2, 0.1, 0.3, 60, per_seed=(0.1, 0.6)) == "nothing"


def test_a_small_run_and_a_weak_reward_model_are_said_first(told):
    report, text, _ = told
    assert "too few to compare" in report["warnings"][0]
    assert "not the paper's comparison" in report["warnings"][1]
    assert "0.60 (seed 0), 0.60 (seed 1), 0.60 (seed 2)" in report["warnings"][2]
    assert text.index("too few to compare") < text.index("| |")


def test_policies_stand_in_the_order_of_the_table_in_every_plot(told):
    report, _, _ = told
    for figure in (win_rates(report), alignment_tax(report), safety(report)):
        for axes in figure.axes:
            shown = [label.get_text() for label in axes.get_yticklabels()]
            assert shown == [name for name in SHOWN_AS.values() if name in shown]
            assert axes.yaxis_inverted()


def test_measures_without_spread_carry_no_interval(told):
    _, text, _ = told
    (row,) = [line for line in text.splitlines() if line.startswith("| toxicity biased")]
    assert "100.0 % (all)" in row
    assert "[" not in row


def test_each_plot_of_the_report_is_a_picture(told):
    _, text, root = told
    names = [line.split("(")[1].strip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(names) == 4
    for name in names:
        with Image.open(root / name) as picture:
            assert picture.width > 600
            assert len(set(picture.convert("L").tobytes())) > 20
