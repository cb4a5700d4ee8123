"""The chart is Helm's and Kubernetes' to judge: rendered, linted, validated, packaged.

Helm itself does the first two (its library, in a wheel); the schemas of three Kubernetes versions
refuse unknown fields; those of custom resources are written down here as far as we use them.
"""

import copy
import json
import tarfile

import helm_python as helm
import jsonschema_rs
import pytest
import yaml
from chart_rig import CASES, CHART, KUBERNETES, MATRIX, files, of_kind, resources, strict_validator

from core import keys
from learning.worker.tasks import CONTROL, LEARNING


def closed(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
    }


STRING, NUMBER = {"type": "string"}, {"type": "integer"}
STRINGS = {"type": "object", "additionalProperties": STRING}
HEAD = {
    "apiVersion": STRING,
    "kind": STRING,
    "metadata": closed(["name"], name=STRING, namespace=STRING, labels=STRINGS),
}
SELECTOR = closed(
    matchLabels=STRINGS,
    matchExpressions={
        "type": "array",
        "items": closed(["key", "operator"], key=STRING, operator=STRING, values={"type": "array"}),
    },
)
ENDPOINTS = {
    "type": "array",
    "items": closed(["port"], port=STRING, path=STRING, interval={"pattern": "^[0-9]+s$"}),
}
RULE = closed(
    ["expr"],
    alert=STRING,
    record=STRING,
    expr=STRING,
    labels=STRINGS,
    annotations=STRINGS,
    **{"for": STRING},
)
TRIGGER = closed(
    ["type", "metadata"],
    type={"enum": ["redis", "redis-streams", "redis-sentinel", "redis-sentinel-streams"]},
    metadata=STRINGS,
    authenticationRef=closed(["name"], name=STRING),
)
SECRET_REFERENCE = closed(["parameter", "name", "key"], parameter=STRING, name=STRING, key=STRING)
CUSTOM = {
    "ServiceMonitor": closed(["selector", "endpoints"], selector=SELECTOR, endpoints=ENDPOINTS),
    "PodMonitor": closed(["selector"], selector=SELECTOR, podMetricsEndpoints=ENDPOINTS),
    "PrometheusRule": closed(
        groups={
            "type": "array",
            "items": closed(["name"], name=STRING, rules={"type": "array", "items": RULE}),
        }
    ),
    "ScaledObject": closed(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=closed(["name"], name=STRING),
        minReplicaCount=NUMBER,
        maxReplicaCount=NUMBER,
        pollingInterval=NUMBER,
        cooldownPeriod=NUMBER,
        triggers={"type": "array", "items": TRIGGER},
    ),
    "TriggerAuthentication": closed(secretTargetRef={"type": "array", "items": SECRET_REFERENCE}),
}


def faults(version, resource):
    """What a Kubernetes of that version, or an operator, would not take."""
    if resource["kind"] in CUSTOM:
        schema = closed([*HEAD], **HEAD, spec=CUSTOM[resource["kind"]])
        validator = jsonschema_rs.validator_for(schema)
    else:
        validator = strict_validator(version, resource["apiVersion"], resource["kind"])
    return [(list(e.instance_path), e.message) for e in validator.iter_errors(resource)]


@pytest.mark.parametrize("case", CASES)
def test_helm_lints_the_chart_without_a_warning(case):
    said = helm.lint(CHART, MATRIX[case], strict=True)
    assert said["errors"] == []
    assert {(m["severity"], m["error"]) for m in said["messages"]} <= {(1, "icon is recommended")}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_resource_is_one_that_kubernetes_knows(case, version):
    for resource in resources(case):
        assert faults(version, resource) == [], resource["kind"]


def test_the_validation_finds_misspelt_fields_at_any_depth():
    for kind, path in (
        ("Deployment", ("spec", "template", "spec", "containers", 0, "securityContext")),
        ("NetworkPolicy", ("spec", "ingress", 0)),
        ("PodDisruptionBudget", ("spec",)),
        ("ServiceMonitor", ("spec", "endpoints", 0)),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0)),
    ):
        broken = copy.deepcopy(of_kind("full", kind)[0])
        place = broken
        for part in path:
            place = place[part]
        place["misspelt"] = True
        assert faults(KUBERNETES[-1], broken), kind


