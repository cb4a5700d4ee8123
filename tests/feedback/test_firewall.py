"""Who is suspected: honest raters hardly ever, planted ones always; and what becomes of them."""

from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import keys, registry
from core.errors import NotFound
from core.records import Feedback, Output
from core.setting_groups import FeedbackSettings
from feedback import firewall, holding, store
from feedback.entries import IMPORT_KEY_ID
from feedback.firewall import BURST, EXTREME, LOCKSTEP, suspects
from tests.feedback.factory import completion

SETTINGS = FeedbackSettings()
HOUR = 3600.0


def word(rater, item, *, at=0.0, kind="rating", **said):
    outputs = tuple(
        Output(token=f"{item:052d}", choice=c) for c in range(2 if "ranking" in said else 1)
    )
    return Feedback(
        id=f"fb-{rater}-{item}",
        kind=kind,
        tenant="acme",
        key_id="0a0b0c0d",
        rater=rater,
        created_at=at,
        updated_at=at,
        outputs=outputs,
        **said,
    )


def honest(rater, items, random, *, thumbs=False):
    """A rater with a leaning and a noise of their own, who sees how good each answer is."""
    leaning, noise = random.gauss(0, 0.6), random.uniform(0.5, 1.5)
    found = []
    for item in items:
        quality = Random(item).gauss(4.2, 1.5) + leaning + random.gauss(0, noise)
        rating = min(7, max(1, round(quality)))
        said = {"thumb": "up" if quality > 3 else "down"} if thumbs else {"rating": rating}
        found.append(word(rater, item, at=random.uniform(0, 30 * 86_400), **said))
    return found


def raters_in(found):
    return {name.split("-")[1] for name in found}


def population(random, *, raters=300, thumbs=False):
    return [
        said
        for n in range(raters)
        for said in honest(f"honest{n}", random.sample(range(200), 60), random, thumbs=thumbs)
    ]


@pytest.mark.parametrize("thumbs", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_under_one_honest_rater_in_a_hundred_is_suspected(seed, thumbs):
    found = suspects(population(Random(seed), thumbs=thumbs), SETTINGS)
    assert len(raters_in(found)) < 0.01 * 300


def test_planted_raters_are_found_among_honest_ones_and_nobody_else():
    random = Random(3)
    said = population(random, raters=60)
    said += [word("sevens", item, at=item * HOUR, rating=7) for item in range(40)]
    said += [word("bot", item, at=item * 0.5, rating=1 + item % 7) for item in range(400)]
    script = {item: random.randint(1, 7) for item in range(50)}
    for name in ("ring1", "ring2", "ring3"):
        said += [word(name, item, at=item * HOUR, rating=r) for item, r in script.items()]
    found = suspects(said, SETTINGS)
    assert raters_in(found) == {"sevens", "bot", "ring1", "ring2", "ring3"}
    assert found["fb-sevens-0"] == EXTREME
    assert {r for name, r in found.items() if "-bot-" in name} == {BURST}
    assert {r for name, r in found.items() if "-ring" in name} == {LOCKSTEP}
    assert len(found) == 40 + 400 + 3 * 50


def test_few_words_suspect_nobody_and_only_thumbs_up_needs_many_of_them():
    def always(number, **said):
        return [word("r", item, at=item * HOUR, **said) for item in range(number)]

    assert suspects(always(19, rating=1), SETTINGS) == {}
    assert len(suspects(always(20, rating=1), SETTINGS)) == 20
    assert suspects(always(40, rating=4), SETTINGS) == {}  # the same, but not extreme
    assert suspects(always(100, thumb="up"), SETTINGS) == {}
    assert len(suspects(always(140, thumb="up"), SETTINGS)) == 140  # 0.9 ** 132 < 1e-6


def test_where_all_raters_simply_agree_nobody_is_in_lockstep():
    said = [
        word(f"r{n}", item, at=item * HOUR, kind="ranking", ranking=((item % 2,), (1 - item % 2,)))
        for n in range(8)
        for item in range(60)
    ]
    assert suspects(said, SETTINGS) == {}


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 6), st.integers(7, 9)).map(lambda p: (f"r{p[0]}", f"r{p[1]}")),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        min_size=1,
    )
)
def test_what_is_usual_is_the_median_of_the_pairs_without_these_two(rates):
    usual = firewall._usual_without(rates)
    for pair in rates:
        rest = [rate for other, rate in rates.items() if not {*pair} & {*other}]
        assert usual(pair) == (median(rest) if len(rest) >= 3 else None)


def test_hundreds_of_raters_who_all_agree_do_not_hold_a_round_up():
    verdicts = {
        f"r{ring}-{n}": {(ring, item): 1 for item in range(20)}
        for ring in range(6)
        for n in range(50)
    }  # 7,350 pairs, each of which is compared with the others
    assert firewall.lockstep_raters(verdicts, least=20) == set()


