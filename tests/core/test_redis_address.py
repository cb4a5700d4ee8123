"""What a URL of Redis says, and what it cannot be."""

import pytest

from core.errors import StartError
from core.redis_address import Wait, read_address, tls_options_of, with_options, with_settings
from core.redis_client import limits_url, redis_url
from core.settings import Settings


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:p%2Fw@host:6379/2",
        "rediss://host:6380/0?ssl_check_hostname=false",
        "unix://:pw@/run/il/redis.sock?db=1",
        "unix:///run/redis.sock?db=0",
    ],
)
def test_the_url_of_one_redis_is_left_as_it_is(url):
    address = read_address(url)
    assert address.url == url
    assert not address.sentinels
    assert not address.nodes


def test_sentinels_are_named_with_the_service_that_they_watch():
    address = read_address("redis+sentinel://me:p%2Fw@a:1,[::1]:2,c.example/records/3")
    assert address.sentinels == (("a", 1), ("::1", 2), ("c.example", 26379))
    assert (address.service, address.database) == ("records", 3)
    assert address.login == ("me", "p/w")
    assert address.url == "redis://me:p%2Fw@sentinel/3"
    assert not address.is_tls


def test_sentinels_may_have_a_login_of_their_own_and_tls_is_said_by_the_scheme():
    address = read_address(
        "rediss+sentinel://a,b/records?sentinel_username=watch&sentinel_password=s%26t"
        "&ssl_ca_certs=%2Fca.pem"
    )
    assert address.sentinel_login == ("watch", "s&t")
    assert address.login == (None, None)
    assert address.url == "rediss://sentinel/0?ssl_ca_certs=%2Fca.pem"
    assert address.is_tls
    assert tls_options_of(address) == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://a:1", "names no service"),
        ("redis+sentinel://a:1,b:2/", "names no service"),
        ("redis+sentinel://a:x/records", "is no HOST:PORT"),
        ("redis+sentinel://a,,b/records", "is no HOST:PORT"),
        ("redis+cluster://a:1/1", "no database but 0"),
        ("redis+cluster://a:1?db=2", "no database but 0"),
        ("redis+cluster://a:1/records", "no database but 0"),
        ("redis+cluster://", "a node that is no HOST:PORT"),
        ("redis+cluster://a:1,b:x", "a node that is no HOST:PORT"),
        ("redis-cluster://a:1", "not redis-cluster://"),
    ],
)
def test_what_cannot_be_is_refused_with_the_form_to_use(url, says):
    with pytest.raises(StartError, match=says) as refused:
        read_address(url)
    form = "redis+cluster://" if "cluster" in url else "redis+sentinel://"
    assert form in refused.value.message


@pytest.mark.parametrize("database", ["", "/", "/0", "?db=0", "/0?db=0"])
def test_nodes_of_a_cluster_are_named_and_its_database_is_0(database):
    address = read_address(f"redis+cluster://me:p%2Fw@a:1,[::1]:2,c.example{database}")
    assert address.nodes == (("a", 1), ("::1", 2), ("c.example", 6379))
    assert address.sentinels == ()
    assert address.login == ("me", "p/w")
    assert address.url == "redis://me:p%2Fw@cluster/0"
    assert not address.is_tls


def test_tls_and_replicas_are_said_of_a_cluster_as_of_any_other(state_dir):
    settings = Settings(
        state_dir=state_dir,
        redis_url="rediss+cluster://a,b",
        redis_ca_file="/ca.pem",
        redis_wait_replicas=1,
    )
    address = read_address(redis_url(settings))
    assert address.url == "rediss://cluster/0?ssl_ca_certs=%2Fca.pem"
    assert address.is_tls
    assert address.tls == {"ssl_ca_certs": "/ca.pem"}
    assert address.wait == Wait(1, 1.0)


def test_what_the_settings_say_of_tls_is_in_every_url_that_uses_it(state_dir):
    settings = Settings(
        state_dir=state_dir,
        redis_url="rediss://h:1/0?ssl_certfile=mine",
        redis_limits_url="redis://limits:2/0",
        redis_ca_file="/ca.pem",
        redis_certificate_file="/cert.pem",
        redis_key_file="/key.pem",
    )
    assert read_address(redis_url(settings)).tls == {
        "ssl_ca_certs": "/ca.pem",
        "ssl_certfile": "mine",
        "ssl_keyfile": "/key.pem",
    }
    assert limits_url(settings) == "redis://limits:2/0"
    assert "ca.pem" in with_settings("rediss+sentinel://a/records", settings)


def test_replicas_to_wait_for_are_in_the_url_of_the_records_and_not_in_what_redis_py_reads(
    state_dir,
):
    ours = Settings(state_dir=state_dir, redis_wait_replicas=2, redis_wait_seconds=0.25)
    address = read_address(redis_url(ours))
    assert address.wait == Wait(2, 0.25)
    assert "wait" not in address.url
    assert read_address(redis_url(Settings(state_dir=state_dir))).wait == Wait(0, 1.0)
    assert with_options("redis://h", {}) == "redis://h"
