"""The folder of the model that the service starts with: bundled, local, or from a hub."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from core.errors import StartError
from core.process import wrapped
from core.settings import Settings

_WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "tokenizer*"]


def base_model_folder(
    settings: Settings, *, say: Callable[[str], None], alive: Callable[[], bool]
) -> Path:
    """A complete Hugging Face folder with safetensors. Raises StartError."""
    if settings.model == "smollm2":
        return _bundled(settings.state_dir / "models" / "smollm2", say=say, alive=alive)
    local = Path(settings.model).expanduser()
    return local if local.is_dir() else _from_hub(settings, say=say)


def _bundled(target: Path, *, say: Callable[[str], None], alive: Callable[[], bool]) -> Path:
    """The default model, converted once from the package that carries it."""
    if (target / "config.json").exists():
        return target
    say("making the default model ready (15 s, once)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "prepare.log").open("ab") as log:
        process = subprocess.Popen(
            wrapped([sys.executable, "-m", "core.default_model", str(target)]),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while process.poll() is None and alive():
            time.sleep(0.05)
        if process.poll() is None:
            process.terminate()
            process.wait()
    if alive() and process.returncode != 0:
        raise StartError(
            f"the default model could not be made ready: see {target.parent / 'prepare.log'}"
        )
    return target


def _from_hub(settings: Settings, *, say: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    target = settings.state_dir / "models" / settings.model.replace("/", "--")
    if (target / "complete").exists():
        return target
    say(f"fetching {settings.model} from the model hub")
    shutil.rmtree(target, ignore_errors=True)
    try:
        snapshot_download(settings.model, local_dir=target, allow_patterns=_WANTED)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise StartError(
            f"cannot fetch {settings.model} ({type(error).__name__}): check the id and the "
            "network, or point --model at a local folder"
        ) from None
    if not any(target.glob("*.safetensors")):
        raise StartError(f"{settings.model} has no safetensors weights: choose another model")
    (target / "complete").touch()
    return target
