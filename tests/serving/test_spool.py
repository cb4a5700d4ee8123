"""The spool keeps entries in order, within its bound, through crashes and torn writes."""

import os

import pytest

from serving.spool import Entry, SpoolFull, new_spool, orphans

HEAD = 16
ENTRIES = [Entry(number, bytes([number]) * (number + 3)) for number in range(7)]


def open_spool(folder, max_bytes=10_000):
    return new_spool(folder, max_bytes)


def test_entries_come_back_in_order_and_the_file_is_reused(tmp_path):
    spool = open_spool(tmp_path)
    spool.write(ENTRIES[:3])
    spool.write(ENTRIES[3:])
    assert spool.read(10_000) == ENTRIES
    assert spool.read(1) == ENTRIES[:1]
    spool.advance(ENTRIES[:4])
    assert spool.read(10_000) == ENTRIES[4:]
    assert not spool.drained
    spool.advance(ENTRIES[4:])
    assert spool.drained
    spool.empty()
    spool.write(ENTRIES[5:])
    assert spool.read(10_000) == ENTRIES[5:]


def test_what_does_not_fit_is_refused_whole(tmp_path):
    size = sum(HEAD + len(entry.sealed) for entry in ENTRIES[:3])
    spool = open_spool(tmp_path, size)
    spool.write(ENTRIES[:2])
    with pytest.raises(SpoolFull):
        spool.write(ENTRIES[2:4])
    spool.write(ENTRIES[2:3])
    assert spool.read(10_000) == ENTRIES[:3]


def test_only_a_dead_processs_spool_is_adopted(tmp_path):
    living = open_spool(tmp_path)
    living.write(ENTRIES)
    assert orphans(tmp_path) == []
    living.close()  # the lock goes as it would with the process
    (orphan,) = orphans(tmp_path)
    assert orphan.writer == living.writer
    assert orphan.read(10_000) == ENTRIES


def test_an_empty_spool_leaves_no_file_and_a_full_one_stays(tmp_path):
    empty, full = open_spool(tmp_path), open_spool(tmp_path)
    full.write(ENTRIES)
    empty.close()
    full.close()
    (left,) = tmp_path.iterdir()
    assert full.writer in left.name
    assert left.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("missing", range(1, HEAD + len(ENTRIES[6].sealed)))
def test_a_torn_end_loses_only_the_entry_that_was_torn(tmp_path, missing):
    spool = open_spool(tmp_path)
    spool.write(ENTRIES)
    spool.close()
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - missing)
    (orphan,) = orphans(tmp_path)
    assert orphan.read(10_000) == ENTRIES[:6]


def test_garbled_bytes_are_never_delivered(tmp_path):
    spool = open_spool(tmp_path)
    spool.write(ENTRIES)
    spool.close()
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[2 * HEAD + len(ENTRIES[0].sealed)] ^= 1  # the first byte of the second entry
    path.write_bytes(bytes(data))
    (orphan,) = orphans(tmp_path)
    assert orphan.read(10_000) == ENTRIES[:1]


def test_orphans_come_oldest_first_and_strange_files_are_left_alone(tmp_path):
    (tmp_path / "notes.spool").write_bytes(b"x")
    for moment, writer in ((3, "c"), (1, "a"), (2, "b")):
        (tmp_path / f"{moment:013d}-{writer * 16}.spool").touch()
    assert [spool.writer[0] for spool in orphans(tmp_path)] == ["a", "b", "c"]
    assert (tmp_path / "notes.spool").read_bytes() == b"x"
