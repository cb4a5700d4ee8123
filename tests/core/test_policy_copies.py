"""Copies of versions on one machine: what is used stays, and of the rest the oldest goes first."""

import multiprocessing
import os
import shutil

import pytest

from core.policy_copies import Copies

MIB = 1 << 20


@pytest.fixture
def local(tmp_path):
    return tmp_path / "policies"


def fetched(copies: Copies, version: str, *, size: int = 7) -> None:
    """A copy as an agent makes it, held."""
    copies.hold(version)
    folder = copies.local / version
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w" * size)


def folders(local):
    return sorted(path.name for path in local.iterdir())


def test_the_copies_used_longest_ago_go_until_so_many_are_left(local):
    copies = Copies(local)
    for version in ("v0001", "v0002", "v0003", "v0004", "v0005"):
        fetched(copies, version)
        copies.release(but=[])
    copies.hold("v0001")
    copies.release(but=[])  # used again, and so the newest
    assert copies.trim({"v0002"}, most=2, most_bytes=None) == ["v0003", "v0004"]
    assert folders(local) == [".copies", "v0001", "v0002", "v0005"]
    assert folders(local / ".copies") == ["v0001", "v0002", "v0005"]
    assert copies.trim({"v0002"}, most=2, most_bytes=None) == []
    assert copies.trim((), most=0, most_bytes=None) == ["v0002", "v0005", "v0001"]
    assert folders(local) == [".copies"]


def test_bytes_bound_all_copies_together_and_what_must_stay_stays(local):
    copies = Copies(local)
    for version in ("v0001", "v0002", "v0003"):
        fetched(copies, version, size=MIB)
    copies.release(but=["v0003"])
    assert copies.size() == 3 * MIB
    assert copies.trim((), most=9, most_bytes=3 * MIB) == []
    assert copies.trim((), most=9, most_bytes=3 * MIB - 1) == ["v0001"]
    assert copies.trim({"v0002"}, most=9, most_bytes=1) == []
    assert copies.size() == 2 * MIB


def test_what_another_process_uses_stays_until_it_has_died(local):
    first, other = Copies(local), Copies(local)
    fetched(first, "v0001")
    first.release(but=[])
    context = multiprocessing.get_context("fork")
    holds, goes = context.Event(), context.Event()

    def use() -> None:
        other.hold("v0001")
        holds.set()
        goes.wait(20)
        os._exit(9)  # as by kill -9: nothing is let go by hand

    user = context.Process(target=use)
    user.start()
    assert holds.wait(20)
    assert first.trim((), most=0, most_bytes=None) == []
    assert not first.drop("v0001")
    goes.set()
    user.join(20)
    assert first.trim((), most=0, most_bytes=None) == ["v0001"]


def test_a_folder_that_was_made_here_is_no_copy_and_is_never_removed(local):
    (local / "v0001").mkdir(parents=True)
    copies = Copies(local)
    copies.hold("v0001")
    copies.release(but=[])
    assert copies.trim((), most=0, most_bytes=0) == []
    assert not copies.drop("v0001")
    assert folders(local) == ["v0001"]


def test_what_a_worker_makes_its_own_stays_even_if_an_engine_fetched_it(local):
    engine, worker = Copies(local), Copies(local)
    fetched(engine, "v0001")
    worker.hold("v0001")
    worker.own("v0001")
    engine.release(but=[])
    assert engine.trim((), most=0, most_bytes=None) == []
    engine.hold("v0001")
    assert not engine.is_copy("v0001")
    assert folders(local / ".copies") == []
    assert (local / "v0001").is_dir()


def test_what_dead_processes_left_goes_with_the_next_that_wants_the_version(local):
    copies = Copies(local)
    fetched(copies, "v0001")
    shutil.copytree(local / "v0001", local / ".fetched-v0001-4711")
    (local / "v0001").rename(local / ".trimmed-v0001")  # killed in the middle of removing it
    beside = local / ".fetched-v00010-4711"
    beside.mkdir()
    copies.hold("v0002")
    copies.release(but=["v0002"])
    Copies(local).hold("v0001")
    assert folders(local) == [".copies", ".fetched-v00010-4711"]
    assert copies.drop("v0001") is False  # it is held: to be fetched now
    other = Copies(local)
    shutil.copytree(beside, local / ".fetched-v0002-12")
    assert other.trim((), most=0, most_bytes=None) == []
    copies.release(but=[])
    assert other.trim((), most=0, most_bytes=None) == ["v0002"]
    assert folders(local) == [".copies", ".fetched-v00010-4711"]


def test_what_another_engine_removes_at_the_same_moment_and_a_disk_that_fails_stop_nobody(
    local, monkeypatch
):
    copies, other = Copies(local), Copies(local)
    for version in ("v0001", "v0002"):
        fetched(copies, version)
    copies.release(but=[])
    stat = type(local).stat

    def late(path, **options):
        if path.name == "v0001" and path.parent.name == ".copies" or path.parent.name == "v0001":
            other.drop("v0001")
        return stat(path, **options)

    monkeypatch.setattr(type(local), "stat", late)
    assert copies.size() == 7
    assert copies.trim((), most=1, most_bytes=None) == []
    monkeypatch.undo()

    def fails(*what, **how):
        raise OSError("the disk fails")

    monkeypatch.setattr(os, "utime", fails)
    copies.hold("v0002")
    copies.release(but=[])
    assert other.drop("v0002")  # nobody holds it
