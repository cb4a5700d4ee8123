import socket

import pytest

from core.engine.address import (
    Address,
    check_free,
    is_of_this_machine,
    read_advertised,
    read_listen,
)
from core.errors import StartError
from core.settings import load_settings


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("0.0.0.0:8100", "0.0.0.0", 8100),
        ("10.1.2.3:1", "10.1.2.3", 1),
        ("localhost:65535", "localhost", 65535),
        ("[::]:8100", "::", 8100),
        ("[fd00::7]:8100", "fd00::7", 8100),
    ],
)
def test_an_address_is_read_and_written_the_same(text, host, port):
    assert read_listen(text) == Address(host, port)
    assert str(read_listen(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "8100",
            ":8100",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:-1",
            "host:8x",
            "::1:80",
        ),
        *("http://host:80", "ho st:80", "a@host:80", "[]:80", "[host:80", "host]:80", "host:٣"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="HOST:PORT|port"):
        read_listen(text)


def test_an_engine_on_every_address_is_reached_by_loopback_here_and_by_name_elsewhere():
    for every, own in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]")):
        assert Address(every, 81).own_url == f"http://{own}:81"
        assert Address(every, 81).url("node-3") == "http://node-3:81"
    assert Address("10.1.2.3", 81).own_url == "http://10.1.2.3:81"
    assert Address("10.1.2.3", 81).url("node-3") == "http://10.1.2.3:81"
    assert Address("fd00::7", 81).url("node-3") == "http://[fd00::7]:81"


@pytest.mark.parametrize(
    "url", ["http://10.1.2.3:8100", "http://pod-1.engines:8100/", "http://[fd00::7]:81"]
)
def test_a_url_of_one_engine_is_taken(url):
    assert read_advertised(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *("10.1.2.3:8100", "https://host:81", "http://host", "http://:81", "http://host:81/v1"),
        *("http://user:secret@host:81", "http://host:81?a=b", "http://host:0x", "http://[::1:81"),
        *("http://0.0.0.0:8100", "http://[::]:8100", "unix:/run/e.sock", "http://host:99999"),
    ],
)
def test_what_is_no_url_of_one_engine_is_refused(url):
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        read_advertised(url)


def test_a_port_in_use_is_said_with_the_setting_that_chooses_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartError, match="INSTRUCTLOOP_ENGINE__LISTEN") as caught:
            check_free(address)
    assert str(address) in caught.value.message
    check_free(address)


def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(StartError, match=r"192\.0\.2\.1:8100"):  # kept for examples: nobody has it
        check_free(Address("192.0.2.1", 8100))


@pytest.mark.parametrize(
    ("client", "server", "near"),
    [
        (("127.0.0.1", 5), ("127.0.0.1", 8100), True),
        (("127.0.0.1", 5), ("10.1.2.3", 8100), True),
        (("::1", 5), ("::1", 8100), True),
        (("10.1.2.3", 5), ("10.1.2.3", 8100), True),
        (("::ffff:127.0.0.1", 5), ("::ffff:127.0.0.1", 8100), True),
        (("fe80::1%eth0", 5), ("fe80::1%eth0", 8100), True),
        (("10.1.2.4", 5), ("10.1.2.3", 8100), False),
        (("::ffff:10.1.2.4", 5), ("10.1.2.3", 8100), False),
        (("somebody", 5), ("somebody", 8100), False),
        (None, ("10.1.2.3", 8100), False),
        (None, None, False),
        ((), ("10.1.2.3", 8100), False),
    ],
)
def test_only_a_connection_between_two_ends_of_one_machine_is_near(client, server, near):
    assert is_of_this_machine(client, server) is near


# --- as settings ----------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Settings from variables, such as ENGINE__LISTEN."""
    monkeypatch.chdir(tmp_path)

    def load(**variables: str):
        for name, value in variables.items():
            monkeypatch.setenv(f"INSTRUCTLOOP_{name}", value)
        return load_settings()

    return load


def test_the_settings_of_a_pod(given, tmp_path):
    settings = given(
        ENGINE__LISTEN="0.0.0.0:8100",
        ENGINE__ADVERTISE="http://10.1.2.3:8100",
        ENGINE__NAME="il-engine-0",
        SECRETS_DIR="/shared/secrets",
    )
    assert settings.engine.listen == "0.0.0.0:8100"
    assert settings.engine.advertise == "http://10.1.2.3:8100"
    assert settings.engine.name == "il-engine-0"
    assert str(settings.secrets) == "/shared/secrets"


def test_without_a_folder_of_their_own_secrets_lie_in_the_state_folder(given, tmp_path):
    assert given(STATE_DIR=str(tmp_path)).secrets == tmp_path / "secrets"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"ENGINE__LISTEN": "8100"}, "ENGINE__LISTEN.*HOST:PORT"),
        ({"ENGINE__LISTEN": ""}, "ENGINE__LISTEN.*HOST:PORT"),
        ({"ENGINE__LISTEN": "a:81", "ENGINE__ADVERTISE": "a:81"}, "ENGINE__ADVERTISE.*http://"),
        ({"ENGINE__ADVERTISE": "http://a:81"}, "ENGINE.*advertise needs listen"),
        ({"ENGINE__NAME": "a b"}, "ENGINE__NAME"),
        ({"ENGINE__NAME": "a:b"}, "ENGINE__NAME"),
        ({"ENGINE__NAME": "x" * 129}, "ENGINE__NAME"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_its_name(given, variables, named):
    with pytest.raises(StartError, match=f"INSTRUCTLOOP_{named}"):
        given(**variables)
