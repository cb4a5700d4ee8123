"""Settings: the environment over `instructloop.toml` over the profile over defaults.

Read once at the edge of each process and handed down as the smallest group that is needed.
Knows names, types and bounds; opens no connection and touches no state.
"""

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from core.errors import StartError
from core.hyperparameters import PAPER, LearningSettings
from core.setting_groups import (
    CanarySettings,
    EngineSettings,
    FeedbackSettings,
    GatewaySettings,
    LimitSettings,
    LogSettings,
    RetentionSettings,
    RoomSettings,
    WebhookSettings,
)

PREFIX = "INSTRUCTLOOP_"
SETTINGS_FILE = "instructloop.toml"
Profile = Literal["cpu-small", "paper"]


class Settings(BaseSettings):
    """All of them. `INSTRUCTLOOP_LEARNING__POLICY__ITERATIONS=8` reaches a nested one."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    state_dir: Path = Path(".instructloop")
    """Folder of keys, logs, policies, runs and the data of our own Redis."""
    secrets_dir: Path | None = None
    """Folder of the secrets that all machines of one installation share. Unset: `secrets` in
    `state_dir`."""
    policies_url: str = ""
    """Where versions are kept, too, for other machines: a folder, or a URL that fsspec reaches."""
    model: str = "smollm2"
    """What v0000 is: a Hugging Face id, a local folder, or the bundled `smollm2`."""
    profile: Profile = "cpu-small"
    """`cpu-small`, or `paper` for GPUs (the default where there is one)."""
    promotion: Literal["auto", "manual"] = "manual"
    """Who makes a candidate live that passed the gate: `auto`, or a person."""
    redis_url: str | None = None
    """Unset: `up` starts a Redis of its own on a socket in the state folder."""
    redis_broker_url: str | None = None
    """Where Celery passes its messages, which is no Cluster. Unset: the same Redis."""
    redis_limits_url: str | None = None
    """Where rate limits are counted. Unset: the same Redis."""
    redis_wait_replicas: int = Field(0, ge=0, le=16)
    """Replicas that must have what a reply about feedback promises; else it is 503."""
    redis_wait_seconds: float = Field(1.0, gt=0, le=4.0)
    """How long is waited for them."""
    redis_ca_file: Path | None = None
    """Certificates that a Redis over TLS (`rediss://`) is believed by. Unset: the machine's own."""
    redis_certificate_file: Path | None = None
    """Certificate that we show to it."""
    redis_key_file: Path | None = None
    """The key of that certificate."""
    durability: Literal["strict", "relaxed"] = "strict"
    """`relaxed` takes feedback though Redis may lose seconds of it in a crash."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What the processes write to their logs."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """How: one JSON object a line, or text; `auto` is text on a terminal."""
    otel_endpoint: str | None = None
    """Where OpenTelemetry traces go (OTLP over HTTP), as `http://collector:4318`. Unset: what
    `OTEL_EXPORTER_OTLP_ENDPOINT` says, else nothing is traced."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Where an engine's agent, a worker or beat shows its own `/metrics`, each on a machine of its
    own. Unset: nowhere; under `up` the gateway shows those of all."""
    metrics_host: str = "127.0.0.1"
    """Address of that port."""
    gateway: GatewaySettings = GatewaySettings()
    limits: LimitSettings = LimitSettings()
    engine: EngineSettings = EngineSettings()
    log: LogSettings = LogSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    learning: LearningSettings = LearningSettings()
    retention: RetentionSettings = RetentionSettings()
    room: RoomSettings = RoomSettings()
    canary: CanarySettings = CanarySettings()
    webhooks: WebhookSettings = WebhookSettings()

    @property
    def secrets(self) -> Path:
        """The folder of secrets, for core/keyring.py."""
        return self.secrets_dir or self.state_dir / "secrets"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls, toml_file=SETTINGS_FILE)
        return init_settings, env_settings, toml, ProfileSource(settings_cls)


class ProfileSource(PydanticBaseSettingsSource):
    """What the chosen profile changes, below everything a person wrote."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not used: the profile is given whole by `__call__`."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        chosen = self.current_state.get("profile") or default_profile()
        return {"profile": chosen, **({"learning": PAPER} if chosen == "paper" else {})}


def default_profile() -> Profile:
    """`paper` where there is an NVIDIA GPU, else `cpu-small`."""
    return "paper" if shutil.which("nvidia-smi") else "cpu-small"


def load_settings(**overrides: Any) -> Settings:
    """All settings, with options of a command line on top.

    Raises StartError with a line that names the setting that is unknown or malformed.
    """
    _refuse_unknown_environment()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise StartError("; ".join(_explain(detail) for detail in error.errors())) from None
    except tomllib.TOMLDecodeError as error:
        raise StartError(f"{SETTINGS_FILE} is not valid TOML: {error}") from None


def _refuse_unknown_environment() -> None:
    """A misspelt top-level variable would otherwise be ignored in silence."""
    known = {name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for name in os.environ:
        head = name.removeprefix(PREFIX).split("__")[0]
        if name.startswith(PREFIX) and head not in known:
            raise StartError(f"unknown setting {name}: see the table of settings in the README")


OTHER_VARIABLES = {
    "REDIS_SERVER",  # path of a redis-server to start
    "URL",  # where clients of this machine find the service (simulate, bench)
    "API_KEY",  # the key they use
    "ENGINE_TOKENS",  # file that the engine's guard reads
    "POLICY_VERSION",  # what the engine's guard starts with
    "ENGINE_TCP",  # whether the engine's guard stands on a port
}


def _explain(detail: Any) -> str:
    name = PREFIX + "__".join(str(part).upper() for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown setting {name}: see the table of settings in the README"
    return f"setting {name}: {detail['msg']}"
