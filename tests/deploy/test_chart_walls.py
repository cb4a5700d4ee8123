"""How the parts of the chart meet: walls, services, monitors, budgets, updates."""

import pytest
from chart_rig import CASES, containers, matches, named, of_kind, pods

LABEL = "app.kubernetes.io/component"


@pytest.mark.parametrize("case", CASES)
def test_walls_stand_around_every_pod_and_lead_to_pods_that_there_are(case):
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(case).items()}
    walls = of_kind(case, "NetworkPolicy")
    if case == "open":
        assert walls == []
        return
    walled = [
        name
        for one in walls
        for name in labels
        if matches(one["spec"]["podSelector"], labels[name])
    ]
    assert sorted(walled) == sorted(labels)
    for one in walls:
        assert one["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in [*one["spec"]["ingress"], *one["spec"]["egress"]]:
            for peer in [*rule.get("from", ()), *rule.get("to", ())]:
                if peer.keys() == {"podSelector"}:
                    assert any(matches(peer["podSelector"], of) for of in labels.values())


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("open", "external")])
def test_only_gateways_workers_and_prometheus_reach_an_engine(case):
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(case).items()}
    wall = named(case, "NetworkPolicy", "-engine")["spec"]
    data, metrics = wall["ingress"]
    assert [port["port"] for port in data["ports"]] == [8100]
    let_in = {n for n in labels for p in data["from"] if matches(p["podSelector"], labels[n])}
    assert let_in == {"gateway", "worker"}
    assert [port["port"] for port in metrics["ports"]] == [9100]
    (scraper,) = metrics["from"]
    assert scraper["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "monitoring"
    }
    ports = {port["port"] for rule in wall["egress"] for port in rule["ports"]}
    assert ports <= {53, 6379, 26379} | ({443} if case == "s3" else set())


def test_engines_of_others_are_the_gateways_alone_to_ask():
    assert not of_kind("external", "StatefulSet")
    walls = {
        one["spec"]["podSelector"]["matchLabels"][LABEL]: one["spec"]
        for one in of_kind("external", "NetworkPolicy")
    }
    anywhere = {"to": [{"namespaceSelector": {}}]}
    assert {name for name, wall in walls.items() if anywhere in wall["egress"]} == {"gateway"}


@pytest.mark.parametrize("case", CASES)
def test_services_monitors_and_budgets_find_their_pods_and_ports(case):
    spread = [(pod["metadata"]["labels"], pod["spec"]) for pod in pods(case).values()]

    def found(selector):
        return [spec for labels, spec in spread if matches(selector, labels)]

    def ports(specs):
        return {p["name"] for s in specs for c in s["containers"] for p in c.get("ports", ())}

    for one in of_kind(case, "Service"):
        chosen = found({"matchLabels": one["spec"]["selector"]})
        assert len(chosen) == 1, one["metadata"]["name"]
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports(chosen)
    for one in of_kind(case, "PodDisruptionBudget", "PodMonitor"):
        assert found(one["spec"]["selector"]), one["metadata"]["name"]
    for one in of_kind(case, "ServiceMonitor"):
        (service,) = (
            s for s in of_kind(case, "Service") if matches(one["spec"]["selector"], labels_of(s))
        )
        assert {e["port"] for e in one["spec"]["endpoints"]} <= {
            port["name"] for port in service["spec"]["ports"]
        }
    for one in of_kind(case, "StatefulSet"):
        services = {s["metadata"]["name"] for s in of_kind(case, "Service")}
        assert one["spec"]["serviceName"] in services
    for one in of_kind(case, "Deployment", "StatefulSet"):
        assert matches(one["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"])


def labels_of(resource):
    return resource["metadata"]["labels"]


def test_monitors_scrape_every_process_once():
    labels = {name: pod["metadata"]["labels"] for name, pod in pods("full").items()}
    (others,) = of_kind("full", "PodMonitor")
    assert {n for n in labels if matches(others["spec"]["selector"], labels[n])} == {
        "engine",
        "worker",
        "beat",
    }
    (gateways,) = of_kind("full", "ServiceMonitor")
    service = named("full", "Service", "-gateway-metrics")
    assert matches(gateways["spec"]["selector"], labels_of(service))
    assert service["spec"]["selector"].items() <= labels["gateway"].items()


@pytest.mark.parametrize("case", CASES)
def test_a_drain_of_nodes_is_never_blocked_and_never_takes_all(case):
    for one in of_kind(case, "PodDisruptionBudget"):
        assert one["spec"]["maxUnavailable"] not in (0, "0%", "100%")
        assert "minAvailable" not in one["spec"]
    gateway = named(case, "Deployment", "-gateway")
    scalers = of_kind(case, "HorizontalPodAutoscaler")
    assert ("replicas" in gateway["spec"]) is (not scalers)
    for one in scalers:
        assert one["spec"]["scaleTargetRef"]["name"] == gateway["metadata"]["name"]
        assert 2 <= one["spec"]["minReplicas"] <= one["spec"]["maxReplicas"]


@pytest.mark.parametrize("case", CASES)
def test_streams_have_the_time_that_they_were_promised(case):
    for component in {"gateway", "engine"} & pods(case).keys():
        spec = pods(case)[component]["spec"]
        (container,) = spec["containers"]
        env = {one["name"]: one.get("value") for one in container["env"]}
        promised = int(env["INSTRUCTLOOP_GATEWAY__SHUTDOWN_SECONDS"])
        promised += int(env.get("INSTRUCTLOOP_GATEWAY__LEAVE_SECONDS", 0))
        assert spec["terminationGracePeriodSeconds"] >= promised + 30
    gateway = named(case, "Deployment", "-gateway")["spec"]
    assert gateway["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert gateway["progressDeadlineSeconds"] > promised
    (container,) = gateway["template"]["spec"]["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"][0] == "sleep"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


@pytest.mark.parametrize("case", CASES)
def test_there_is_one_clock_and_no_update_asks_for_a_gpu_more(case):
    beat = named(case, "Deployment", "-beat")["spec"]
    assert beat["replicas"] == 1
    assert beat["strategy"] == {"type": "Recreate"}
    assert named(case, "Deployment", "-worker")["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": 0,
        "maxUnavailable": 1,
    }
    for one in of_kind(case, "StatefulSet"):
        assert one["spec"].get("updateStrategy", {"type": "RollingUpdate"})["type"] == (
            "RollingUpdate"
        )


def test_gpus_are_asked_for_where_they_are_wanted_and_bring_the_other_image():
    asked = {
        (component, container["name"]): container["resources"]["limits"].get("nvidia.com/gpu")
        for component, container in containers("gpu")
    }
    assert {name: n for (name, own), n in asked.items() if n} == {"engine": 1, "worker": 8}
    images = {component: c["image"] for component, c in containers("gpu") if component == c["name"]}
    assert images["engine"] == images["worker"] == "instructloop:0.1.0-gpu"
    assert images["gateway"] == images["beat"] == images["init"] == "instructloop:0.1.0-cpu"
    for component in ("engine", "worker"):
        (shm,) = (v for v in pods("gpu")[component]["spec"]["volumes"] if v["name"] == "shm")
        assert shm["emptyDir"]["medium"] == "Memory"
