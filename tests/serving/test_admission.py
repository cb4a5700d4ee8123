"""Which limits apply to whom, and that a completion takes from all of them or from none."""

import pytest

from core.errors import RateLimited
from core.records import ApiKey, KeyLimits
from core.setting_groups import LimitSettings
from serving import admission
from serving.admission import Admission, plan_of


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def key(limits=None, *, id="0a1b2c3d") -> ApiKey:
    return ApiKey(
        id=id,
        name="n",
        tenant="acme",
        scopes=("complete",),
        digest=id,
        created_at=0.0,
        limits=limits,
    )


def refused(door, who, user="ada", tokens=10, **how) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        door.admit(who, user, tokens, **how)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.retry_after >= 1
    return caught.value


def test_a_key_written_before_there_were_limits_still_loads():
    old = (
        '{"id":"0a1b2c3d","name":"n","tenant":"t","scopes":["complete"],"digest":"d",'
        '"created_at":1.0,"expires_at":null,"revoked_at":null,"trains":true}'
    )
    assert ApiKey.model_validate_json(old).limits is None


def test_what_a_key_says_counts_more_than_the_settings_and_zero_is_no_limit():
    settings = LimitSettings(requests_per_minute=60, concurrency=4, user_tokens_per_minute=900)
    assert plan_of(settings, None).key == (("requests", 60), ("concurrency", 4))
    own = plan_of(settings, KeyLimits(requests_per_minute=0, tokens_per_minute=70))
    assert own.key == (("tokens", 70), ("concurrency", 4))
    assert own.user == (("tokens", 900),)


def test_by_default_nothing_is_limited_and_nothing_is_remembered(keyring, clock):
    door = Admission(LimitSettings(), keyring, clock=clock)
    for _ in range(1000):
        grant = door.admit(key(), "ada", 10**9)
        assert grant.headers() == []
        grant.settle(5)
    assert len(door) == 0


def test_each_key_and_each_end_user_has_a_limit_of_its_own(keyring, clock):
    settings = LimitSettings(requests_per_minute=5, user_requests_per_minute=3)
    door = Admission(settings, keyring, clock=clock)
    one, other = key(), key(id="ffffffff")
    for _ in range(3):
        door.admit(one, "ada", 1)
    said = refused(door, one)
    assert "this end user of key 0a1b2c3d" in said.message
    assert "3 requests a minute" in said.message
    door.admit(one, "bob", 1)
    door.admit(one, "bob", 1)
    assert "the limit of key 0a1b2c3d is reached" in refused(door, one, "bob").message
    for _ in range(3):
        door.admit(other, "ada", 1)


def test_a_refused_request_takes_from_no_limit(keyring, clock):
    settings = LimitSettings(requests_per_minute=9, tokens_per_minute=100, user_concurrency=1)
    door = Admission(settings, keyring, clock=clock)
    first = door.admit(key(), "ada", 40)
    for _ in range(20):
        refused(door, key(), "ada", 40)
    first.settle(40)
    second = door.admit(key(), "ada", 40)
    left = dict(second.headers())
    assert left[b"x-ratelimit-remaining-requests"] == b"7"
    assert left[b"x-ratelimit-remaining-tokens"] == b"20"


def test_a_grant_is_settled_once_however_often_it_is_said(keyring, clock):
    door = Admission(LimitSettings(tokens_per_minute=100, concurrency=1), keyring, clock=clock)
    grant = door.admit(key(), "ada", 90)
    for _ in range(3):
        grant.settle(30)
    door.admit(key(), "ada", 70)
    assert refused(door, key(), tokens=1).status == 429


def test_more_than_the_whole_limit_is_refused_for_good_only_if_asked_for(keyring, clock):
    door = Admission(LimitSettings(tokens_per_minute=100), keyring, clock=clock)
    said = refused(door, key(), tokens=101)
    assert "max_tokens" in said.message
    assert (b"x-should-retry", b"false") in said.headers
    door.admit(key(), "ada", 101, asked_for=False).settle(50)
    refused(door, key(), tokens=51)
    clock.now += 0.6
    door.leased.popitem()[1].renew(50, 51, 51, clock.now)
    door.admit(key(), "ada", 51)


def test_only_what_is_not_as_good_as_new_is_remembered(keyring, clock, monkeypatch):
    monkeypatch.setattr(admission, "MOST_METERS", 50)
    settings = LimitSettings(user_requests_per_minute=2, user_concurrency=1)
    door = Admission(settings, keyring, clock=clock)
    open_ = [door.admit(key(), f"open-{number}", 1) for number in range(5)]
    for number in range(500):
        door.admit(key(), f"user-{number}", 1).settle(1)
        assert len(door) <= 52
    assert len(door.leased) <= 52
    refused(door, key(), "open-0")
    for grant in open_:
        grant.settle(1)
    for meter in door.leased.values():
        meter.leased = False
    clock.now += 61
    door.sweep()
    assert len(door) == 0


def test_an_end_users_name_is_in_no_name_of_redis(keyring, clock):
    door = Admission(LimitSettings(user_requests_per_minute=2), keyring, clock=clock)
    door.admit(key(), "ada@example.org", 1)
    (name,) = door.leased
    assert "ada" not in name
