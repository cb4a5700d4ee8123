"""Simulated raters against a real HTTP server that behaves as the contract says, and misbehaves."""

import asyncio
import socket
import threading
from collections import Counter, deque
from dataclasses import replace

import pytest

from core.errors import InstructLoopError, StartError
from deploy.simulate import run as simulate
from deploy.simulate.judges import load_judge
from deploy.simulate.prompt_sets import Prompt
from deploy.simulate.run import collect, vote_tasks
from deploy.simulate.service_client import Refused
from tests.deploy.contract_server import KEY, Fault, Service, free_socket, serving

PROMPTS = [
    Prompt(f"Say something about number {i}.", f"user-{i}", f"t{i}", f"k{i}", "open")
    for i in range(7)
]
BREVITY = load_judge("brevity")


@pytest.fixture
async def service():
    service = Service()
    async with serving(service):
        yield service


async def run(service: Service, **more):
    options = {
        "judge": BREVITY,
        "prompts": PROMPTS,
        "base_url": service.url,
        "api_key": KEY,
        "raters": 3,
        "heldout_raters": 2,
        "answers": 4,
        "max_tokens": 11,
    }
    return await collect(**{**options, **more})


async def test_every_prompt_is_ranked_by_one_rater_and_one_heldout_rater(service):
    counts = await run(service)

    assert counts.prompts == 7
    assert counts.answers == 28
    assert counts.ended == 14
    assert (counts.rankings, counts.heldout_rankings) == (7, 7)
    assert counts.pairs == 7 * 6
    assert counts.tied_pairs == counts.skipped == counts.retries == 0
    said = Counter((service.prompt_of(r), r["rater"].split("-")[0]) for r in service.rankings)
    assert said == {(p.prompt, who): 1 for p in PROMPTS for who in ("rater", "heldout")}
    shares = Counter(r["rater"] for r in service.rankings if r["rater"].startswith("rater"))
    assert set(shares) == {"rater-1", "rater-2", "rater-3"}
    assert max(shares.values()) - min(shares.values()) <= 1


async def test_requests_carry_user_cap_and_number_of_answers(service):
    await run(service)

    assert {(a["messages"][0]["content"], a["user"]) for a in service.asked} == {
        (p.prompt, p.user) for p in PROMPTS
    }
    assert {(a["n"], a["temperature"], a["max_tokens"]) for a in service.asked} == {(4, 1.0, 11)}


async def test_eight_answers_are_two_calls_of_which_one_is_hotter(service):
    counts = await run(service, answers=8, prompts=PROMPTS[:1])

    assert [(a["n"], a["temperature"]) for a in service.asked] == [(6, 1.0), (2, 1.3)]
    assert counts.pairs == 28
    assert {len(r["ranking"]) for r in service.rankings} == {8}


async def test_rankings_follow_the_judge_best_first_with_ties(service):
    service.texts = lambda prompt, i: ["a b c", "one", "a b", "x y"][i]
    counts = await run(service, prompts=PROMPTS[:1])

    texts = [[service.text_of(ref) for ref in tie] for tie in service.rankings[0]["ranking"]]
    assert texts == [["one"], ["a b", "x y"], ["a b c"]]
    assert (counts.pairs, counts.tied_pairs) == (5, 1)


async def test_equal_answers_are_ranked_once_and_a_prompt_without_a_choice_is_skipped(service):
    service.texts = lambda prompt, i: "same" if "number 0" in prompt else f"{'word ' * (i // 2)}end"
    counts = await run(service, prompts=PROMPTS[:2])

    assert counts.skipped == 1
    assert [len(r["ranking"]) for r in service.rankings] == [2, 2]


async def test_an_empty_answer_is_ranked_last(service):
    service.texts = lambda prompt, i: ["", "a very long answer", "short"][i]
    await run(service, answers=3, prompts=PROMPTS[:1])

    assert service.text_of(service.rankings[0]["ranking"][-1][0]) == ""


