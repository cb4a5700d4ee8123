"""Secrets that are exchanged under running processes: believed at once, used later, deleted."""

import errno
import subprocess
import sys
import threading
import time

import pytest

from core import ids
from core import keyring as module
from core.errors import NotFound, StartError
from core.keyring import ENGINE_DATA, IDS, Keyring


@pytest.fixture
def at_once(monkeypatch):
    """Every look is at the folder."""
    monkeypatch.setattr(module, "REREAD_SECONDS", 0.0)


@pytest.mark.parametrize("name", [IDS, ENGINE_DATA])
def test_a_successor_is_believed_before_it_is_used(keyring, name, monkeypatch):
    first = keyring.present(name)
    assert keyring.accepted(name) == (first,)
    now = time.time()
    begins = keyring.succeed(name, now=now, lead=50.0)
    assert begins == pytest.approx(now + 50.0, abs=0.01)
    second, other = keyring.accepted(name)
    assert (other, keyring.present(name)) == (first, first)
    assert len(second) == len(first)
    assert second != first
    monkeypatch.setattr(time, "time", lambda: begins - 0.01)
    assert keyring.present(name) == first
    monkeypatch.setattr(time, "time", lambda: begins)
    assert keyring.present(name) == second
    (path,) = [file for file in keyring.folder.iterdir() if str(int(begins * 1000)) in file.name]
    assert path.stat().st_mode & 0o777 == 0o600
    assert keyring.files(name) == [name, path.name]


def test_there_may_be_several_and_any_but_the_last_may_be_deleted(keyring, at_once):
    first = keyring.present(IDS)
    keyring.succeed(IDS, now=1000.0)
    keyring.succeed(IDS, now=2000.0, lead=0.0)
    third, second, same = keyring.accepted(IDS)
    assert same == first == keyring.tag_key()
    assert keyring.files(IDS) == ["mac.key", "mac-1300000.key", "mac-2000000.key"]
    assert keyring.present(IDS) == third
    (keyring.folder / "mac.key").unlink()
    assert keyring.accepted(IDS) == (third, second)
    (keyring.folder / "mac-2000000.key").unlink()
    assert keyring.present(IDS) == second
    assert keyring.tag_key() == first
    assert Keyring(keyring.folder).files(IDS) == ["mac-1300000.key"]


def test_one_that_has_not_begun_is_used_where_it_is_the_only_one(keyring, at_once):
    keyring.succeed(IDS, now=time.time())
    new, _ = keyring.accepted(IDS)
    (keyring.folder / "mac.key").unlink()
    assert keyring.present(IDS) == new


def test_every_process_knows_a_successor_before_it_is_used():
    """Reread, told to engines, read by them: with much to spare for clocks and network folders."""
    assert module.LEAD_SECONDS >= 5 * module.REREAD_SECONDS


def test_a_running_process_takes_up_what_another_one_made(keyring, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    before = keyring.accepted(IDS)
    code = (
        "import sys; from pathlib import Path; from core.keyring import Keyring;"
        "Keyring(Path(sys.argv[1])).succeed('mac.key', now=5.0, lead=0.0)"
    )
    subprocess.run([sys.executable, "-c", code, str(keyring.folder)], check=True)
    clock[0] += module.REREAD_SECONDS - 1
    assert keyring.accepted(IDS) == before
    clock[0] += 1
    after = keyring.accepted(IDS)
    assert after[1:] == before
    assert keyring.present(IDS) == after[0]


def test_a_folder_that_is_away_or_a_file_that_others_can_read_stops_nobody(keyring, at_once):
    known = keyring.accepted(IDS)
    keyring.succeed(IDS, now=1.0)
    successor = keyring.folder / keyring.files(IDS)[-1]
    after = keyring.accepted(IDS)
    successor.chmod(0o644)
    assert keyring.accepted(IDS) == after
    away = keyring.folder.rename(keyring.folder.with_name("away"))
    assert keyring.accepted(IDS) == after
    away.rename(keyring.folder)
    module._lines.clear()  # a process that starts
    with pytest.raises(StartError, match="chmod 600"):
        keyring.accepted(IDS)
    successor.chmod(0o600)
    assert keyring.accepted(IDS) == after != known


def test_an_installation_of_before_keeps_its_ids_and_the_marks_of_its_prompts(keyring):
    key = keyring.key("mac")  # as every release made it
    tag = ids.prompt_tag(key, "acme", b"a prompt")
    about = {"tenant": "acme", "key_id": "0a1b2c3d", "choices": 1, "stored": True, "tag": tag}
    token = ids.new_token(key, **about)
    keyring.succeed(IDS, now=time.time(), lead=0.0)
    assert keyring.present(IDS) != key
    assert ids.read_id(keyring.accepted(IDS), "acme", token).prompt_tag == tag
    assert ids.prompt_tag(keyring.tag_key(), "acme", b"a prompt") == tag
    young = ids.new_token(keyring.present(IDS), **about)
    assert ids.read_id(keyring.accepted(IDS), "acme", young).prompt_tag == tag
    with pytest.raises(NotFound):
        ids.read_id([key], "acme", young)
    with pytest.raises(NotFound):
        ids.read_id(keyring.accepted(IDS), "another", young)


def test_where_no_copy_can_be_made_prompts_are_marked_as_ever(keyring, monkeypatch):
    first = keyring.present(IDS)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write_beside", full)
        with pytest.raises(OSError, match="No space"):
            keyring.succeed(IDS, now=time.time())  # else marks would change with the first key
        assert keyring.tag_key() == first
    assert not (keyring.folder / "tag.key").exists()
    module._cache.clear()  # a process that starts when there is room again
    assert keyring.tag_key() == first
    assert (keyring.folder / "tag.key").read_bytes() == first


def test_nobody_who_serves_waits_for_a_folder_that_hangs(keyring, at_once, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    known = keyring.accepted(IDS)
    keyring.succeed(IDS, now=1.0)
    module._lines[keyring.folder / IDS] = (0.0, tuple((0.0, secret) for secret in known))
    answers, looks, read = threading.Event(), [], module._read_line

    def hangs(path):
        looks.append(path)
        answers.wait(30.0)
        return read(path)

    monkeypatch.setattr(module, "_read_line", hangs)
    assert [keyring.accepted(IDS) for _ in range(3)] == [known] * 3
    assert len(looks) == 1
    answers.set()
    module._looks[keyring.folder / IDS].join()
    assert keyring.accepted(IDS)[1:] == known


def test_other_files_of_like_names_are_no_successors(keyring):
    first = keyring.accepted(IDS)
    for name in ("mac-.key", "mac-1.key.bak", "mac-x.key", ".mac-1.key.99.ab", "mac-1.token"):
        (keyring.folder / name).write_bytes(b"x" * 32)
    module._lines.clear()
    assert keyring.accepted(IDS) == first