@pytest.mark.parametrize("case", CASES)
def test_names_are_unique_and_everything_is_in_the_namespace_of_the_release(case):
    known = [(one["kind"], one["metadata"]["name"]) for one in resources(case)]
    assert len(known) == len({*known})
    for one in resources(case):
        assert one["metadata"]["namespace"] == "loop", one["metadata"]["name"]
        assert len(one["metadata"]["name"]) <= 63


def test_a_release_with_a_long_name_still_has_names_that_kubernetes_takes():
    with helm.Chart.load(CHART) as chart:
        said = chart.render(MATRIX["full"], name="a" * 53, namespace="loop")
    for text in said.values():
        for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if "kind:" in text else ():
            if one:
                assert len(one["metadata"]["name"]) <= 63
                assert faults(KUBERNETES[-1], one) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gatway": {}}, "gatway"),
        ({"gateway": {"replica": 2}}, "replica"),
        ({"gateway": {"replicas": 0}}, "replicas"),
        ({"image": {"tag": "latest"}}, "tag"),
        ({"redis": {"url": "redis://:secret@redis:6379/0"}}, "url"),
        ({"redis": {"url": "redis-cluster://redis:6379"}}, "url"),
        ({"redis": {"cluster": {"nodes": ["redis://redis:6379"]}}}, "nodes"),
        ({"profile": "gpu"}, "profile"),
        ({"engines": {"resources": {"limits": {"cpu": None}}}}, "limits"),
        ({"engines": {"shmSize": "2 GB"}}, "shmSize"),
        ({"settings": {"STATE_DIR": "/elsewhere"}}, "STATE_DIR"),
        ({"settings": {"engine.count": 2}}, "engine.count"),
        ({"externalEngines": {"urls": ["http://user:password@vllm"]}}, "urls"),
        ({"externalEngines": {"urls": ["vllm:8000"]}}, "urls"),
        ({"ingress": {"enabled": True}}, "host"),
        ({"workers": {"keda": {"address": "redis://redis:6379"}}}, "address"),
        ({"engines": {"localSize": "900Mi"}}, "localSize"),
        ({"networkPolicy": {"clients": [{"namespace": "apps"}]}}, "clients"),
        ({"storage": {"policiesUrl": "s3://key:secret@bucket"}}, "policiesUrl"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_their_name(values, said):
    with helm.Chart.load(CHART) as chart:
        with pytest.raises(helm.HelmError, match=said):
            chart.validate_schema(values)
        with pytest.raises(helm.HelmError, match=said):
            chart.render({"redis": {"trial": {"enabled": True}}} | values, name="turn")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "exactly one Redis is needed, none is given"),
        ({"redis": {"url": "redis://a:6379", "trial": {"enabled": True}}}, "redis.url, redis.tri"),
        ({"redis": {"cluster": {"nodes": ["a:6379"]}}}, "set redis.brokerSecret.name"),
        ({"redis": {"url": "rediss+cluster://a:6379"}}, "set redis.brokerSecret.name"),
        (
            {
                "redis": {"url": "redis://a:6379"},
                "workers": {"keda": {"enabled": True}},
            },
            "workers.keda: set address",
        ),
        (
            {
                "redis": {"url": "redis://a:6379"},
                "workers": {
                    "keda": {
                        "enabled": True,
                        "address": "a:6379",
                        "passwordSecret": {"usernameKey": "user"},
                    }
                },
            },
            "passwordSecret.name: set that",
        ),
        (
            {
                "redis": {"url": "redis://a:6379"},
                "workers": {
                    "keda": {
                        "enabled": True,
                        "address": "a:6379",
                        "sentinelSecret": {"name": "sentinel"},
                    }
                },
            },
            "sentinelSecret is for Sentinels",
        ),
        (
            {
                "redis": {"url": "redis://a:6379"},
                "gateway": {"autoscaling": {"enabled": True, "minReplicas": 11}},
            },
            "minReplicas is more than maxReplicas",
        ),
    ],
)
def test_values_that_contradict_each_other_say_what_to_set(values, said):
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError, match=said):
        chart.render(values, name="turn")


