"""The chart, rendered by Helm for many values; once for each, because that takes its time."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema_rs
import kubernetes_validate
import yaml

from deploy.document import ROOT

CHART = ROOT / "helm" / "instructloop"
NAMESPACE = "loop"
KUBERNETES = ("1.31.0", "1.34.0", "1.37.0")
"""The oldest that Chart.yaml admits, one between, and the newest whose schemas are at hand."""
_TRIAL: dict[str, Any] = {"trial": {"enabled": True}}
_SECRET: dict[str, Any] = {"existingSecret": {"name": "redis"}}
_GPU = {"gpu": {"count": 1}}

MATRIX: dict[str, dict[str, Any]] = {
    "trial": {"redis": _TRIAL},
    "secret": {"redis": {**_SECRET, "brokerSecret": {"name": "broker"}}, "learning": False},
    "sentinel": {
        "redis": {
            "sentinel": {"hosts": ["redis-a:26379", "redis-b"], "tls": True},
            "tls": {"secretName": "redis-tls", "clientCertificate": True},
            "waitReplicas": 1,
            "limitsSecret": {"name": "limits", "key": "url"},
        },
        "workers": {
            "keda": {
                "enabled": True,
                "sentinels": "redis-a:26379,redis-b:26379",
                "sentinelService": "mymaster",
                "tls": True,
                "passwordSecret": {"name": "redis-keda", "usernameKey": "user"},
                "sentinelSecret": {"name": "sentinel-keda", "key": "word", "usernameKey": "name"},
            }
        },
    },
    "cluster": {
        "redis": {
            "cluster": {"nodes": ["redis-a:6379", "redis-b"], "tls": True},
            "tls": {"secretName": "redis-tls"},
            "waitReplicas": 1,
            "brokerSecret": {"name": "broker"},
        },
        "workers": {"keda": {"enabled": True, "address": "broker:6379", "messages": 1}},
    },
    "gpu": {
        "redis": _SECRET,
        "model": "org/name",
        "profile": "paper",
        "promotion": "auto",
        "engines": {**_GPU, "replicas": 3, "runtimeClassName": "nvidia", "shmSize": "8Gi"},
        "workers": {
            "gpu": {"count": 8},
            "nodeSelector": {"pool": "train"},
            "keda": {"enabled": True, "address": "redis:6379", "passwordSecret": {"name": "keda"}},
        },
        "networkPolicy": {
            "redis": [{"ipBlock": {"cidr": "10.9.0.0/24"}}],
            "extraEgress": {"init": [{"ports": [{"port": 443, "protocol": "TCP"}]}]},
        },
    },
    "s3": {
        "redis": {"url": "rediss://redis.example.org:6380/0"},
        "storage": {
            "policiesUrl": "s3://bucket/policies",
            "archiveUrl": "s3://bucket/archive",
            "existingClaim": "state",
            "s3": {"existingSecret": "s3", "endpointUrl": "http://minio:9000", "region": "here"},
        },
        "secrets": {"existingSecret": "keys"},
        "serviceAccount": {"create": False, "name": "instructloop"},
    },
    "external": {
        "redis": _SECRET,
        "externalEngines": {"urls": ["http://vllm-router-service.serving:80"]},
    },
    "full": {
        "redis": _TRIAL,
        "image": {"repository": "registry.example.org:5000/instructloop", "tag": "0.1.0-cpu"},
        "imagePullSecrets": [{"name": "pull"}],
        "settings": {
            "LIMITS__REQUESTS_PER_MINUTE": 600,
            "CANARY__SHARE": 0.1,
            "WEBHOOKS__URLS": ["https://example.org/hook"],
            "LOG_LEVEL": "debug",
        },
        "gateway": {
            "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 6},
            "podLabels": {"team": "a"},
            "podAnnotations": {"note": "b"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "priorityClassName": "high",
            "maxUnavailable": "25%",
            "service": {"type": "LoadBalancer", "annotations": {"internal": "true"}},
        },
        "workers": {"replicas": 2, "keda": {"enabled": True}},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "host": "il.example.org",
            "tlsSecret": "il-tls",
            "operators": True,
        },
        "networkPolicy": {
            "clients": [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}
            ]
        },
        "monitoring": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "runbookBaseUrl": "https://git.example.org/instructloop/blob/main/",
            "dashboards": {"enabled": True},
        },
    },
    "open": {
        "redis": {**_SECRET, "durability": "relaxed"},
        "networkPolicy": {"enabled": False},
        "fullnameOverride": "il",
        "ingress": {"enabled": True, "host": "il.example.org", "pages": False},
    },
}
CASES = tuple(MATRIX)


@cache
def files(case: str) -> dict[str, str]:
    """What Helm makes of a case, by template."""
    with helm.Chart.load(CHART) as chart:
        said = chart.render(MATRIX[case], name="turn", namespace=NAMESPACE)
    return {Path(name).name: text for name, text in said.items()}


@cache
def resources(case: str) -> tuple[dict[str, Any], ...]:
    """All resources of a case."""
    texts = [text for name, text in files(case).items() if name.endswith(".yaml")]
    return tuple(
        one for text in texts for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one
    )


def of_kind(case: str, *kinds: str) -> list[dict[str, Any]]:
    """The resources of some kinds."""
    return [one for one in resources(case) if one["kind"] in kinds]


def named(case: str, kind: str, ending: str) -> dict[str, Any]:
    """The one of a kind whose name ends so."""
    (found,) = (one for one in of_kind(case, kind) if one["metadata"]["name"].endswith(ending))
    return found


def hook(one: dict[str, Any]) -> str:
    """Of which hook of Helm a resource is, if of any but its test."""
    said: str = one["metadata"].get("annotations", {}).get("helm.sh/hook", "")
    return "" if said == "test" else said


def pods(case: str) -> dict[str, dict[str, Any]]:
    """Templates of pods (metadata, spec) by their component."""
    lasting = [one for one in of_kind(case, "Deployment", "StatefulSet", "Job") if not hook(one)]
    found = [one["spec"]["template"] for one in lasting]
    found += of_kind(case, "Pod")
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in found}


def containers(case: str) -> list[tuple[str, dict[str, Any]]]:
    """All containers with their pod's component, those that come first included."""
    return [
        (component, container)
        for component, pod in pods(case).items()
        for container in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
    ]


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector (matchLabels, or matchExpressions with In) takes these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", ())
    )


@cache
def _definitions(version: str) -> jsonschema_rs.Registry:
    text = (_schemas(version) / "_definitions.json").read_text()
    return jsonschema_rs.Registry([("json-schema:///_definitions.json", json.loads(text))])


def _schemas(version: str) -> Path:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    return folder / f"v{version}-local-strict"


@cache
def strict_validator(version: str, api: str, kind: str) -> Any:
    """Refuses what Kubernetes of that version does not know, misspelt names included."""
    group, _, name = api.rpartition("/")
    of = "-".join(part for part in (kind.lower(), group.split(".")[0], name) if part)
    schema = json.loads((_schemas(version) / f"{of}.json").read_text())
    return jsonschema_rs.validator_for(schema, registry=_definitions(version))
