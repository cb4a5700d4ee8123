"""What a process loads: learning's libraries cost time and memory, so gateways go without."""

import json
import subprocess
import sys

import pytest

from deploy.document import ROOT

HEAVY = {"pyarrow", "torch", "transformers", "vllm", "spacy", "celery"}


def loaded_by(module: str) -> set[str]:
    """The packages that a fresh process has loaded after importing a module."""
    code = f"import json, sys, {module}; print(json.dumps([*sys.modules]))"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(said.stdout)}


@pytest.mark.parametrize(
    ("module", "may"),
    [("serving.app", set()), ("serving.agent", set()), ("feedback.ingest", set())]
    + [("learning.worker.tasks", {"celery", "pyarrow"})],
)
def test_a_process_loads_no_library_that_it_does_not_need(module, may):
    loaded = loaded_by(module)
    assert module.partition(".")[0] in loaded
    assert loaded & HEAVY <= may
