"""Reading a completion request: bytes in, what was asked out. Pure.

Parses the body once, refuses by name what is not on the allowlist of serving/fields.py, checks the
few values that the gateway itself acts on (the engine checks the rest), and builds the body that
the engine gets, from the parsed fields and never from the client's bytes. Knows no HTTP and no
engine; `serving/completions.py` calls it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from core.errors import BadRequest, NotFound
from core.records import ApiKey
from serving import fields
from serving.apis import Api
from serving.prompts import check_template_keywords

MODEL = "instructloop"
MAX_TOKEN_CHOICES = 255  # what a completion id has room for
_MAX_NAME_CHARS = 256
_MAX_METADATA = 16
_MAX_METADATA_KEY_CHARS = 64
_MAX_METADATA_VALUE_CHARS = 512
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request."""

    max_choices: int
    max_prompt_chars: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    api: Api
    engine_fields: dict[str, Any]
    """Passed on as they came; the prompt and n among them."""
    version: str | None
    """The pinned policy version; None for the current one."""
    stream: bool
    stream_options: dict[str, Any]
    choices: int
    """How many answers the reply has: n times the number of prompts."""
    prompt: list[dict[str, Any]] | dict[str, str] | None
    """As it is logged; None for what cannot be (batches, token ids)."""
    canonical: bytes
    """Equal for equal prompts: what the prompt tag is made of."""
    stored: bool
    user: str | None
    metadata: dict[str, str] = field(default_factory=dict)
    trains: bool = True

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for the usage event of a stream."""
        return bool(self.stream_options.get("include_usage"))

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of one answer, if the request says so."""
        for name in fields.MOST_TOKENS:
            value = self.engine_fields.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
        return None

    def end_user(self, key: ApiKey) -> str:
        """Who is asking: the name the application gave, else the key itself."""
        return self.user or key.id

    def sampling(self) -> dict[str, Any]:
        """How the answers are drawn, as it is logged."""
        given = {n: v for n in fields.RECORDED if (v := self.engine_fields.get(n)) is not None}
        numbers = {n: v for n, v in given.items() if isinstance(v, int | float)}
        return {**numbers, "n": self.engine_fields.get("n", 1), "stream": self.stream}


def parse(api: Api, body: bytes, limits: Limits) -> Asked:
    """Read a request. Raises BadRequest, NotFound (model), TooLarge (prompt)."""
    said = _fields_of(api, body)
    _refuse_unknown(api, said)
    check_template_keywords(said.get("chat_template_kwargs"))
    n = _count(said.get("n"), limits)
    prompt = api.read_prompt(said, limits.max_prompt_chars)
    passed = {k: v for k, v in said.items() if k in api.engine_fields and v is not None}
    passed[api.prompt_field] = said[api.prompt_field]
    if n > 1:
        passed["n"] = n
    stream = _typed(said, "stream", bool, False)
    stored = _typed(said, "store", bool, True) and prompt.recorded is not None
    beside = {**_beside_prompt(passed), **prompt.beside}
    user, metadata = _who_and_tags(api, said)
    return Asked(
        api=api,
        engine_fields=passed,
        version=_version(said.get("model")),
        stream=stream,
        stream_options=_stream_options(said, stream),
        choices=_choices(n, prompt.count),
        prompt=prompt.recorded,
        canonical=_encode({api.tag_field: prompt.seen, **beside}, orjson.OPT_SORT_KEYS),
        stored=stored,
        user=user,
        metadata=metadata,
        trains=not beside,
    )


def engine_body(asked: Asked, *, model: str, steering: Mapping[str, Any]) -> bytes:
    """The body for the engine. `steering` is what the gateway may set itself."""
    taken = {name: value for name, value in steering.items() if name in asked.api.steering}
    body = {"model": model, **asked.engine_fields, **asked.api.always, **taken}
    if asked.stream:
        body["stream"] = True
    if asked.stream and asked.api.asks_usage:
        body["stream_options"] = {**asked.stream_options, "include_usage": True}
    return _encode(body)


def _fields_of(api: Api, body: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="json_invalid") from None
    if not isinstance(said, dict):
        raise BadRequest("the body must be a JSON object")
    if said.get(api.prompt_field) is None:
        raise BadRequest(f"`{api.prompt_field}` is required", param=api.prompt_field)
    return said


