"""The broker's URL in Celery's spelling, and the refusal of a Cluster."""

import subprocess
import time

import pytest
import redis as redis_sync
from kombu import Connection

from core.errors import StartError
from core.settings import Settings
from deploy.redis_server import find_redis_server
from learning.worker.broker import (
    as_celery,
    as_redis,
    broker_url,
    check_broker,
    tls_options,
    transport_options,
)
from learning.worker.tasks import configuration


def test_our_own_redis_is_reached_over_its_socket_with_its_password(settings, keyring):
    password = keyring.token("redis.password")
    socket = settings.state_dir.resolve() / "redis" / "redis.sock"
    assert broker_url(settings) == f"redis+socket://:{password}@{socket}?virtual_host=1"


def test_the_setting_wins_over_the_redis_of_the_records(state_dir):
    records = {"state_dir": state_dir, "redis_url": "redis://records:6379/0"}
    assert broker_url(Settings(**records)) == "redis://records:6379/0"
    own = Settings(**records, redis_broker_url="rediss://:pw@broker:6380/2")
    assert broker_url(own) == "rediss://:pw@broker:6380/2"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("unix://:p%2Fw@/run/r.sock?db=3", "redis+socket://:p%2Fw@/run/r.sock?virtual_host=3"),
        ("unix:///run/r.sock?db=0", "redis+socket:///run/r.sock?virtual_host=0"),
        ("redis://h:1/2", "redis://h:1/2"),
    ],
)
def test_socket_urls_are_respelt_both_ways(ours, theirs):
    assert as_celery(ours) == theirs
    assert as_redis(theirs) == ours


def test_celery_reaches_a_redis_by_that_url_and_hides_the_password(shared_redis):
    url = as_celery(shared_redis.url)
    with Connection(url) as connection:
        connection.ensure_connection(max_retries=1)
        assert connection.default_channel.client.ping()
        assert shared_redis.password not in connection.as_uri()


def test_sentinels_become_the_urls_and_options_of_celery(state_dir):
    url = "redis+sentinel://me:p%2Fw@a:1,[::1]:2/records/3?sentinel_password=s&wait_replicas=2"
    settings = Settings(state_dir=state_dir, redis_url=url, redis_wait_replicas=1)
    assert broker_url(settings) == "sentinel://me:p%2Fw@a:1/3;sentinel://me:p%2Fw@[::1]:2/3"
    chosen = configuration(settings)
    options = chosen["broker_transport_options"]
    assert options["master_name"] == "records"
    assert options["sentinel_kwargs"]["password"] == "s"
    assert options["global_keyprefix"] == "{il}:broker:"
    assert "broker_use_ssl" not in chosen


def test_tls_to_sentinels_is_tls_to_both(state_dir):
    url = "rediss+sentinel://a,b/records"
    settings = Settings(state_dir=state_dir, redis_url=url, redis_ca_file="/ca.pem")
    files = {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"}
    assert tls_options(settings) == {"broker_use_ssl": files}
    asking = transport_options(settings)["sentinel_kwargs"]
    assert asking["ssl"] is True
    assert files.items() <= asking.items()


def test_what_is_no_redis_is_left_to_celery(state_dir):
    settings = Settings(state_dir=state_dir, redis_broker_url="amqp://guest@elsewhere//")
    assert broker_url(settings) == "amqp://guest@elsewhere//"
    assert transport_options(settings) == {}
    assert tls_options(settings) == {}


@pytest.mark.parametrize(
    "url", ["redis+cluster://h:7000", "rediss+cluster://h,i", "rediscluster://h"]
)
def test_a_cluster_url_is_refused_with_what_to_do(state_dir, url):
    cluster = Settings(state_dir=state_dir, redis_broker_url=url)
    with pytest.raises(StartError, match="INSTRUCTLOOP_REDIS_BROKER_URL"):
        broker_url(cluster)


def test_beside_records_in_a_cluster_the_broker_needs_a_redis_of_its_own(state_dir):
    records = {"state_dir": state_dir, "redis_url": "rediss+cluster://h:7000"}
    with pytest.raises(StartError, match="set INSTRUCTLOOP_REDIS_BROKER_URL"):
        configuration(Settings(**records))
    own = Settings(**records, redis_broker_url="redis+sentinel://a:1/messages")
    assert configuration(own)["broker_url"] == "sentinel://a:1/0"


async def test_a_single_redis_and_one_that_is_away_pass_the_check(shared_redis, state_dir):
    await check_broker(as_celery(shared_redis.url))
    await check_broker(f"redis+socket://{state_dir}/nothing.sock?virtual_host=0")
    await check_broker("amqp://elsewhere")


async def test_a_redis_in_cluster_mode_is_refused_whatever_its_url_says(state_dir):
    socket = state_dir / "cluster.sock"
    server = subprocess.Popen(
        [find_redis_server(), "--port", "0", "--unixsocket", str(socket)]
        + ["--cluster-enabled", "yes", "--dir", str(state_dir), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                redis_sync.Redis(unix_socket_path=str(socket)).ping()
                break
            except redis_sync.RedisError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        with pytest.raises(StartError, match="Cluster"):
            await check_broker(f"redis+socket://{socket}?virtual_host=0")
    finally:
        server.kill()
        server.wait()
