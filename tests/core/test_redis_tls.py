"""TLS to Redis: by whom it is believed, whom it believes, and what Celery makes of it.

The server at hand speaks no TLS, so an end of it stands before one that does not.
"""

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kombu import Connection

from core import keys
from core.errors import Unavailable
from core.redis_client import Batches, connect, redis_errors, redis_url, socket_path
from core.settings import Settings
from learning.worker.broker import broker_url, tls_options
from tests.redis_cluster import redis_cluster
from tests.redis_fleet import PASSWORD


def authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Who vouches for others; its certificate lies in `ca.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    made = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return made, key


def certify(folder: Path, name: str, by: tuple) -> tuple[Path, Path]:
    """A certificate for loopback and its key."""
    issuer, issuer_key = by
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        _builder(subject, issuer.subject, key)
        .add_extension(here, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    certificate, secret = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, secret


def _builder(subject, issuer, key):
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
    )


@asynccontextmanager
async def end_of_tls(reach, folder: Path, by: tuple):
    """A port with TLS before what `reach` opens, that only those may use whom `by` vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certify(folder, "server", by))
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    async def pump(reader, writer):
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader, writer):
        near = await reach()
        await asyncio.gather(pump(reader, near[1]), pump(near[0], writer))

    listening = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.fixture
async def door(shared_redis, state_dir):
    """Settings that open a Redis behind TLS, with a certificate of ours."""
    by = authority(state_dir)
    certificate, key = certify(state_dir, "client", by)
    reach = partial(asyncio.open_unix_connection, str(socket_path(shared_redis.state_dir)))
    async with end_of_tls(reach, state_dir, by) as port:
        yield Settings(
            state_dir=state_dir,
            redis_url=f"rediss://:{shared_redis.password}@127.0.0.1:{port}/0",
            redis_ca_file=state_dir / "ca.pem",
            redis_certificate_file=certificate,
            redis_key_file=key,
        )


async def test_with_the_files_of_the_settings_redis_is_reached_over_tls(door):
    async with connect(redis_url(door)) as client:
        await client.set("name", b"value" * 50_000)
        assert await client.get("name") == b"value" * 50_000
        batches = Batches(client)
        await client.delete("lease", "fence")
        assert await batches.script("lease", ["lease", "fence"], ["take", 60_000, ""]) == 1
        await batches.close()


async def test_nodes_of_a_cluster_are_asked_and_reached_over_tls(state_dir):
    by = authority(state_dir)
    certificate, key = certify(state_dir, "client", by)
    nodes = []
    async with end_of_tls(lambda: _open(nodes), state_dir, by) as port:
        announced = f"cluster-announce-port {port}\n"
        with redis_cluster(masters=1, replicas=False, more=announced) as cluster:
            nodes += cluster.nodes
            settings = Settings(
                state_dir=state_dir,
                redis_url=f"rediss+cluster://:{PASSWORD}@127.0.0.1:{port}",
                redis_ca_file=state_dir / "ca.pem",
                redis_certificate_file=certificate,
                redis_key_file=key,
            )
            async with connect(redis_url(settings)) as client:
                assert await client.incr(keys.fence()) == 1


async def _open(nodes):
    return await asyncio.open_connection("127.0.0.1", nodes[0].port)


@pytest.mark.parametrize("without", ["redis_ca_file", "redis_certificate_file"])
async def test_without_the_authority_or_without_our_certificate_nobody_talks(door, without):
    update = {without: None} | ({} if without == "redis_ca_file" else {"redis_key_file": None})
    url = redis_url(door.model_copy(update=update))
    async with connect(url, timeout=2) as client:
        with pytest.raises(Unavailable, match="does not answer"), redis_errors():
            await client.ping()


async def test_another_name_than_the_certificates_is_not_believed(door):
    url = redis_url(door).replace("127.0.0.1", "localhost")
    async with connect(url, timeout=2) as client:
        with pytest.raises(Unavailable), redis_errors():
            await client.ping()
    async with connect(url + "&ssl_check_hostname=false", timeout=2) as client:
        assert await client.ping()


async def test_celery_takes_the_same_files_and_they_are_not_in_its_url(door):
    assert "?" not in broker_url(door)
    used = tls_options(door)["broker_use_ssl"]
    assert used["ssl_cert_reqs"] == "required"

    def publish() -> dict:
        with Connection(broker_url(door), ssl=used) as connection:
            queue = connection.SimpleQueue("over-tls")
            queue.put({"it": "arrives"})
            got = queue.get(timeout=5)
            got.ack()
            queue.close()
            return got.payload

    assert await asyncio.to_thread(publish) == {"it": "arrives"}
