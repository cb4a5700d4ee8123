"""What each pod of the chart keeps to: pod security `restricted`, bounds, real settings."""

import json

import pytest
import yaml
from chart_rig import CASES, CHART, MATRIX, containers, of_kind, pods, resources

from core.redis_address import read_address
from core.settings import PREFIX, load_settings
from learning.worker.broker import broker_url

LASTING = {"gateway", "engine", "worker", "beat", "redis"}
PLAIN_VOLUMES = {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}
EXAMPLES = {
    "INSTRUCTLOOP_REDIS_URL": "redis://redis:6379/0",
    "INSTRUCTLOOP_REDIS_BROKER_URL": "redis://broker:6379/0",
    "INSTRUCTLOOP_REDIS_LIMITS_URL": "redis://limits:6379/0",
    "POD_NAME": "turn-instructloop-engine-0",
    "POD_IP": "10.1.2.3",
}


def named_secrets(values):
    """Secrets, with their keys where they are given, that the values refer to."""
    if isinstance(values, dict):
        for name, value in values.items():
            if name in ("existingSecret", "secretName") and isinstance(value, str) and value:
                yield value
            elif name.endswith("Secret") and isinstance(value, dict) and value.get("name"):
                yield value["name"]
            else:
                yield from named_secrets(value)


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_restricted(case):
    for component, pod in pods(case).items():
        spec, where = pod["spec"], f"{case} {component}"
        said = spec["securityContext"]
        assert said["runAsNonRoot"] is True, where
        assert said["runAsUser"] > 0, where
        assert said["seccompProfile"] == {"type": "RuntimeDefault"}, where
        # a changed group of every file would open secrets, which are then refused
        assert said["fsGroupChangePolicy"] == "OnRootMismatch", where
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["enableServiceLinks"] is False, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), where
        for volume in spec.get("volumes", ()):
            assert volume.keys() - {"name"} <= PLAIN_VOLUMES, where
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"], where


