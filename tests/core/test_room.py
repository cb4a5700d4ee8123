"""A disk that fills: learning stops first, logging next, feedback last."""

import errno
import logging
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from core import metrics, room
from core.room import KINDS, Room
from core.setting_groups import RoomSettings

ROOM = RoomSettings(learning_mib=100, logging_mib=50, feedback_mib=10)


@pytest.fixture
def disk(monkeypatch):
    """A disk whose free MiB a test may set, and a clock that it may move."""
    told = SimpleNamespace(free=1000, now=0.0, looks=0)

    def statvfs(_):
        told.looks += 1
        if told.free is None:
            raise OSError(errno.EIO, "it is broken")
        return SimpleNamespace(f_bavail=told.free * 256, f_frsize=4096)

    monkeypatch.setattr(room, "statvfs", statvfs)
    monkeypatch.setattr(room.time, "monotonic", lambda: told.now)
    return told


def stopped(looking: Room) -> list[str]:
    return [what for what in KINDS if looking.lacking(what)]


def test_as_the_disk_fills_one_thing_after_the_other_stops_and_goes_on_again(disk, tmp_path):
    looking = Room(tmp_path, ROOM)
    for free, expected in (
        (100, []),
        (99, ["learning"]),
        (50, ["learning"]),
        (49, ["learning", "logging"]),
        (9, ["learning", "logging", "feedback"]),
        (70, ["learning"]),
        (200, []),
    ):
        disk.free, disk.now = free, disk.now + 1.0
        assert stopped(looking) == expected, free
        assert metrics.DISK_FREE._value.get() == free << 20
        shown = [what for what in KINDS if metrics.DISK_STOPPED.labels(what)._value.get()]
        assert shown == expected


def test_it_says_what_is_needed_once_and_of_feedback_loudly(disk, tmp_path, caplog):
    looking = Room(tmp_path, ROOM)
    disk.free = 9
    assert looking.lacking("feedback") == "9 MiB of disk are free, feedback needs 10"
    disk.now = 5.0
    looking.lacking("feedback")
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.WARNING, logging.ERROR]
    caplog.clear()
    disk.free, disk.now = 60, 10.0
    looking.lacking("logging")
    assert [record.message.split()[0] for record in caplog.records] == ["logging", "feedback"]


def test_the_disk_is_looked_at_once_a_second_and_one_that_says_nothing_stops_nothing(
    disk, tmp_path
):
    looking = Room(tmp_path, ROOM)
    for _ in range(50):
        stopped(looking)
    assert disk.looks == 1
    disk.free, disk.now = None, 1.0
    assert stopped(looking) == []
    assert disk.looks == 2


def test_nothing_stops_where_the_settings_say_so_and_their_order_is_kept(disk, tmp_path):
    disk.free = 0
    never = RoomSettings(learning_mib=0, logging_mib=0, feedback_mib=0)
    assert stopped(Room(tmp_path, never)) == []
    with pytest.raises(ValidationError, match="each at most the one before"):
        RoomSettings(learning_mib=10, logging_mib=20, feedback_mib=5)
