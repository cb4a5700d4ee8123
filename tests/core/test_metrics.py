"""What is exposed stays bounded, whatever comes in and however long the loop turns."""

import os
import subprocess
import sys
import textwrap
import urllib.request

import pytest

from core import metrics
from core.metrics import VERSIONS_SHOWN
from deploy.demo.service import free_port
from deploy.monitoring.advice import ADVICE, LABELS
from deploy.monitoring.reference import collectors


def versions_of(name: str) -> set[str]:
    return {
        sample.labels["policy_version"]
        for family in metrics.registry().collect()
        for sample in family.samples
        if sample.name == name
    }


def test_of_many_versions_the_newest_are_shown_with_those_that_are_no_number():
    many = [f"v{number:04d}" for number in range(9990, 9990 + 3 * VERSIONS_SHOWN)]
    for version in ["none", "v0000", *many]:
        metrics.TOKENS.labels("prompt", version).inc()
    shown = versions_of("instructloop_tokens_total")
    assert {*many[-VERSIONS_SHOWN + 1 :], "none"} <= shown
    assert not shown & {*many[:-VERSIONS_SHOWN]}
    assert f"{many[-1]}" in metrics.render().decode()


def test_the_files_of_many_processes_are_bounded_in_the_same_way(tmp_path):
    program = textwrap.dedent("""
        import sys
        from core import metrics
        for number in range(200):
            metrics.TOKENS.labels("prompt", f"v{number:04d}").inc()
        text = metrics.render().decode()
        print(text.count('instructloop_tokens_total{'), 'v0199' in text, 'v0140' in text)
    """)
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    run = [sys.executable, "-c", program]
    subprocess.run(run, check=True, env=environment, capture_output=True)
    said = subprocess.run(run, check=True, env=environment, capture_output=True, text=True).stdout
    assert said.split() == [str(VERSIONS_SHOWN + 1), "True", "False"]  # the first one, too


def test_every_metric_and_every_label_is_explained_and_nothing_else_is():
    names = {name.removeprefix("instructloop_") for name in collectors()}
    assert names == set(ADVICE)
    assert {label for one in collectors().values() for label in one._labelnames} == set(LABELS)
    assert not {"user", "key", "prompt", "tenant", "rater", "path"} & set(LABELS)


def test_a_process_of_its_own_shows_its_metrics_on_its_own_port_and_one_of_several_does_not(
    monkeypatch, tmp_path
):
    port = free_port()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics.show(port, host="127.0.0.1")
    metrics.show(None, host="127.0.0.1")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    metrics.show(port, host="127.0.0.1")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        assert b"instructloop_swaps_total" in reply.read()
