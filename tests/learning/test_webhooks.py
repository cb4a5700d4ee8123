"""Webhooks from the audit log to real servers, which fail, hang, and send elsewhere."""

import base64
import hashlib
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core import keys, registry
from core.errors import StartError
from core.settings import Settings, load_settings
from learning.worker import webhooks
from learning.worker.ticking import due_tasks
from learning.worker.webhooks import Place, events_of, message, send_what_is_due, webhooks_due

WHO, WHY = "ann@example.org (command line)", "Ann said that it is rude"


class Receiver:
    """A server that answers what it is told to, then 204, and keeps what it was sent."""

    def __init__(self, *answers: int) -> None:
        self.answers, self.heard = list(answers), []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.heard.append((self.path, dict(self.headers.items()), body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                if status == 0:  # hangs
                    receiver.released.wait(10)
                    return
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, _, body in self.heard]


@pytest.fixture
def receive():
    made = []

    def receive(*answers):
        made.append(Receiver(*answers))
        return made[-1]

    yield receive
    for receiver in made:
        receiver.close()


def telling(state_dir, *receivers, **more) -> Settings:
    urls = tuple(receiver.url for receiver in receivers)
    return Settings(state_dir=state_dir, webhooks={"urls": urls, "timeout_seconds": 0.3, **more})


async def promoted(redis, version):
    await redis.zadd(keys.policies(), {version: int(version[1:])})
    await registry.promote(redis, version, who=WHO, why=WHY)


async def again_now(redis) -> None:
    """The pause of every address is over."""
    for name, raw in (await redis.hgetall(keys.webhooks())).items():
        place = Place.model_validate_json(raw).model_copy(update={"next_at": 0.0})
        await redis.hset(keys.webhooks(), name, place.model_dump_json())


@pytest.fixture
async def old(redis):
    """What happened before anybody listened."""
    await promoted(redis, "v0000")


async def test_a_message_comes_once_it_is_taken_and_proves_who_sent_it(
    redis, keyring, state_dir, receive, old
):
    receiver = receive(500, 404)
    settings = telling(state_dir, receiver)
    assert await send_what_is_due(redis, keyring, settings) == 0
    await promoted(redis, "v0001")
    for taken in (0, 0, 1, 0):
        assert await send_what_is_due(redis, keyring, settings) == taken
        await again_now(redis)
    assert receiver.types == ["policy.promoted"] * 3
    (_, first, _), (_, _, _), (path, last, body) = receiver.heard
    sent = {name.lower(): value for name, value in last.items()}
    assert path == "/hook"
    assert first["webhook-id"] == sent["webhook-id"]
    assert abs(time.time() - int(sent["webhook-timestamp"])) < 60
    secret = (state_dir / "secrets" / "webhook.secret").read_text()
    assert secret.startswith("whsec_")
    signed = f"{sent['webhook-id']}.{sent['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    assert sent["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert json.loads(body)["data"] == {
        "action": "promoted",
        "from": "v0000",
        "to": "v0001",
    }
    assert b"ann" not in body.lower()


def test_the_signature_is_that_of_the_published_example():
    """The vector in the documents of Standard Webhooks' libraries."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    said = webhooks.signature(
        secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert said == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_an_address_that_fails_holds_up_no_other_and_is_given_up_in_the_end(
    redis, keyring, state_dir, receive, caplog
):
    bad, good = receive(*[503] * 7), receive()
    settings = telling(state_dir, bad, good)
    await send_what_is_due(redis, keyring, settings)
    await promoted(redis, "v0001")
    await registry.record(redis, "key created", key="k")
    for attempt in range(7):
        await send_what_is_due(redis, keyring, settings)
        assert len(bad.heard) == attempt + 1
        assert await send_what_is_due(redis, keyring, settings) == 0  # not before its pause
        await again_now(redis)
    assert good.types == ["policy.promoted"]
    assert "is skipped after 7 attempts" in caplog.text
    assert bad.url not in caplog.text
    assert not await webhooks_due(redis, settings, now=time.time())
    await promoted(redis, "v0002")
    assert await send_what_is_due(redis, keyring, settings) == 2
    assert json.loads(bad.heard[-1][2])["data"]["to"] == "v0002"


async def test_redirects_are_not_followed_and_silence_ends(redis, keyring, state_dir, receive):
    receiver = receive(302, 0)
    settings = telling(state_dir, receiver)
    await send_what_is_due(redis, keyring, settings)
    await promoted(redis, "v0001")
    for taken in (0, 0, 1):
        assert await send_what_is_due(redis, keyring, settings) == taken
        await again_now(redis)
    assert [path for path, _, _ in receiver.heard] == ["/hook"] * 3


async def test_a_server_that_is_not_there_is_tried_again(redis, keyring, state_dir, receive):
    receiver = receive()
    settings = telling(state_dir, receiver)
    await send_what_is_due(redis, keyring, settings)
    receiver.close()
    await promoted(redis, "v0001")
    assert await send_what_is_due(redis, keyring, settings) == 0
    (raw,) = await redis.hvals(keys.webhooks())
    place = Place.model_validate_json(raw)
    assert place.attempts == 1
    assert place.next_at > time.time() + 4


async def test_a_tick_finds_it_due_until_all_was_heard(redis, keyring, state_dir, receive):
    await redis.set(keys.day_keys_checked(), 1)
    await redis.set(keys.retention_checked(), 1)
    settings = telling(state_dir, receive())
    assert await due_tasks(redis, settings) == ["send_webhooks"]
    await send_what_is_due(redis, keyring, settings)
    assert await due_tasks(redis, settings) == []
    await promoted(redis, "v0001")
    assert await due_tasks(redis, settings) == ["send_webhooks"]
    await redis.set(keys.webhooks_lease(), 1)
    assert await due_tasks(redis, settings) == []
    assert await send_what_is_due(redis, keyring, settings) == 0
    assert await due_tasks(redis, Settings(state_dir=state_dir)) == []


async def test_while_the_secret_changes_a_message_is_signed_by_the_old_and_the_new(
    redis, keyring, state_dir, receive
):
    receiver = receive()
    path = state_dir / "secrets" / "webhook.secret"
    path.parent.mkdir()
    path.touch(mode=0o600)
    keys_of_both = [b"the old one", b"the new one"]
    lines = ["whsec_" + base64.b64encode(key).decode() for key in keys_of_both]
    path.write_text("\n".join(lines) + "\n")
    settings = telling(state_dir, receiver)
    await send_what_is_due(redis, keyring, settings)
    await promoted(redis, "v0001")
    assert await send_what_is_due(redis, keyring, settings) == 1
    ((_, headers, body),) = receiver.heard
    sent = {name.lower(): value for name, value in headers.items()}
    signed = f"{sent['webhook-id']}.{sent['webhook-timestamp']}.".encode() + body
    digests = [hmac.new(key, signed, hashlib.sha256).digest() for key in keys_of_both]
    wanted = ["v1," + base64.b64encode(digest).decode() for digest in digests]
    assert sent["webhook-signature"].split(" ") == wanted


async def test_a_secret_that_is_none_is_said_and_nothing_is_sent(
    redis, keyring, state_dir, receive
):
    receiver = receive()
    path = state_dir / "secrets" / "webhook.secret"
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text("not base64!")
    with pytest.raises(StartError, match=r"webhook\.secret has to hold whsec_"):
        await send_what_is_due(redis, keyring, telling(state_dir, receiver))
    assert receiver.heard == []


@pytest.mark.parametrize(
    ("entry", "events"),
    [
        ({"action": "promoted"}, ["policy.promoted"]),
        ({"action": "rolled back", "canary": "ended"}, ["policy.rolled_back", "canary.verdict"]),
        ({"action": "canary promoted", "canary": "ended"}, ["canary.verdict"]),
        ({"action": "promoted", "canary": "watch"}, ["policy.promoted"]),
        ({"action": "canary started", "canary": "split"}, []),
        ({"action": "run ended", "outcome": "failed"}, ["run.failed"]),
        ({"action": "run ended", "outcome": "promoted"}, []),
        ({"action": "attestation failed"}, ["attestation.failed"]),
        ({"action": "erased"}, []),
    ],
)
def test_what_is_told_and_what_it_is_called(entry, events):
    assert events_of(entry) == events


def test_a_message_is_bounded():
    entry = {"action": "run ended", "outcome": "failed", "reason": WHY, "run": "r" * 10_000}
    body = message("run.failed", entry)
    assert len(body) < 1000
    assert WHY.encode() not in body


@pytest.mark.parametrize(
    "url", ["http://example.org/x", "ftp://127.0.0.1/x", "/x", "https://", "http://127.0.0.1.org/"]
)
def test_an_address_that_others_can_read_stops_the_start(url, monkeypatch):
    monkeypatch.setenv("INSTRUCTLOOP_WEBHOOKS__URLS", json.dumps([url]))
    with pytest.raises(StartError, match="WEBHOOKS: .*https"):
        load_settings()


def test_http_may_leave_this_machine_where_somebody_says_so():
    said = load_settings(webhooks={"urls": ("http://hooks.internal/x",), "allow_http": True})
    assert said.webhooks.urls == ("http://hooks.internal/x",)
