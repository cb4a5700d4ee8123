"""A real Prometheus that scrapes a service once a second, for as long as a test wants."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.service import free_port
from tests.redis_fleet import until

_LABEL = "a-test"


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    port: int

    def is_ready(self) -> bool:
        """Whether it answers questions."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/-/ready", timeout=10
            ) as told:
                return bool(told.status == 200)
        except OSError:
            return False

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now; raises AssertionError where it is not understood."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._api}/query?{query}", timeout=10) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that is loaded, with its health."""
        with urllib.request.urlopen(f"{self._api}/rules", timeout=10) as reply:
            groups = json.load(reply)["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    @property
    def _api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1"


@contextmanager
def prometheus(folder: Path, *, target: str, key: str, rules: Path) -> Iterator[Prometheus]:
    """Scrape `target` (host:port) with an API key, from now until the end of the block."""
    folder.mkdir()
    (folder / "key").write_text(key)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": _LABEL,
                "static_configs": [{"targets": [target]}],
                "authorization": {"credentials_file": str(folder / "key")},
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Prometheus(port)
    try:
        until(server.is_ready, what="Prometheus is ready")
        yield server
    finally:
        process.terminate()
        process.wait(30)