@pytest.mark.parametrize("case", CASES)
def test_every_container_is_restricted_bounded_and_of_a_named_release(case):
    for component, container in containers(case):
        where = f"{case} {component} {container['name']}"
        said = container["securityContext"]
        assert said["allowPrivilegeEscalation"] is False, where
        assert said["readOnlyRootFilesystem"] is True, where
        assert said["runAsNonRoot"] is True, where
        assert said["capabilities"] == {"drop": ["ALL"]}, where
        assert said["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"privileged", "procMount"} & said.keys(), where
        tag = container["image"].rsplit("/", 1)[-1].partition(":")[2]
        assert tag, where
        assert not tag.startswith("latest"), where
        for kind in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"][kind].keys()


@pytest.mark.parametrize("case", CASES)
def test_what_lasts_is_probed_and_what_ends_is_not(case):
    for component, pod in pods(case).items():
        for container in pod["spec"]["containers"]:
            probes = {"startupProbe", "readinessProbe", "livenessProbe"} & container.keys()
            assert len(probes) == (3 if component in LASTING else 0), component
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in probes:
                said = container[probe].get("httpGet") or container[probe].get("tcpSocket")
                assert not said or said["port"] in ports


@pytest.mark.parametrize("case", CASES)
def test_every_mount_has_its_volume_and_every_volume_its_mount(case):
    for component, pod in pods(case).items():
        spec = pod["spec"]
        there = {volume["name"] for volume in spec.get("volumes", ())}
        if component == "redis":
            there |= {"data"}
        used = {
            mount["name"]
            for container in [*spec.get("initContainers", ()), *spec["containers"]]
            for mount in container.get("volumeMounts", ())
        }
        assert used == there, f"{case} {component}"


@pytest.mark.parametrize("case", CASES)
def test_every_secret_is_made_here_or_named_in_the_values(case):
    made = {one["metadata"]["name"]: one["stringData"] for one in of_kind(case, "Secret")}
    given = {*named_secrets(MATRIX[case])}
    asked = [
        (
            variable["valueFrom"]["secretKeyRef"]["name"],
            variable["valueFrom"]["secretKeyRef"]["key"],
        )
        for _, container in containers(case)
        for variable in container.get("env", ())
        if "secretKeyRef" in variable.get("valueFrom", {})
    ]
    asked += [
        (reference["name"], reference["key"])
        for one in of_kind(case, "TriggerAuthentication")
        for reference in one["spec"]["secretTargetRef"]
    ]
    for name, key in asked:
        assert name in given or key in made[name], f"{case} {name} {key}"
    for pod in pods(case).values():
        for volume in pod["spec"].get("volumes", ()):
            if "secret" in volume:
                assert volume["secret"]["secretName"] in given
    for one in resources(case):
        if one["kind"] == "Secret":
            continue
        for secret in made.values():
            assert secret["password"] not in json.dumps(one)


def settings_of(container, monkeypatch, tmp_path):
    """The settings of a process with the container's variables."""
    variables = {}
    for one in container.get("env", ()):
        assert one["name"] not in variables, one["name"]
        text = str(one.get("value", EXAMPLES.get(one["name"], "example")))
        for name, value in EXAMPLES.items():
            text = text.replace(f"$({name})", value)
        variables[one["name"]] = text
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        for name, value in variables.items():
            if name.startswith(PREFIX):
                patch.setenv(name, value)
        return load_settings()


@pytest.mark.parametrize("case", CASES)
def test_every_process_gets_settings_that_it_knows(case, monkeypatch, tmp_path):
    seen = {}
    for component, container in containers(case):
        if component in LASTING - {"redis"} | {"init"} and container["name"] == component:
            seen[component] = settings_of(container, monkeypatch, tmp_path)
    own = {"engine"} if case != "external" else set()
    assert seen.keys() == {"gateway", "worker", "beat", "init"} | own
    for component, settings in seen.items():
        assert str(settings.secrets) == "/var/lib/instructloop/secrets"
        assert settings.learning.enabled is (case not in ("external", "secret"))
        local = component == "engine" and bool(settings.policies_url)
        assert str(settings.state_dir).startswith("/var/local" if local else "/var/lib")
        port = settings.gateway.metrics_port if component == "gateway" else settings.metrics_port
        assert component == "init" or port == 9100
    if own:
        assert str(seen["engine"].engine.listen) == "0.0.0.0:8100"
        assert seen["engine"].engine.advertise == "http://10.1.2.3:8100"
        assert seen["engine"].engine.name == "turn-instructloop-engine-0"


def test_what_values_say_reaches_the_processes(monkeypatch, tmp_path):
    def gateway(case):
        (found,) = (c for name, c in containers(case) if name == c["name"] == "gateway")
        return settings_of(found, monkeypatch, tmp_path)

    full = gateway("full")
    assert full.limits.requests_per_minute == 600
    assert full.webhooks.urls == ("https://example.org/hook",)
    assert gateway("external").engine.urls == ("http://vllm-router-service.serving:80",)
    assert gateway("s3").policies_url == "s3://bucket/policies"
    assert gateway("s3").log.archive == "s3://bucket/archive"
    assert gateway("s3").redis_url == "rediss://redis.example.org:6380/0"
    sentinel = gateway("sentinel")
    assert sentinel.redis_url == "rediss+sentinel://redis-a:26379,redis-b/mymaster/0"
    assert sentinel.redis_wait_replicas == 1
    assert str(sentinel.redis_key_file) == "/etc/instructloop/redis/tls.key"
    cluster = gateway("cluster")
    assert read_address(cluster.redis_url).nodes == (("redis-a", 6379), ("redis-b", 6379))
    assert broker_url(cluster) == "redis://broker:6379/0"
    assert gateway("gpu").promotion == "auto"


def test_a_setting_that_the_chart_makes_cannot_be_given_a_second_time():
    schema = json.loads((CHART / "values.schema.json").read_text())
    refused = {*schema["properties"]["settings"]["propertyNames"]["not"]["enum"]}
    given = {PREFIX + name for case in CASES for name in MATRIX[case].get("settings", ())}
    made = {
        variable["name"].removeprefix(PREFIX)
        for case in CASES
        for component, container in containers(case)
        for variable in container.get("env", ())
        if component != "redis" and variable["name"].startswith(PREFIX)
        if variable["name"] not in given
    }
    assert made - {"LOG_FORMAT"} <= refused  # that one gives way


def test_the_default_tag_is_the_release_of_the_project():
    project = (CHART.parents[1] / "pyproject.toml").read_text()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in project
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["image"]["tag"] == f"{chart['appVersion']}-cpu"
    assert values["gpuImage"]["tag"] == f"{chart['appVersion']}-gpu"