def test_every_value_has_a_default_and_a_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(of, have, path):
        while "$ref" in of:
            of = schema["$defs"][of["$ref"].rsplit("/", 1)[1]]
        if "properties" not in of:
            return
        wanted = {*of["properties"]} - ({"global"} if not path else set())
        assert have.keys() == wanted, path
        for name, value in have.items():
            if isinstance(value, dict):
                compare(of["properties"][name], value, [*path, name])

    compare(schema, values, [])


def test_a_package_holds_what_it_needs_and_renders_the_same(tmp_path):
    with helm.Chart.load(CHART) as chart:
        archive = chart.save(tmp_path)
    with tarfile.open(archive) as packed:
        names = {name.removeprefix("instructloop/") for name in packed.getnames()}
    assert {"Chart.yaml", "values.yaml", "values.schema.json", "files/alerts.yml"} <= names
    assert not {name for name in names if name.endswith("_test.yml")}
    with helm.Chart.load(archive) as chart:
        said = chart.render(MATRIX["gpu"], name="turn", namespace="loop")
    assert {name.rsplit("/", 1)[1]: text for name, text in said.items()} == files("gpu")


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("full", {"password": ("turn-instructloop-redis", "password")}),
        ("gpu", {"password": ("keda", "password")}),
        (
            "sentinel",
            {
                "username": ("redis-keda", "user"),
                "password": ("redis-keda", "password"),
                "sentinelUsername": ("sentinel-keda", "name"),
                "sentinelPassword": ("sentinel-keda", "word"),
                "ca": ("redis-tls", "ca.crt"),
                "cert": ("redis-tls", "tls.crt"),
                "key": ("redis-tls", "tls.key"),
            },
        ),
    ],
)
def test_keda_logs_in_by_references_to_secrets_in_every_trigger(case, wanted):
    (authentication,) = of_kind(case, "TriggerAuthentication")
    given = authentication["spec"]["secretTargetRef"]
    assert {one["parameter"]: (one["name"], one["key"]) for one in given} == wanted
    (scaled,) = of_kind(case, "ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
        assert trigger["metadata"]["enableTLS"] == str(case == "sentinel").lower()
        # KEDA refuses what is said in both places
        assert not {"tls", "username", "password"} & {*trigger["metadata"]}


def test_an_engine_knows_how_much_disk_its_copies_have():
    (engine,) = of_kind("s3", "StatefulSet")
    (container,) = engine["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    volumes = {one["name"]: one for one in engine["spec"]["template"]["spec"]["volumes"]}
    assert volumes["local"]["emptyDir"]["sizeLimit"] == "15Gi"
    assert float(variables["INSTRUCTLOOP_ENGINE__COPIES_GIB"]) == 13.5
    assert "INSTRUCTLOOP_ENGINE__COPIES_GIB" not in files("gpu")["engine.yaml"]


def test_keda_looks_at_the_queues_and_the_stream_that_there_are():
    for case in ("full", "sentinel", "gpu"):
        (scaled,) = of_kind(case, "ScaledObject")
        watched = {t["metadata"].get("listName", "") for t in scaled["spec"]["triggers"]} - {""}
        assert watched == {f"{keys.PREFIX}broker:{queue}" for queue in (CONTROL, LEARNING)}
        (stream,) = (t["metadata"] for t in scaled["spec"]["triggers"] if "stream" in t["metadata"])
        assert stream["stream"] == keys.inbox()
        (worker,) = (
            one for one in of_kind(case, "Deployment") if one["metadata"]["name"].endswith("worker")
        )
        assert scaled["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
        assert "replicas" not in worker["spec"]


def test_keda_looks_at_the_queues_alone_where_they_have_a_redis_of_their_own():
    (scaled,) = of_kind("cluster", "ScaledObject")
    watched = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
    assert {one["listName"] for one in watched} == {
        f"{keys.PREFIX}broker:{queue}" for queue in (CONTROL, LEARNING)
    }
    assert {(one["address"], one["listLength"]) for one in watched} == {("broker:6379", "1")}
    assert not of_kind("cluster", "TriggerAuthentication")


def test_the_notes_name_what_a_reader_must_know():
    assert "no replica and no backup" in files("trial")["NOTES.txt"]
    assert "Nothing is swapped into them" in files("external")["NOTES.txt"]
    assert "networkPolicy.enabled is false" in files("open")["NOTES.txt"]
    assert "https://il.example.org" in files("full")["NOTES.txt"]
    assert "WARNING" not in files("gpu")["NOTES.txt"]
