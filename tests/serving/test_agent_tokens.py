"""An agent tells its engine which tokens open it."""

import asyncio
import json
import time

import pytest

from core import keyring as keyrings
from core.engine.client import EngineClient
from core.engine.guard import tokens_file
from core.keyring import ENGINE_DATA
from serving import agent_tokens
from serving.agent import Agent
from tests.conftest import eventually


@pytest.fixture
def agent(settings, keyring, redis, state_dir, monkeypatch):
    monkeypatch.setattr(keyrings, "REREAD_SECONDS", 0.0)
    made = Agent("engine-0", settings, keyring, redis, state_dir / "e.sock")
    made.client = EngineClient(socket=made.socket, data_token="none", control_token="c")
    return made


async def test_it_is_told_of_each_change_and_its_client_sends_what_is_used_now(agent):
    path = tokens_file(agent.socket)
    told = agent_tokens.tell(agent, ())
    first = agent_tokens.present(agent)
    assert json.loads(path.read_text()) == {"data": [first], "control": agent.control_token}
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    assert agent_tokens.tell(agent, told) == told
    assert not path.exists()  # nothing changed
    agent.keyring.succeed(ENGINE_DATA, now=time.time(), lead=50.0)
    told = agent_tokens.tell(agent, told)
    assert json.loads(path.read_text())["data"] == list(told)
    assert (len(told), told[1], agent.client.data_token) == (2, first, first)
    agent.keyring.succeed(ENGINE_DATA, now=time.time(), lead=0.0)
    told = agent_tokens.tell(agent, told)
    assert agent.client.data_token == agent_tokens.present(agent) not in {first, ""}
    (agent.keyring.folder / ENGINE_DATA).unlink()
    assert first not in agent_tokens.tell(agent, told)
    assert first not in json.loads(path.read_text())["data"]


async def test_a_folder_that_cannot_be_written_for_a_while_ends_nothing(agent, monkeypatch):
    monkeypatch.setattr(agent_tokens, "EVERY_SECONDS", 0.01)
    away = agent.socket.with_name("away")
    agent.socket = away / "e.sock"
    telling = asyncio.create_task(agent_tokens.renew(agent))
    await asyncio.sleep(0.05)
    away.mkdir()
    await eventually(tokens_file(agent.socket).exists)
    assert not telling.done()
    telling.cancel()