async def test_refusals_for_now_are_tried_again_and_nothing_is_said_twice(service):
    service.faults["POST chat"] = deque([Fault(429, "0"), Fault(503, "0")])
    service.faults["POST rankings"] = deque(
        [Fault(503, "0", late=True), Fault(502), Fault(429, "0")]
    )
    counts = await run(service)

    assert counts.retries == 5
    assert counts.rankings == counts.heldout_rankings == 7
    assert len(service.rankings) == 14
    assert not service.faults["POST chat"]
    assert not service.faults["POST rankings"]


async def test_it_waits_for_a_service_that_is_not_there_yet():
    service, listener = Service(), free_socket()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    address = listener.getsockname()
    listener.close()
    service.url = url
    work = asyncio.create_task(run(service, prompts=PROMPTS[:2]))
    await asyncio.sleep(0.1)
    assert not work.done()
    async with serving(service, socket.create_server(address)):
        counts = await work
    assert counts.prompts == 2
    assert counts.retries > 0


async def test_no_more_prompts_are_under_way_than_allowed(service):
    await run(service, concurrency=2)

    assert service.most_at_once == 2


async def test_a_cut_short_run_goes_on_where_it_stopped(service, tmp_path):
    journal = tmp_path / "new" / "journal.jsonl"
    service.faults["POST rankings"] = deque([Fault(500, late=False) for _ in range(1)])
    service.faults["POST rankings"].extendleft([Fault(429, "0")] * 4)  # the fifth request fails
    with pytest.raises(Refused, match="500 fault 500"):
        await run(service, concurrency=1, journal=journal)
    asked_before = len(service.asked)
    with journal.open("a") as file:
        file.write('{"key": "half a li')  # as a kill leaves it
    service.faults.clear()

    counts = await run(service, journal=journal)

    prompts = [a["messages"][0]["content"] for a in service.asked]
    assert len(prompts) == len(set(prompts)) == 7, "a prompt was asked twice"
    assert asked_before > 0
    assert len(service.rankings) == 14
    assert counts.resumed + counts.prompts == 7

    again = await run(service, journal=journal)
    assert (again.resumed, again.prompts, len(service.rankings)) == (7, 0, 14)


async def test_another_seed_is_another_simulation_for_the_journal(service, tmp_path):
    journal = tmp_path / "journal.jsonl"
    await run(service, journal=journal, seed=1)
    counts = await run(service, journal=journal, seed=2)

    assert counts.resumed == 0
    assert counts.prompts == 7


async def test_the_journal_holds_no_text_of_anybody(service, tmp_path):
    journal = tmp_path / "journal.jsonl"
    service.texts = lambda prompt, i: f"secret answer {i}"
    await run(service, journal=journal)

    assert "secret" not in journal.read_text()
    assert "number" not in journal.read_text()


async def test_a_refusal_for_good_is_one_line_that_quotes_the_service(service):
    with pytest.raises(InstructLoopError) as caught:
        await run(service, api_key="nonsense")

    assert str(caught.value) == "POST /v1/chat/completions: 401 no such key: make one"
    assert service.rankings == []


async def test_a_reply_that_is_no_completion_is_said_so(service):
    service.texts = lambda prompt, i: "x"
    service.faults["POST chat"] = deque([Fault(200)])
    with pytest.raises(Refused, match="not a chat completion"):
        await run(service, prompts=PROMPTS[:1])


async def test_a_judge_that_fails_stops_the_simulation(service):
    def fails(prompt: str, completion: str) -> float:
        raise StartError("the judge is out of order")

    with pytest.raises(StartError, match="out of order"):
        await run(service, judge=replace(BREVITY, score=fails))