def _refuse_unknown(api: Api, said: Mapping[str, Any]) -> None:
    known = api.engine_fields.keys() | api.our_fields.keys() | api.hints.keys()
    for name, value in said.items():
        if name in known or name == api.prompt_field:
            continue
        if name in fields.STATEFUL and (value is None or value is False):
            continue
        raise BadRequest(
            f"the field `{name[:100]}` {_why_not(name)}",
            param=name[:100],
            code="unknown_parameter",
        )


def _why_not(name: str) -> str:
    if name in fields.STATEFUL:
        return f"is not supported: {fields.STATEFUL[name]}"
    return "is set by the service, not by clients" if name in fields.STEERING else "is unknown"


def _typed(said: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    value = said.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise BadRequest(f"`{name}` must be of type {kind.__name__}", param=name)
    return value


def _count(n: Any, limits: Limits) -> int:
    if n is None:
        return 1
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= limits.max_choices:
        raise BadRequest(f"`n` must be an integer from 1 to {limits.max_choices}", param="n")
    return n


def _choices(n: int, prompts: int) -> int:
    if n * prompts > MAX_TOKEN_CHOICES:
        raise BadRequest(
            f"`n` answers to each prompt make {n * prompts}: ask for at most {MAX_TOKEN_CHOICES}",
            param="n",
        )
    return n * prompts


def _version(model: Any) -> str | None:
    """The version that a model name pins."""
    if model is None or model == MODEL:
        return None
    if isinstance(model, str) and model.startswith(f"{MODEL}@") and len(model) > len(MODEL) + 1:
        return model.removeprefix(f"{MODEL}@")
    if not isinstance(model, str):
        raise BadRequest("`model` must be a string", param="model")
    raise model_not_found(model)


def model_not_found(model: str) -> NotFound:
    """The error for a model that nobody serves."""
    return NotFound(
        f"no replica serves the model `{model[:100]}`: GET /v1/models lists what is served",
        param="model",
        code="model_not_found",
    )


def _stream_options(said: Mapping[str, Any], stream: bool) -> dict[str, Any]:
    options: dict[str, Any] = _typed(said, "stream_options", dict, {})
    if options and not stream:
        raise BadRequest("`stream_options` goes with `stream`: true", param="stream_options")
    for name in options:
        if name not in ("include_usage", "continuous_usage_stats", "include_obfuscation"):
            raise BadRequest(f"unknown stream option `{name}`", param=f"stream_options.{name}")
    # without the usage event the engine sends no usage with the other events either
    if not options.get("include_usage"):
        return {}
    return {name: value for name, value in options.items() if name != "include_obfuscation"}


def _who_and_tags(api: Api, said: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The end user's name, wherever this API says it, and the tags."""
    metadata = dict(_typed(said, "metadata", dict, {}))
    named = {name: said.get(name) for name in ("user", "safety_identifier")}
    if api.metadata_user is not None:
        named[f"metadata.{api.metadata_user}"] = metadata.pop(api.metadata_user, None)
    return _user(named), _tags(metadata)


def _user(named: Mapping[str, Any]) -> str | None:
    for name in named:
        value = _typed(named, name, str, "")
        if len(value) > _MAX_NAME_CHARS:
            raise BadRequest(f"`{name}` is longer than {_MAX_NAME_CHARS} characters", param=name)
        if value:
            return value
    return None


def _tags(metadata: dict[str, Any]) -> dict[str, str]:
    if len(metadata) > _MAX_METADATA:
        raise BadRequest(f"`metadata` has more than {_MAX_METADATA} entries", param="metadata")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise BadRequest("values of `metadata` must be strings", param=f"metadata.{key}"[:100])
        if len(key) > _MAX_METADATA_KEY_CHARS or len(value) > _MAX_METADATA_VALUE_CHARS:
            raise BadRequest(
                f"`metadata` takes keys of {_MAX_METADATA_KEY_CHARS} and values of "
                f"{_MAX_METADATA_VALUE_CHARS} characters",
                param="metadata",
            )
    return metadata


def _beside_prompt(passed: Mapping[str, Any]) -> dict[str, Any]:
    """What changes the prompt that the model sees, where it says more than the default."""
    return {
        name: passed[name]
        for name, default in fields.BESIDE_PROMPT.items()
        if name in passed and passed[name] != default
    }


def _encode(value: Any, option: int = 0) -> bytes:
    try:
        return orjson.dumps(value, option=option)
    except orjson.JSONEncodeError:
        raise BadRequest("the body is nested too deeply") from None
