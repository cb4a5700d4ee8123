"""A worker on another machine has the versions that its stage reads."""

from types import SimpleNamespace

import pytest

from core.errors import NotFound
from learning.rounds.fetching import fetch_versions
from learning.rounds.folders import Folders
from learning.rounds.publish import publish_base
from tests.learning.test_publish import model_folder


@pytest.fixture
async def elsewhere(redis, settings, state_dir, tmp_path):
    """A worker whose state folder is empty, of a service that keeps versions in a second folder."""
    shared = settings.model_copy(update={"policies_url": str(tmp_path / "kept")})
    await publish_base(redis, shared, model_folder(state_dir / "base"))
    return SimpleNamespace(redis=redis, settings=shared, folders=Folders.of(tmp_path / "other"))


async def test_what_is_missing_is_fetched(elsewhere):
    await fetch_versions(elsewhere, ["v0000", "v0000", ""])
    assert (elsewhere.folders.policy("v0000") / "model.safetensors").is_file()
    with pytest.raises(NotFound):
        await fetch_versions(elsewhere, ["v0009"])


async def test_without_a_url_nothing_is_looked_up(elsewhere, settings):
    elsewhere.settings = settings
    await fetch_versions(elsewhere, ["v0009"])
    assert not elsewhere.folders.policies.exists()