async def test_a_seed_fixes_rankings_however_many_prompts_run_at_once(service):
    def spoken(ranking):
        ties = [sorted(service.text_of(ref) for ref in tie) for tie in ranking["ranking"]]
        return service.prompt_of(ranking), ranking["rater"], str(ties)

    seen = []
    for options in ({"concurrency": 1}, {"concurrency": 5}, {"seed": 9}):
        service.asked.clear()
        service.rankings.clear()
        await run(service, noise=1.0, **options)
        seen.append(sorted(map(spoken, service.rankings)))

    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def _task(number: int, texts: list[str]) -> dict:
    outputs = [{"output_id": f"o{number}-{i}", "text": text} for i, text in enumerate(texts)]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": f"Q{number}"}]
    return {"id": f"task-{number}", "mode": "evaluation", "messages": messages, "outputs": outputs}


async def test_heldout_raters_answer_all_tasks_whole(service):
    service.tasks.extend(_task(i, ["a b c d", "a b", "one", "a b"]) for i in range(5))
    keys = {"heldout-1": f"{KEY}-heldout-1", "heldout-2": f"{KEY}-heldout-2"}
    votes = await vote_tasks(judge=BREVITY, base_url=service.url, label_keys=keys)

    assert votes == 5
    assert {task for _, task, _ in service.answers} == {f"task-{i}" for i in range(5)}
    for rater, task, said in service.answers:
        number = task.removeprefix("task-")
        assert rater in keys
        assert said["ranking"] == [
            [f"o{number}-2"],
            [f"o{number}-1", f"o{number}-3"],
            [f"o{number}-0"],
        ]
        assert [o["rating"] for o in said["outputs"]] == [1, 5, 7, 5]
        assert {o["output_id"] for o in said["outputs"]} == {f"o{number}-{i}" for i in range(4)}


async def test_a_task_that_is_gone_is_let_go(service):
    service.tasks.extend(_task(i, ["a", "b c"]) for i in range(3))
    service.faults["GET labeling"] = deque([Fault(429, "0"), Fault(503, "0")])
    service.faults["POST labeling"] = deque([Fault(409), Fault(429, "0"), Fault(404)])
    votes = await vote_tasks(
        judge=BREVITY, base_url=service.url, label_keys={"r": f"{KEY}-r"}, poll_seconds=0.01
    )

    assert votes == 1
    assert [task for _, task, _ in service.answers] == ["task-2"]


async def test_a_rater_without_the_right_to_label_is_told_so(service):
    service.faults["GET labeling"] = deque([Fault(403)])
    with pytest.raises(Refused, match="GET /v1/labeling/next: 403"):
        await vote_tasks(judge=BREVITY, base_url=service.url, label_keys={"r": f"{KEY}-r"})


async def test_raters_poll_until_they_are_told_to_stop(service):
    over = asyncio.Event()
    work = asyncio.create_task(
        vote_tasks(
            judge=BREVITY,
            base_url=service.url,
            label_keys={"heldout-1": f"{KEY}-heldout-1"},
            until=over,
            poll_seconds=0.01,
        )
    )
    await asyncio.sleep(0.05)
    assert not work.done()
    service.tasks.append(_task(0, ["a", "b c"]))
    while not service.answers:
        await asyncio.sleep(0.01)
    over.set()
    assert await work == 1


def _main(url: str, **more):
    options = {
        "judge": "brevity",
        "raters": 2,
        "heldout_raters": 1,
        "prompts": None,
        "base_url": url,
        "api_key": KEY,
        "answers": 3,
        "seed": 0,
        "noise": 0.0,
        "max_tokens": 8,
        "concurrency": 3,
    }
    return simulate.main(**{**options, **more})


def test_the_command_says_what_was_said(capsys):
    service, up, over = Service(), threading.Event(), threading.Event()

    async def serve():
        async with serving(service):
            up.set()
            while not over.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert up.wait(10)
        counts = _main(service.url, limit=5)
    finally:
        over.set()
        thread.join()

    assert counts.prompts == 5
    line = capsys.readouterr().out
    assert line.startswith("brevity: 5 prompts, 15 answers,")
    assert line.count("\n") == 1


def test_the_command_needs_a_service():
    listener = free_socket()
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(StartError, match=r"no service answers at .*: start it with `make up`"):
        _main(f"http://127.0.0.1:{port}")
