import pytest

from core.errors import NotFound, Unprocessable
from core.ids import token_of
from core.records import Output
from core.setting_groups import FeedbackSettings
from feedback import intake
from feedback.schemas import DemonstrationRequest, FeedbackRequest, RankingRequest
from tests.feedback.factory import api_key, completion_id

SETTINGS = FeedbackSettings()
NOW = 1_700_000_000.0


@pytest.fixture
def who(keyring):
    return intake.speaker(api_key(), "ann", keyring=keyring, settings=SETTINGS)


def rate(keyring, who, cid, **said):
    body = FeedbackRequest(completion_id=cid, **{"thumb": "up", **said})
    return intake.rating(body, who, keyring=keyring, sealed=None, now=NOW)


def rank(keyring, who, *ties):
    body = RankingRequest(
        ranking=[[{"completion_id": cid, "choice": choice} for cid, choice in tie] for tie in ties]
    )
    return intake.ranking(body, who, keyring=keyring, now=NOW)


def test_a_rating_names_the_answer_and_what_was_said(keyring, who):
    cid = completion_id(keyring, choices=3)
    said = rate(keyring, who, cid, choice=2, rating=6, flags={"hallucination": False})
    assert said.outputs == (Output(token=token_of(cid), choice=2),)
    assert (said.kind, said.thumb, said.rating) == ("rating", "up", 6)
    assert said.flags == {"hallucination": False}
    assert (said.tenant, said.rater, said.created_at) == ("acme", who.rater, NOW)


def test_the_same_rater_on_the_same_choice_gets_the_same_id_and_nobody_else(keyring, who):
    cid = completion_id(keyring, choices=2)
    other = intake.speaker(api_key(), "bob", keyring=keyring, settings=SETTINGS)
    first = rate(keyring, who, cid)
    assert rate(keyring, who, cid, thumb="down").id == first.id
    assert rate(keyring, who, token_of(cid)).id == first.id  # whatever the API's prefix
    different = [
        rate(keyring, other, cid),
        rate(keyring, who, cid, choice=1),
        rate(keyring, who, completion_id(keyring)),
    ]
    assert len({first.id, *(said.id for said in different)}) == 4


def test_what_is_not_ours_is_not_found(keyring, who):
    theirs = completion_id(keyring, tenant="other")
    ours = completion_id(keyring)
    altered = ours[:-1] + ("A" if ours[-1] != "A" else "B")
    for cid in (theirs, altered, "chatcmpl-1", "x" * 52, "é" * 60):
        with pytest.raises(NotFound):
            rate(keyring, who, cid)


def test_an_answer_that_does_not_exist_or_was_not_stored_takes_no_feedback(keyring, who):
    with pytest.raises(Unprocessable, match="has 2 choices") as error:
        rate(keyring, who, completion_id(keyring, choices=2), choice=2)
    assert error.value.param == "choice"
    with pytest.raises(Unprocessable, match="store=false"):
        rate(keyring, who, completion_id(keyring, stored=False))


def test_a_ranking_keeps_order_and_ties_whatever_the_order_inside_a_tie(keyring, who):
    cid = completion_id(keyring, choices=4)
    said = rank(keyring, who, [(cid, 3)], [(cid, 0), (cid, 2)], [(cid, 1)])
    assert [[said.outputs[p].choice for p in tie] for tie in said.ranking] == [[3], [0, 2], [1]]
    assert said.comparisons == 5
    again = rank(keyring, who, [(cid, 3)], [(cid, 2), (cid, 0)], [(cid, 1)])
    assert again == said
    reversed_ = rank(keyring, who, [(cid, 1)], [(cid, 0), (cid, 2)], [(cid, 3)])
    assert reversed_.id == said.id
    assert reversed_.ranking != said.ranking


def test_a_ranking_may_span_completions_of_one_prompt_only(keyring, who):
    one, two = completion_id(keyring), completion_id(keyring)
    assert rank(keyring, who, [(one, 0)], [(two, 0)]).comparisons == 1
    with pytest.raises(Unprocessable, match="different prompts"):
        rank(keyring, who, [(one, 0)], [(completion_id(keyring, prompt="Another?"), 0)])


def test_a_ranking_has_two_to_nine_different_outputs(keyring, who):
    cid = completion_id(keyring, choices=10)
    with pytest.raises(Unprocessable, match="2 to 9"):
        rank(keyring, who, [(cid, 0)])
    with pytest.raises(Unprocessable, match="2 to 9"):
        rank(keyring, who, [(cid, c) for c in range(5)], [(cid, c) for c in range(5, 10)])
    with pytest.raises(Unprocessable, match="twice"):
        rank(keyring, who, [(cid, 0)], [(token_of(cid), 0)])
    assert rank(keyring, who, [(cid, c) for c in range(9)]).comparisons == 0


def test_a_demonstration_is_about_an_answer_or_about_a_prompt(keyring, who):
    def show(**about):
        body = DemonstrationRequest(**about, text="The Rhine.")
        return intake.demonstration(body, who, keyring=keyring, sealed="sealed", now=NOW)

    about_answer = show(completion_id=completion_id(keyring, choices=2), choice=1)
    assert about_answer.outputs[0].choice == 1
    assert about_answer.comparisons == 1
    about_prompt = show(messages=[{"role": "user", "content": "Name a river."}])
    assert about_prompt.comparisons == 0
    assert show(messages=[{"role": "user", "content": "Name a river."}]).id == about_prompt.id
    assert show(prompt="Name a river.").id != about_prompt.id
    assert "river" not in about_prompt.model_dump_json()  # raw text is only in the seal


def test_an_application_names_its_raters_and_a_label_key_is_one(keyring):
    def rater(key, name):
        return intake.speaker(key, name, keyring=keyring, settings=SETTINGS).rater

    app, label = api_key(), api_key(scopes=("label",), key_id="11111111")
    assert rater(app, "ann") != rater(app, "bob")
    assert rater(app, "ann") != rater(api_key(key_id="22222222"), "ann")
    assert rater(label, "ann") == rater(label, "bob") == rater(label, None)
    assert rater(app, None) == rater(app, "")
    assert rater(app, "ann") != rater(api_key(tenant="other"), "ann")


def test_raters_are_held_out_by_name_or_prefix(keyring):
    settings = FeedbackSettings(heldout_raters=("heldout-*", "eve"))

    def heldout(key, name):
        return intake.speaker(key, name, keyring=keyring, settings=settings).heldout

    assert heldout(api_key(), "heldout-3")
    assert heldout(api_key(), "eve")
    assert not heldout(api_key(), "evelyn")
    assert heldout(api_key("heldout-1", scopes=("label",)), None)
    assert not heldout(api_key("rater-1", scopes=("label",)), "heldout-1")


def test_without_names_a_share_of_raters_is_held_out(keyring):
    settings = FeedbackSettings(heldout_rater_share=0.3)
    held = [
        intake.speaker(api_key(), f"r{i}", keyring=keyring, settings=settings).heldout
        for i in range(2000)
    ]
    assert 0.25 < sum(held) / len(held) < 0.35
    again = intake.speaker(api_key(), "r0", keyring=keyring, settings=settings).heldout
    assert again == held[0]
