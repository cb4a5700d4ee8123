"""What an engine refused with, as clients of each API read it."""

import orjson
import pytest

from serving.error_bodies import refusal_for

OPENAI = b'{"error":{"message":"too long","type":"BadRequestError","param":"prompt","code":400}}'
ANTHROPIC = b'{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}'


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_an_error_object_is_passed_on_byte_for_byte(path):
    assert refusal_for(path, 400, OPENAI) is OPENAI
    assert refusal_for("/v1/messages", 400, ANTHROPIC) is ANTHROPIC


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>Bad Gateway</html>", b"[]", b'"no"', b'{"detail":"no"}', b'{"error":"no"}'],
)
def test_what_is_no_error_object_becomes_one(body):
    error = orjson.loads(refusal_for("/v1/chat/completions", 502, body))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "502" in error["message"]
    said = orjson.loads(refusal_for("/v1/messages", 502, body))
    assert said["type"] == "error"
    assert said["error"].keys() == {"type", "message"}


@pytest.mark.parametrize(
    "failed",
    [
        {"type": "response.failed", "response": {"error": {"message": "out of memory"}}},
        {"type": "error", "code": "server_error", "message": "out of memory", "param": None},
    ],
)
def test_a_response_that_failed_before_its_first_token_is_an_error_with_its_words(failed):
    error = orjson.loads(refusal_for("/v1/responses", 500, orjson.dumps(failed)))["error"]
    assert error["message"] == "out of memory"


def test_anthropics_clients_read_openais_words():
    said = orjson.loads(refusal_for("/v1/messages", 400, OPENAI))
    assert said["error"] == {"type": "invalid_request_error", "message": "too long"}
