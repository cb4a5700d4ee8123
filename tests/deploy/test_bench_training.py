"""The sums and the data behind `bench reward-model` and `bench policy`: no model is loaded."""

import json
import sys

import pytest

from core.errors import StartError
from deploy.bench import training_turns
from deploy.bench.maths import Spread
from deploy.bench.policy import update_flops
from deploy.bench.reward_model import flops_per_comparison
from deploy.bench.training_data import ranked_pieces
from deploy.bench.training_learned import Learned, paired_gap
from deploy.bench.training_maths import (
    Shape,
    body_flops,
    group_looks,
    head_flops,
    pairs_of,
    read_shape,
    trained_layers,
)
from deploy.bench.training_report import PolicyReport, RewardReport, Update, Variant
from deploy.bench.training_turns import measured_names, trainer

SHAPE = Shape(layers=5, width=6, heads=4, kv_heads=2, head_dim=3, inner=11, vocabulary=13)


def spread(value: float) -> Spread:
    return Spread(value, value / 2, value * 2)


def test_a_layer_has_the_weights_that_its_matrices_have():
    # queries 6 x 12, keys and values 6 x 6 each, out 12 x 6, three of 6 x 11
    assert SHAPE.layer_weights == 72 + 36 + 36 + 72 + 3 * 66


def test_the_shape_is_read_from_a_configuration_that_leaves_out_what_follows(tmp_path):
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 10,
        "num_attention_heads": 5,
        "intermediate_size": 7,
        "vocab_size": 17,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(tmp_path) == Shape(2, 10, 5, 5, 2, 7, 17)


def test_tokens_look_at_their_prompt_and_their_own_answer_only():
    # prompt of 2: 1 + 2; answer of 3: 3 * 2 + 6; answer of 1: 2 + 1
    assert group_looks(2, [3, 1]) == 3 + 12 + 3


def test_a_step_is_counted_by_hand():
    forward = 5 * (SHAPE.layer_weights * 7 * 2 + 2 * (4 * 3 * 9) * 2)
    assert body_flops(SHAPE, tokens=7, looks=9, trained_layers=0) == forward
    assert body_flops(SHAPE, tokens=7, looks=9, trained_layers=5) == 3 * forward
    assert body_flops(SHAPE, tokens=7, looks=9, trained_layers=2) == forward * (1 + 2 * 2 / 5)


def test_the_output_matrix_is_counted_for_the_tokens_asked_for():
    assert head_flops(SHAPE, tokens=3, trained=False) == 2 * 6 * 13 * 3
    assert head_flops(SHAPE, tokens=3, trained=True) == 6 * 6 * 13 * 3


def test_layers_are_frozen_as_the_model_freezes_them():
    assert [trained_layers(SHAPE, share) for share in (0.0, 0.5, 1.0)] == [5, 3, 0]


def test_a_ranking_of_k_answers_is_k_over_two_comparisons():
    assert [pairs_of(k) for k in (2, 4, 9)] == [1, 6, 36]


def test_packing_needs_less_arithmetic_for_the_same_comparisons():
    def each(answers: int, packed: bool) -> float:
        return flops_per_comparison(SHAPE, answers, frozen_share=0.0, packed=packed)

    assert each(9, True) < each(9, False) < each(2, False)
    # a prompt and nine answers against nine times both, all of 56 tokens
    weights = 3 * 2 * 5 * SHAPE.layer_weights * 56 / 36
    assert each(9, False) - each(9, True) >= weights * (18 - 10)


def test_an_update_with_a_frozen_half_of_the_value_model_is_less():
    whole, half = (update_flops(SHAPE, frozen_share=share) for share in (0.0, 0.5))
    assert 0.7 * whole < half < whole


def test_pieces_become_prompts_with_answers_ranked_by_their_scores():
    pieces = [[number] * 4 for number in range(9)]
    scores = [9.0, 0.1, 0.7, 0.7, 9.0, 0.3, 0.2, 0.1, 5.0]
    first, second = ranked_pieces(pieces, scores, answers=3)  # the ninth piece is left over
    assert (first.prompt, first.ranks) == ([0] * 4, [2, 1, 1])
    assert (second.prompt, second.ranks) == ([4] * 4, [1, 2, 3])
    assert second.answers == [[5] * 4, [6] * 4, [7] * 4]


