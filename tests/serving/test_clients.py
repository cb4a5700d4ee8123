"""Clients that people have, unchanged, through the gateway to a real vLLM with a tiny model.

One engine and one gateway serve every test here. The model answers gibberish; what is tested is
that each library gets what it expects, and that the log says the same.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import anthropic
import openai
import pytest
import torch
from langchain_openai import ChatOpenAI
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import ids
from tests.serving.threaded import Service, gateway_in_thread

pytestmark = pytest.mark.slow

MODEL = "instructloop"
MESSAGES = [{"role": "user", "content": "Where is the Seine?"}]
CHAT = {"model": MODEL, "messages": MESSAGES}
TEXT = {"model": MODEL, "prompt": "The Seine flows through"}
ENOUGH = 1900  # a grammar lets the model write as much white space as it likes
LONG = {"extra_body": {"ignore_eos": True}}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
TOOL = {"name": "paint", "description": "Paints.", "parameters": SCHEMA}
CHAT_TOOL = {"type": "function", "function": TOOL}


class Paint(BaseModel):
    """Paints."""

    colour: Literal["red", "blue"]


@pytest.fixture(scope="module")
def service(vllm, shared_redis) -> Iterator[Service]:
    with (
        tempfile.TemporaryDirectory(prefix="il-") as folder,
        gateway_in_thread(vllm, shared_redis.url, Path(folder)) as running,
    ):
        yield running


@pytest.fixture
def client(service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=service.base_url, api_key=service.secret, max_retries=0) as opened:
        yield opened


@pytest.fixture
def claude(service) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=service.gateway.url, api_key=service.secret, max_retries=0
    ) as opened:
        yield opened


def rate(client: openai.OpenAI, completion_id: str) -> str:
    body = {"completion_id": completion_id, "thumb": "up"}
    return client.post("/feedback", body=body, cast_to=object)["status"]


def test_a_chat_with_all_its_options(service, client):
    raw = client.chat.completions.with_raw_response.create(
        **CHAT,
        n=2,
        seed=5,
        stop=["zebra"],
        temperature=0.7,
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=3,
        logit_bias={"100": -100},
        parallel_tool_calls=False,
        service_tier="auto",
        store=True,
        user="ada",
        metadata={"page": "help"},
        **LONG,
    )
    assert raw.headers["x-policy-version"] == "v0000"
    assert raw.headers["x-request-id"].startswith("req_")
    reply = raw.parse()
    assert [len(c.logprobs.content) for c in reply.choices] == [6, 6]
    assert all(len(t.top_logprobs) == 3 for c in reply.choices for t in c.logprobs.content)
    entry = service.logged(reply.id)
    assert entry["choices"] == [
        {"text": c.message.content, "finish_reason": "length", "tokens": 6, "tool_calls": None}
        for c in reply.choices
    ]
    assert (entry["user"], entry["metadata"]) == ("ada", {"page": "help"})
    assert rate(client, reply.id) == "recorded"


def test_a_streamed_chat_with_usage(service, client):
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        **CHAT, stream=True, stream_options=options, max_tokens=7, n=2, **LONG
    )
    texts, usage, completion_id = ["", ""], None, None
    for chunk in stream:
        completion_id, usage = chunk.id, chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert usage.completion_tokens == 14
    entry = service.logged(completion_id)
    assert [choice["text"] for choice in entry["choices"]] == texts
    assert entry["sampling"]["completion_tokens"] == 14
    assert entry["sampling"]["prompt_tokens"] == usage.prompt_tokens


def test_content_parts_are_answered(service, client):
    parts = [{"type": "text", "text": "Where is"}, {"type": "text", "text": "the Seine?"}]
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    reply = client.chat.completions.create(model=MODEL, messages=talk, max_tokens=3)
    assert service.logged(reply.id)["messages"] == talk


def test_text_completions_with_echo_and_scores(client):
    reply = client.completions.create(**TEXT, echo=True, max_tokens=2, logprobs=1, **LONG)
    (choice,) = reply.choices
    assert choice.text.startswith(TEXT["prompt"])
    assert choice.logprobs.token_logprobs[0] is None
    batch = client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=2, n=2)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    pieces = [c.choices[0].text for c in client.completions.create(**TEXT, stream=True, seed=3)]
    assert "".join(pieces) == client.completions.create(**TEXT, seed=3).choices[0].text


def test_a_schema_shapes_the_answer(client):
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}
    reply = client.chat.completions.create(**CHAT, response_format=form)
    Paint.model_validate_json(reply.choices[0].message.content)
    parsed = client.chat.completions.parse(**CHAT, response_format=Paint)
    assert parsed.choices[0].message.parsed.colour in ("red", "blue")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "paint"}}, "auto", "none"]
)
def test_tools_are_called_as_asked(service, client, choice, stream):
    reply = client.chat.completions.create(
        **CHAT,
        tools=[CHAT_TOOL],
        tool_choice=choice,
        stream=stream,
        parallel_tool_calls=False,
        max_tokens=ENOUGH,
        seed=1,
    )
    completion_id = [chunk.id for chunk in reply][0] if stream else reply.id
    entry = service.logged(completion_id)
    assert not entry["trains"]
    (answer,) = entry["choices"]
    if choice in ("auto", "none"):  # gibberish is no call
        assert answer["tool_calls"] is None
    else:
        assert {call["name"] for call in answer["tool_calls"]} == {"paint"}
        Paint.model_validate_json(answer["tool_calls"][0]["arguments"])


def test_models_are_listed_looked_up_and_pinned(client):
    assert [model.id for model in client.models.list()] == [MODEL, f"{MODEL}@v0000"]
    assert client.models.retrieve(f"{MODEL}@v0000").id == f"{MODEL}@v0000"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(f"{MODEL}@v0009")
    pinned = client.completions.create(**{**TEXT, "model": f"{MODEL}@v0000"}, max_tokens=1)
    assert pinned.choices[0].text is not None


def test_errors_are_the_clients_typed_exceptions(client, claude):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="il-unknown").chat.completions.create(**CHAT)
    with pytest.raises(openai.PermissionDeniedError):
        client.get("/policies", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**CHAT, "model": "gpt-4o"})
    for wrong in ({"max_tokens": 10**6}, {"extra_body": {"no_such": 1}}, {"messages": []}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{**CHAT, **wrong})
        assert caught.value.param
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=MODEL, input="x", temperature=-1)
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(**CHAT, max_tokens=5000)
    assert refused.value.body["type"] == "error"
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(**CHAT, max_tokens=5, extra_body={"thinking": {"type": "odd"}})
    assert refused.value.body["type"] == "error"
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="il-unknown").messages.create(**CHAT, max_tokens=5)


def test_responses_whole_and_streamed(service, client):
    asked = {"model": MODEL, "input": "Where is the Seine?", "max_output_tokens": 9}
    reply = client.responses.create(**asked, instructions="Be brief.", user="ada", **LONG)
    assert (reply.status, reply.usage.output_tokens) == ("incomplete", 9)
    entry = service.logged(reply.id)
    assert ids.token_of(reply.id) == entry["token"]
    assert entry["messages"] == [{"role": "system", "content": "Be brief."}, *MESSAGES]
    (answer,) = entry["choices"]
    assert answer == {
        "text": reply.output_text,
        "finish_reason": "length",
        "tokens": 9,
        "tool_calls": None,
    }
    assert rate(client, reply.id) == "recorded"
    said, last = "", None
    for event in client.responses.create(**asked, stream=True, **LONG):
        last = event
        said += event.delta if event.type == "response.output_text.delta" else ""
    assert last.type == "response.completed"
    entry = service.logged(last.response.id)
    assert entry["choices"][0]["text"] == said == last.response.output_text
    assert entry["sampling"]["prompt_tokens"] == last.response.usage.input_tokens
    assert rate(client, last.response.id) == "recorded"


def test_a_response_is_carried_on_by_sending_it_back(service, client):
    first = client.responses.create(model=MODEL, input="Hi", max_output_tokens=5, **LONG)
    talk = [{"role": "user", "content": "Hi"}, *first.output, {"role": "user", "content": "Go on"}]
    second = client.responses.create(model=MODEL, input=talk, max_output_tokens=5)
    assert service.logged(second.id)["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Go on"},
    ]
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=MODEL, input="x", previous_response_id=first.id)


def test_responses_with_a_schema_and_with_tools(service, client):
    parsed = client.responses.parse(model=MODEL, input="Paint!", text_format=Paint)
    assert parsed.output_parsed.colour in ("red", "blue")
    tool = {"type": "function", **TOOL}
    for stream in (False, True):
        reply = client.responses.create(
            model=MODEL,
            input="Paint!",
            tools=[tool],
            tool_choice={"type": "function", "name": "paint"},
            stream=stream,
        )
        if stream:
            reply = list(reply)[-1].response
        (call,) = reply.output
        (answer,) = service.logged(reply.id)["choices"]
        assert answer["tool_calls"] == [
            {"id": call.call_id, "name": "paint", "arguments": call.arguments}
        ]
        Paint.model_validate_json(call.arguments)


def test_messages_whole_and_streamed(service, client, claude):
    asked = {**CHAT, "max_tokens": 9, "system": "Be brief.", "metadata": {"user_id": "ada"}}
    reply = claude.messages.create(**asked)
    entry = service.logged(reply.id)
    assert entry["messages"] == [{"role": "system", "content": "Be brief."}, *MESSAGES]
    assert entry["user"] == "ada"
    (answer,) = entry["choices"]
    assert (answer["text"], answer["tokens"]) == (reply.content[0].text, reply.usage.output_tokens)
    assert rate(client, reply.id) == "recorded"
    with claude.messages.stream(**asked) as stream:
        said = "".join(stream.text_stream)
        whole = stream.get_final_message()
    entry = service.logged(whole.id)
    assert entry["choices"][0]["text"] == said
    assert entry["choices"][0]["finish_reason"] in ("length", "stop")
    assert entry["choices"][0]["tokens"] == whole.usage.output_tokens
    assert entry["sampling"]["prompt_tokens"] == whole.usage.input_tokens
    assert rate(client, whole.id) == "recorded"


@pytest.mark.parametrize("stream", [False, True])
def test_messages_call_tools(service, claude, stream):
    tool = {"name": "paint", "description": "Paints.", "input_schema": SCHEMA}
    choice = {"type": "tool", "name": "paint"}
    asked = {**CHAT, "max_tokens": ENOUGH, "tools": [tool], "tool_choice": choice}
    if stream:
        with claude.messages.stream(**asked) as events:
            reply = events.get_final_message()
    else:
        reply = claude.messages.create(**asked)
    (block,) = [block for block in reply.content if block.type == "tool_use"]
    (answer,) = service.logged(reply.id)["choices"]
    assert answer["tool_calls"][0]["name"] == "paint"
    assert Paint.model_validate_json(answer["tool_calls"][0]["arguments"]) == Paint(**block.input)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_a_client_that_hangs_up_stops_the_engine_and_the_record_says_so(
    service, client, claude, api
):
    if api == "chat":
        stream = client.chat.completions.create(**CHAT, stream=True, max_tokens=1900, **LONG)
        name = next(iter(stream)).id
    elif api == "responses":
        stream = client.responses.create(
            model=MODEL, input="Hi", stream=True, max_output_tokens=1900, **LONG
        )
        name = next(iter(stream)).response.id
    else:
        stream = claude.messages.create(**CHAT, stream=True, max_tokens=1900)
        name = next(iter(stream)).message.id
    stream.close()
    seconds = service.seconds_until_idle()
    print(f"the engine was idle {seconds:.2f} s after the client had hung up")
    assert seconds < 5  # on a machine that others use too; a twentieth of what it would take
    assert service.logged(name)["error"] == "hung_up"


async def test_the_async_client(service):
    async with openai.AsyncOpenAI(base_url=service.base_url, api_key=service.secret) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True, max_tokens=4)
        name = [chunk.id async for chunk in stream][0]
        response = await client.responses.create(model=MODEL, input="Hi", max_output_tokens=4)
    for completion_id in (name, response.id):
        assert ids.token_of(completion_id) == service.logged(completion_id)["token"]


def test_langchain(service):
    options = {"base_url": service.base_url, "api_key": service.secret, "model": MODEL}
    chat = ChatOpenAI(**options, max_tokens=8, seed=3)
    reply = chat.invoke("Where is the Seine?")
    assert service.logged(reply.response_metadata["id"])["choices"][0]["text"] == reply.content
    assert reply.usage_metadata["output_tokens"] <= 8
    pieces = list(chat.stream("Where is the Seine?"))
    assert service.newest()["choices"][0]["text"] == "".join(piece.content for piece in pieces)
    for method in ("json_schema", "function_calling"):
        shaped = ChatOpenAI(**options).with_structured_output(Paint, method=method)
        assert isinstance(shaped.invoke("Paint!"), Paint)
    response = ChatOpenAI(**options, use_responses_api=True, max_tokens=8).invoke("Hi")
    assert service.logged(response.response_metadata["id"])["id"].startswith("resp_")


def test_lm_eval_scores_as_the_model_itself_does(service):
    """`local-completions` sends token ids and reads the scores of the prompt that comes back."""
    lm = LocalCompletionsAPI(
        base_url=service.base_url + "/completions",
        model=MODEL,
        tokenizer=str(service.spec.model),
        tokenizer_backend="huggingface",
        header={"Authorization": f"Bearer {service.secret}"},
        batch_size=2,
    )
    pairs = [("The Seine flows through", " Paris"), ("The Seine flows through", " the sea and on")]
    tasks = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    scores = lm.loglikelihood(tasks, disable_tqdm=True)
    for (context, continuation), (score, _) in zip(pairs, scores, strict=True):
        assert score == pytest.approx(_score(service.spec.model, context, continuation), abs=0.5)
    until = {"until": ["zebra"], "max_gen_toks": 5, "do_sample": False}
    (text,) = lm.generate_until(
        [Instance("generate_until", {}, (pairs[0][0], until), 0)], disable_tqdm=True
    )
    assert text


def _score(model: Path, context: str, continuation: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    given = tokenizer(context).input_ids
    whole = torch.tensor([given + tokenizer(continuation).input_ids])
    with torch.no_grad():
        logprobs = reference(whole).logits.float().log_softmax(-1)
    chosen = logprobs[0, :-1].gather(1, whole[0, 1:, None])[:, 0]
    return float(chosen[len(given) - 1 :].sum())


def test_lm_eval_chats(service):
    lm = LocalChatCompletion(
        base_url=service.base_url + "/chat/completions",
        model=MODEL,
        header={"Authorization": f"Bearer {service.secret}"},
    )
    chat = lm.apply_chat_template(MESSAGES)
    until = {"until": ["zebra"], "max_gen_toks": 5}
    task = Instance("generate_until", {}, (chat, until), 0)
    (text,) = lm.generate_until([task], disable_tqdm=True)
    assert text
