"""Secrets on a volume that several machines share."""

import pytest

from core.errors import StartError
from core.keyring import Keyring


@pytest.fixture
def volume(tmp_path):
    """A volume that a cluster gave to the group of a pod: its setgid bit is set."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    folder.chmod(0o2770)
    return folder


def test_a_group_may_read_where_the_volume_is_the_group_s(volume):
    secret = volume / "engine-data.token"
    secret.write_text("a token")
    secret.chmod(0o660)
    assert Keyring(volume).token("engine-data.token") == "a token"


def test_all_the_world_may_not_even_there(volume):
    secret = volume / "engine-data.token"
    secret.write_text("a token")
    secret.chmod(0o664)
    with pytest.raises(StartError, match="chmod 600"):
        Keyring(volume).token("engine-data.token")


def test_in_a_folder_of_one_s_own_only_oneself_may(volume):
    volume.chmod(0o700)
    secret = volume / "engine-data.token"
    secret.write_text("a token")
    secret.chmod(0o640)
    with pytest.raises(StartError, match="chmod 600"):
        Keyring(volume).token("engine-data.token")


def test_what_it_makes_is_for_the_owner_alone(volume):
    Keyring(volume).token("made.token")
    assert (volume / "made.token").stat().st_mode & 0o777 == 0o600