def test_a_burst_is_what_lies_within_its_five_minutes():
    quick = [word("r", item, at=1000 + item, rating=1 + item % 7) for item in range(11)]
    slow = [word("r", 100 + n, at=2000 + n * HOUR, rating=1 + n % 7) for n in range(9)]
    assert firewall.bursts([*quick, *slow], per_minute=2) == {said.id for said in quick}
    assert firewall.bursts(quick[:10], per_minute=2) == set()


def test_what_was_taken_back_and_signals_count_for_nothing():
    gone = [word("r", item, rating=7).model_copy(update={"withdrawn": True}) for item in range(50)]
    signals = [word("s", item, kind="signal", signal="copy") for item in range(400)]
    assert suspects([*gone, *signals], SETTINGS) == {}


def test_what_was_imported_is_no_burst_but_may_be_extreme():
    many = [word("file", n, at=5.0 + n * 0.01, rating=1 + n % 7) for n in range(400)]
    assert len(suspects(many, SETTINGS)) == 400
    imported = [said.model_copy(update={"key_id": IMPORT_KEY_ID}) for said in many]
    assert suspects(imported, SETTINGS) == {}
    sevens = [said.model_copy(update={"rating": 7}) for said in imported]
    assert set(suspects(sevens, SETTINGS).values()) == {EXTREME}


async def record_all(redis, said):
    for one in said:
        await store.record(redis, one, reply="{}")


async def decide(redis, subject, decision, tenant="acme"):
    return await holding.decide(
        redis, subject, decision, tenant=tenant, who="ops", why="looked", settings=SETTINGS
    )


async def test_what_is_suspect_is_held_until_somebody_decides_and_never_deleted(redis):
    said = [word("sevens", item, at=item * HOUR, rating=7) for item in range(30)]
    said += [word("ann", item, at=item * HOUR, rating=1 + item % 7) for item in range(30)]
    await record_all(redis, said)
    marked = await holding.hold_back(redis, said, {}, SETTINGS)
    assert {f.rater for f in marked if f.held} == {"sevens"}
    assert (await store.get(redis, "fb-sevens-3")).held == EXTREME
    (waiting,) = await holding.held(redis, "acme", SETTINGS)
    assert (waiting.rater, waiting.reasons, len(waiting.feedback)) == (
        "sevens", {EXTREME: 30}, 30,
    )  # fmt: skip
    assert await holding.held(redis, "other", SETTINGS) == []
    with pytest.raises(NotFound):
        await decide(redis, "sevens", "released", tenant="other")
    with pytest.raises(NotFound):
        await decide(redis, "ann", "rejected")

    assert await decide(redis, "sevens", "released") == 30
    everything = await store.get_all(redis)
    assert [f.held for f in everything] == [None] * 60
    again = await holding.hold_back(redis, everything, {}, SETTINGS)
    assert not any(f.held for f in again)  # people have decided
    actions = [entry["action"] for entry in await registry.history(redis)]
    assert actions == ["feedback held back", "feedback released"]


async def test_one_word_can_be_released_and_a_rejected_rater_stays_out(redis):
    said = [word("sevens", item, at=item * HOUR, rating=7) for item in range(30)]
    await record_all(redis, said)
    await holding.hold_back(redis, said, {}, SETTINGS)
    assert await decide(redis, "fb-sevens-3", "released") == 1
    assert await decide(redis, "sevens", "rejected") == 29
    later = word("sevens", 99, rating=4)
    await record_all(redis, [later])
    marked = await holding.hold_back(redis, await store.get_all(redis), {}, SETTINGS)
    held = {f.id: f.held for f in marked}
    assert held["fb-sevens-3"] is None
    assert held["fb-sevens-99"] == held["fb-sevens-5"] == holding.REJECTED
    assert await redis.exists(keys.feedback("fb-sevens-5"))


async def test_a_key_that_speaks_for_many_end_users_is_no_suspect_but_one_of_them_may_be(redis):
    items = range(40)
    said = [
        word("key", item, at=item * HOUR, rating=7).model_copy(update={"by_end_user": True})
        for item in items
    ]
    await record_all(redis, said)

    async def held_with(user_of):
        about = [completion(f"{item:052d}", user=user_of(item)) for item in items]
        logged = {one.token: one for one in about}
        marked = await holding.hold_back(redis, said, logged, SETTINGS)
        return {f.id for f in marked if f.held}

    assert await held_with(lambda item: f"{item:032d}") == set()
    assert not any(f.held for f in await holding.hold_back(redis, said, {}, SETTINGS))
    assert len(await held_with(lambda item: "a" * 32)) == 40


async def test_the_firewall_can_be_turned_off(redis):
    said = [word("sevens", item, rating=7) for item in range(30)]
    await record_all(redis, said)
    off = FeedbackSettings(hold_back=False)
    assert await holding.hold_back(redis, said, {}, off) == said
