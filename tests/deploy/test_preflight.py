"""What stops a start says in one line what to do."""

import json
import socket
import subprocess
import sys

import pytest

from core.errors import StartError
from deploy.preflight import check_model, check_port, lock_state_dir


def test_a_port_in_use_is_named_with_the_option_to_change_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"127.0.0.1:{port}.*--port"):
            check_port("127.0.0.1", port)


def test_a_second_start_on_one_state_folder_is_refused_and_names_the_first(tmp_path):
    code = f"""
import sys
from pathlib import Path
from deploy.preflight import lock_state_dir
lock = lock_state_dir(Path({str(tmp_path)!r}))
print("locked", flush=True)
sys.stdin.read()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(StartError, match=str(first.pid)):
        lock_state_dir(tmp_path)
    first.communicate("")
    lock_state_dir(tmp_path).close()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "config.json"),
        ({"config.json": "{"}, "config.json"),
        ({"config.json": "{}"}, "tokenizer"),
        ({"config.json": "{}", "tokenizer.json": "{}"}, "safetensors"),
    ],
)
def test_a_broken_model_folder_is_refused_with_what_is_missing(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(StartError, match=said):
        check_model(str(tmp_path))


def test_a_complete_model_folder_and_a_hub_id_pass(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_model(str(tmp_path))
    check_model("organisation/model")


def test_a_model_folder_that_is_not_there_is_named():
    with pytest.raises(StartError, match="/nowhere/model"):
        check_model("/nowhere/model")


def test_a_bad_regression_suite_stops_a_start_and_needs_no_torch_to_be_found(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "expected": "b"}\n{"prompt": "a"}\n')
    code = f"""
import sys
from core.errors import StartError
from core.settings import Settings
from deploy.preflight import check_suites
off = Settings(learning={{"enabled": False, "gate": {{"suites": [{str(path)!r}]}}}})
check_suites(off)
try:
    check_suites(Settings(learning={{"gate": {{"suites": [{str(path)!r}]}}}}))
except StartError as error:
    print(error.message)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said, loaded = ended.stdout.splitlines()
    assert f"{path}, line 2" in said
    assert "INSTRUCTLOOP_LEARNING__GATE__SUITES" in said
    assert loaded == "[]"
