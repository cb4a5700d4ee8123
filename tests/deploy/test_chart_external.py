"""Engines that somebody runs already: the chart, rendered for the URL of each kind we name."""

import json

import helm_python as helm
import pytest
import yaml
from chart_rig import CHART, KUBERNETES, strict_validator

from deploy.document import ROOT

URLS = {
    "vLLM production-stack": "http://stack-router-service.serving:80",
    "llm-d": "http://llm-d-inference-gateway-istio.llm-d:80",
    "KServe, Hugging Face runtime": "http://qwen-predictor.models/openai",
    "vLLM, plain": "http://vllm.serving:8000",
}


def test_every_kind_that_the_documents_name_is_rendered_here():
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    table = text.partition("| you run | URL | note |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows == [*URLS]


@pytest.mark.parametrize("url", URLS.values(), ids=URLS.keys())
def test_gateways_ask_the_engines_of_others_and_nothing_learns(url):
    values = {
        "redis": {"existingSecret": {"name": "redis"}},
        "externalEngines": {"urls": [url]},
        "networkPolicy": {"externalEngines": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]},
    }
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(values, name="il", namespace="loop").values()
    made = [one for text in texts if "kind:" in text for one in yaml.safe_load_all(text) if one]
    for one in made:
        validator = strict_validator(KUBERNETES[-1], one["apiVersion"], one["kind"])
        assert [*validator.iter_errors(one)] == []
    assert "StatefulSet" not in {one["kind"] for one in made}
    for one in made:
        if one["kind"] in ("Deployment", "Job"):
            (container,) = one["spec"]["template"]["spec"]["containers"]
            said = {v["name"]: v.get("value") for v in container["env"]}
            assert json.loads(said["INSTRUCTLOOP_ENGINE__URLS"]) == [url]
            assert said["INSTRUCTLOOP_LEARNING__ENABLED"] == "false"
    walls = {one["metadata"]["name"]: one for one in made if one["kind"] == "NetworkPolicy"}
    narrow = {"to": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}
    out = {name for name, wall in walls.items() if narrow in wall["spec"]["egress"]}
    assert len(out) == 1
    assert out.pop().endswith("gateway")