def test_pairs_are_all_comparisons_without_ties_the_better_one_first():
    tied, strict = ranked_pieces(
        [[0], [1], [2], [3], [4], [5], [6], [7]], [0, 1, 2, 2, 0, 1, 3, 2], answers=3
    )
    assert sorted(tied.pairs()) == [([0, 2], [0, 1]), ([0, 3], [0, 1])]
    assert len(list(strict.pairs())) == pairs_of(3)


def test_the_reward_report_compares_with_ours_and_knows_the_aims():
    def variant(name: str, four: float, nine: float, right: list[float] | None) -> Variant:
        return Variant(
            name=name,
            comparisons_per_second={4: spread(four), 9: spread(nine)},
            flops_per_second={4: spread(100.0), 9: spread(650.0)},
            peak_bytes=1 << 30,
            learned=None if right is None else Learned(9.0, right, [36, 4]),
        )

    report = RewardReport(
        step_prompts=2,
        rounds=3,
        variants=[
            variant("ours", 12.0, 30.0, [27, 3]),
            variant("half", 15.0, 40.0, None),
            variant("TRL RewardTrainer", 2.0, 2.0, [24, 2]),
        ],
        products_per_second=spread(1000.0),
        trained_comparisons=360,
    )
    assert report.ratios() == {"half": {4: 0.8, 9: 0.75}, "TRL RewardTrainer": {4: 6.0, 9: 15.0}}
    assert report.accuracy_gaps().keys() == {"TRL RewardTrainer"}
    assert [(aim.value, aim.met) for aim in report.aims()] == [
        (6.0, True),
        (15.0, False),
        (0.25, True),  # on the second prompt alone, one of four
        (0.65, True),
    ]
    document = json.loads(json.dumps(report.document()))
    assert document["variants"][0]["product_share"] == {"4": 0.1, "9": 0.65}
    assert document["variants"][0]["accuracy"] == 0.75
    assert document["scaling"] is None
    assert document["scaling_reason"]
    assert report.tables().renderables


def test_a_gap_is_over_the_same_prompts_with_an_interval_over_them():
    one, other = Learned(1.0, [6, 3], [6, 6]), Learned(1.0, [3, 3], [6, 6])
    assert paired_gap(one, other) == Spread(0.25, 0.0, 0.5)
    assert paired_gap(one, one) == Spread(0.0, 0.0, 0.0)


def test_scaling_is_what_many_processes_do_over_what_one_does():
    def variant(processes: int, four: float, nine: float) -> Variant:
        return Variant(
            name=f"ours, {processes}",
            comparisons_per_second={4: spread(four), 9: spread(nine)},
            flops_per_second={4: spread(1.0), 9: spread(1.0)},
            peak_bytes=1,
            learned=None,
            processes=processes,
        )

    report = RewardReport(
        step_prompts=2,
        rounds=1,
        variants=[variant(1, 8.0, 30.0), variant(1, 9.0, 40.0), variant(2, 6.0, 27.0)],
        products_per_second=None,
        trained_comparisons=6,
    )
    assert report.scaling() == {2: {4: 0.75, 9: 0.9}}
    document = json.loads(json.dumps(report.document()))
    assert document["scaling"] == {"2": {"4": 0.75, "9": 0.9}}
    assert document["scaling_reason"] is None


def test_a_report_of_what_was_learned_alone_has_no_speeds():
    learned = Learned(3.0, [5.0], [6])
    variant = Variant(
        name="ours",
        comparisons_per_second={},
        flops_per_second={},
        peak_bytes=0,
        learned=learned,
    )
    report = RewardReport(
        step_prompts=2,
        rounds=1,
        variants=[variant],
        products_per_second=None,
        trained_comparisons=6,
    )
    assert report.aims() == []
    assert report.document()["products_per_second"] is None
    assert report.tables().renderables


