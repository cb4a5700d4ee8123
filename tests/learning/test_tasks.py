"""The Celery app: what it may load, how it is set up, what it refuses."""

import subprocess
import sys

import pytest
from celery import Celery

from core.errors import StartError
from core.settings import Settings
from learning.worker import tasks
from learning.worker.tasks import CONTROL, LEARNING, configuration


def test_a_worker_never_imports_torch():
    code = (
        "import sys, learning.worker.tasks; heavy = {'torch', 'transformers', 'vllm', 'spacy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_messages_are_json_acknowledged_early_and_kept_apart_by_prefix(settings):
    chosen = configuration(settings)
    assert chosen["accept_content"] == ["json"]
    assert chosen["task_serializer"] == "json"
    assert chosen["task_acks_late"] is False
    assert chosen["broker_transport_options"] == {"global_keyprefix": "{il}:broker:"}
    assert chosen["broker_url"].startswith("redis+socket://")


def test_control_and_learning_have_queues_of_their_own(settings):
    routes = configuration(settings)["task_routes"]
    assert routes["run_stage"] == {"queue": LEARNING}
    assert routes["tick"] == routes["ingest"] == {"queue": CONTROL}


def test_beat_ticks_every_second_and_a_tick_goes_bad_soon(settings):
    tick = configuration(settings)["beat_schedule"]["tick"]
    assert tick["schedule"] == 1.0
    assert 1.0 < tick["options"]["expires"] < 10.0


@pytest.mark.parametrize("connect", ["connection_for_read", "connection_for_write"])
def test_a_broker_that_is_away_is_looked_for_without_end_and_without_long_pauses(
    settings, connect, monkeypatch
):
    slept, pauses = [], []
    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    app = Celery("another", amqp=tasks.Messages, set_as_current=False)
    app.conf.update(configuration(settings))

    def give_up_in_the_end(_, pause):
        pauses.append(pause)
        if len(pauses) == 200:
            raise KeyboardInterrupt

    assert configuration(settings)["broker_connection_max_retries"] is None
    with pytest.raises(KeyboardInterrupt):
        getattr(app, connect)().ensure_connection(give_up_in_the_end, None)
    assert pauses[:4] == [0.5, 1.0, 1.5, 2.0]
    assert set(pauses[4:]) == {2.0}
    assert sum(slept) == sum(pauses[:-1])
    assert tasks.app.amqp.Connection is tasks.PatientConnection


@pytest.mark.parametrize("role", [tasks.run_worker, tasks.run_beat])
def test_a_cluster_for_a_broker_stops_the_start(state_dir, role):
    settings = Settings(state_dir=state_dir, redis_broker_url="redis+cluster://h:7000")
    with pytest.raises(StartError, match="cannot be a Redis Cluster"):
        role(settings)
