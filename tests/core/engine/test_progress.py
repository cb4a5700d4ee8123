"""An engine that has work and shows nothing for it is told from one that is idle or busy."""

from core.engine.progress import Progress, tokens

METRICS = b"""# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="instructloop"} 1234.0
vllm:generation_tokens_created{engine="0",model_name="instructloop"} 1.79e+09
vllm:prompt_tokens_total{engine="0",model_name="instructloop"} 2e+03
vllm:prompt_tokens_cached_total{engine="0",model_name="instructloop"} 512.0
vllm:num_requests_running{engine="0",model_name="instructloop"} 3.0
"""


def test_tokens_are_those_read_and_written():
    assert tokens(METRICS) == 3234.0
    assert tokens(b"{}") == 0.0


def test_an_engine_that_generates_is_never_stuck_however_long_its_queue():
    progress = Progress()
    stuck = [progress.stuck_for(tokens=10.0 + t, in_flight=99, now=5.0 * t) for t in range(50)]
    assert stuck == [0.0] * 50


def test_an_idle_engine_is_not_stuck():
    progress = Progress()
    assert progress.stuck_for(tokens=7.0, in_flight=1, now=0.0) == 0.0
    assert [progress.stuck_for(tokens=7.0, in_flight=0, now=t) for t in (10.0, 900.0)] == [0, 0]


def test_an_engine_with_work_and_no_progress_is_stuck_though_its_clients_leave():
    progress = Progress()
    progress.stuck_for(tokens=7.0, in_flight=4, now=0.0)
    assert progress.stuck_for(tokens=7.0, in_flight=4, now=10.0) == 0.0  # since now
    assert progress.stuck_for(tokens=7.0, in_flight=0, now=70.0) == 60.0
    assert progress.stuck_for(tokens=7.0, in_flight=2, now=130.0) == 120.0
    assert progress.stuck_for(tokens=8.0, in_flight=2, now=135.0) == 0.0


def test_an_engine_that_does_not_even_answer_is_stuck():
    progress = Progress()
    assert progress.stuck_for(tokens=None, in_flight=0, now=5.0) == 0.0
    assert progress.stuck_for(tokens=None, in_flight=0, now=25.0) == 20.0
    assert progress.stuck_for(tokens=3.0, in_flight=0, now=30.0) == 0.0