def test_the_policy_report_compares_with_ours_without_ptx():
    report = PolicyReport(
        rounds=2,
        episodes=64,
        updates=[
            Update(
                name="ours",
                episodes_per_second=spread(8.0),
                peak_bytes=1,
                flops_per_second=spread(500.0),
            ),
            Update(name="TRL PPOTrainer", episodes_per_second=spread(1.6), peak_bytes=2),
        ],
        products_per_second=spread(1000.0),
        ptx_cost=spread(0.2),
        parts={"policy": 1.5},
    )
    assert report.ratios() == {"TRL PPOTrainer": 5.0}
    assert [aim.met for aim in report.aims()] == [True, False]
    assert json.loads(json.dumps(report.document()))["updates"][1]["product_share"] is None
    assert report.tables().renderables


def test_a_child_that_ends_is_named_with_the_end_of_its_log(tmp_path):
    with (
        pytest.raises(StartError, match=r"nobody ended in the middle.*No module named"),
        trainer("nobody", "deploy.bench.no_such_module", {}, tmp_path),
    ):
        pass


def test_a_child_answers_in_turn_and_says_how_much_memory_it_took(tmp_path, monkeypatch):
    package = tmp_path / "echoing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "from deploy.bench.training_line import Line\n"
        "line = Line()\n"
        "print('a library talks')\n"
        "while True:\n"
        "    line.tell({'ready': True})\n"
        "    line.tell({'heard': line.next()})\n"
        "    break\n"
    )
    root = training_turns._ROOT
    monkeypatch.setattr(training_turns, "_ROOT", f"{root}:{tmp_path}")
    with trainer("echo", "echoing", {"model": sys.executable}, tmp_path) as child:
        heard = child.ask(do="speed", answers=4)
    assert heard["heard"] == {"do": "speed", "answers": 4}
    assert heard["peak_bytes"] > 1 << 20
    assert "a library talks" in (tmp_path / "echo.log").read_text()


@pytest.mark.slow
def test_two_processes_answer_as_one(tmp_path, monkeypatch):
    package = tmp_path / "sharing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "from deploy.bench.training_line import Line\n"
        "from learning.training.distributed import is_first, processes, told_by_first\n"
        "from learning.training.distributed import sum_over_processes\n"
        "line = Line()\n"
        "with processes():\n"
        "    reply = {'ready': True}\n"
        "    while True:\n"
        "        if is_first():\n"
        "            line.tell(reply)\n"
        "        asked = told_by_first(line.next)\n"
        "        reply = {'sum': sum_over_processes(asked['number'])}\n"
    )
    monkeypatch.setattr(training_turns, "_ROOT", f"{training_turns._ROOT}:{tmp_path}")
    with trainer("two", "sharing", {}, tmp_path, processes=2) as children:
        assert children.ask(number=21)["sum"] == 42.0


def test_without_an_environment_for_it_trl_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(training_turns, "PEERS", tmp_path)
    assert "install.sh peers-training" in str(training_turns.trl_missing())
    (tmp_path / ".peers-training.sha256").write_text("")
    assert training_turns.trl_missing() is None


def test_what_is_measured_is_what_was_named_and_is_there(tmp_path, monkeypatch):
    targets = {"ours": "instructloop", "trl": "TRL"}
    said: list[str] = []

    def names(*only: str) -> list[str]:
        return measured_names(only, targets, trl="TRL", say=said.append)

    (tmp_path / ".peers-training.sha256").write_text("")
    monkeypatch.setattr(training_turns, "PEERS", tmp_path)
    assert names("trl", "ours") == ["instructloop", "TRL"]
    monkeypatch.setattr(training_turns, "PEERS", tmp_path / "missing")
    assert names("ours", "trl") == ["instructloop"]
    assert "not installed" in said[-1]
    with pytest.raises(StartError, match="nothing is left"):
        names("trl")
    with pytest.raises(StartError, match="theirs is none of ours, trl"):
        names("theirs")
