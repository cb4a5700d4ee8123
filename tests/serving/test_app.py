"""The OpenAPI document: complete, and true when it is put to the test."""

import asyncio
import sys

import pytest

from core.auth import create_key
from tests.conftest import eventually
from tests.serving.apis_double import ApisDouble
from tests.serving.conftest import announce, running_gateway

pytestmark = pytest.mark.thorough

ROUTES = {
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
    "/v1/models": {"get"},
    "/v1/models/{model}": {"get"},
    "/v1/chat/completions": {"post"},
    "/v1/completions": {"post"},
    "/v1/responses": {"post"},
    "/v1/messages": {"post"},
    "/v1/feedback": {"post"},
    "/v1/feedback/{feedback_id}": {"get", "delete"},
    "/v1/feedback-tokens": {"post"},
    "/v1/usage": {"get"},
    "/v1/rankings": {"post"},
    "/v1/demonstrations": {"post"},
    "/v1/labeling/next": {"get"},
    "/v1/policies": {"get"},
    "/v1/policies/{version}": {"get"},
    "/v1/policies/{version}/feedback": {"get"},
    "/v1/policies/{version}/feedback/{feedback_id}": {"get"},
    "/v1/policies/{version}/promote": {"post"},
    "/v1/policies/rollback": {"post"},
    "/v1/loop": {"get"},
    "/v1/loop/runs": {"get", "post"},
    "/v1/loop/runs/{run_id}": {"get"},
}
COMPLETIONS = "/v1/(chat/completions|completions|responses|messages)$"
OPEN = ("/healthz", "/readyz")


@pytest.fixture
async def admin(redis, gateway_settings, state_dir):
    async with (
        ApisDouble().listening(state_dir / "engine.sock") as url,
        running_gateway(gateway_settings, redis) as gateway,
    ):
        await announce(redis, url)
        await eventually(gateway.app.state.services.replicas.versions)
        _, gateway.secret = await create_key(redis, name="a", tenant="ops", scopes=["admin"])
        yield gateway


async def test_every_route_has_its_statuses_and_bodies_in_the_document(admin):
    async with admin.get("/openapi.json") as response:
        document = await response.json()
    for path, methods in ROUTES.items():
        assert methods <= document["paths"][path].keys(), path
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"]
            described = operation["responses"]
            if path not in OPEN:
                assert {"401", "503"} <= described.keys(), (method, path)
            if method == "post":
                assert {"400", "413"} <= described.keys(), (method, path)
            for status, said in described.items():
                if status.startswith(("4", "5")) and path not in OPEN:
                    schema = said["content"]["application/json"]["schema"]
                    error = "AnthropicErrorBody" if path == "/v1/messages" else "ErrorBody"
                    assert schema == {"$ref": f"#/components/schemas/{error}"}, (method, path)
    assert document["security"]
    said = {
        "chat/completions": {"messages", "model", "n", "tools", "user"},
        "completions": {"prompt", "model", "n", "echo", "user"},
        "responses": {"input", "instructions", "model", "text", "tools", "user"},
        "messages": {"messages", "max_tokens", "model", "system", "tools", "metadata"},
    }
    for path, names in said.items():
        operation = document["paths"][f"/v1/{path}"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema["additionalProperties"] is False
        assert names <= schema["properties"].keys()
        assert "priority" not in schema["properties"]
        answered = operation["responses"]["200"]
        assert answered["content"].keys() == {"application/json", "text/event-stream"}
        assert {"x-policy-version", "x-request-id"} <= answered["headers"].keys()


async def test_what_the_document_says_holds_for_whatever_is_sent(admin):
    """Schemathesis, on all routes but completions, which need an engine."""
    await fuzz(admin, "--exclude-path-regex", COMPLETIONS)


async def test_it_holds_for_completions_too(redis, gateway_settings, state_dir):
    """An engine that answers whatever it gets, so that all that is refused is refused by us."""
    engine = ApisDouble()
    async with engine.listening(state_dir / "engine.sock") as url:
        await announce(redis, url)
        async with running_gateway(gateway_settings, redis) as gateway:
            await fuzz(gateway, "--include-path-regex", COMPLETIONS)
    assert engine.requests


async def fuzz(gateway, *which: str) -> None:
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"),
        *("--header", f"x-api-key: {gateway.secret}"),
        *which,
        *("--checks", checks),
        *("--phases", "fuzzing"),
        *("--max-examples", "10", "--seed", "7", "--generation-database", "none"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-6000:]
