"""The parts of the chart that can run without a cluster do: scripts, Redis, alerts, routes."""

import http.server
import json
import os
import subprocess
import sys
import threading

import helm_python as helm
import pytest
import yaml
from chart_rig import CHART, MATRIX, containers, named, of_kind, pods

from core.redis_check import check_redis
from core.redis_client import connect
from deploy.document import ROOT
from deploy.redis_server import find_redis_server
from learning.rounds.folders import Folders
from serving.app import create_app
from tests.redis_fleet import answers, until


def script_of(component, container, *, case="trial"):
    (found,) = (c for name, c in containers(case) if name == component and c["name"] == container)
    return found


# --- alerts and dashboards


def test_the_rules_are_those_of_the_file_with_links_to_runbooks_that_are_there(tmp_path):
    (made,) = of_kind("full", "PrometheusRule")
    written = yaml.safe_load((CHART / "files" / "alerts.yml").read_text())
    alerts = 0
    for rule in (rule for group in made["spec"]["groups"] for rule in group["rules"]):
        url = rule.get("annotations", {}).pop("runbook_url", None)
        assert ("alert" in rule) is (url is not None)
        if url:
            alerts += 1
            page = url.removeprefix("https://git.example.org/instructloop/blob/main/")
            assert page == rule["annotations"]["runbook"]
            assert (ROOT / page).is_file(), page
    assert alerts > 10
    assert made["spec"]["groups"] == written["groups"]
    assert made["metadata"]["labels"]["release"] == "prometheus"
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(made["spec"]))
    said = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr


def test_every_dashboard_is_a_config_map_that_grafana_looks_for():
    maps = [
        one
        for one in of_kind("full", "ConfigMap")
        if "grafana_dashboard" in one["metadata"]["labels"]
    ]
    made = {name: text for one in maps for name, text in one["data"].items()}
    written = {path.name: path for path in (CHART / "files" / "dashboards").glob("*.json")}
    assert made.keys() == written.keys()
    for name, text in made.items():
        assert json.loads(text) == json.loads(written[name].read_text())
        assert len(text) < 1_000_000  # what fits into a ConfigMap
    for one in maps:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert one["metadata"]["annotations"]["grafana_folder"] == "InstructLoop"


# --- ingress

INSIDE = {"/healthz", "/readyz"}
OPERATORS = ("/v1/policies", "/v1/loop", "/v1/users", "/v1/erasures", "/v1/raters", "/v1/held")


def leads_to(case):
    """Whether an Ingress takes a path, as Kubernetes compares them: element by element."""
    (ingress,) = of_kind(case, "Ingress")
    paths = ingress["spec"]["rules"][0]["http"]["paths"]

    def leads(path):
        return any(
            path == one["path"]
            or (one["pathType"] == "Prefix" and path.startswith(f"{one['path'].rstrip('/')}/"))
            for one in paths
        )

    return leads


def routes(state_dir):
    from core.settings import Settings

    app = create_app(Settings(state_dir=state_dir, gateway={"host": "0.0.0.0"}))
    waiting, found = list(app.routes), set()
    while waiting:
        one = waiting.pop()
        found |= {one.path} if hasattr(one, "path") else set()
        waiting += getattr(one, "routes", []) if not hasattr(one, "path") else []
    return found


def test_the_ingress_leads_to_every_route_but_those_for_operators_unless_asked(state_dir):
    there = routes(state_dir)
    assert {"/v1/chat/completions", "/loop", "/v1/policies"} <= there
    everything, plain = leads_to("full"), leads_to("open")
    for path in there:
        assert everything(path) is (path not in INSIDE), path
        operators = path.startswith(OPERATORS) or path == "/loop"
        page = path in ("/", "/label", "/v1/session") or path.startswith("/static")
        assert plain(path) is not (operators or page or path in INSIDE), path
    assert not everything("/metrics")
    assert not everything("/v1/policiesx")


# --- what runs before and beside


def prepare(tmp_path, given):
    """Run the script that comes first in every pod, in folders of this machine."""
    (script,) = script_of("gateway", "prepare")["args"]
    keys = tmp_path / "keys"
    keys.mkdir(exist_ok=True)
    for name, content in given.items():
        (keys / name).write_bytes(content)
    folders = {
        "INSTRUCTLOOP_STATE_DIR": str(tmp_path / "state"),
        "INSTRUCTLOOP_SECRETS_DIR": str(tmp_path / "secrets"),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    subprocess.run(
        [
            *script_of("gateway", "prepare")["command"],
            script.replace("/etc/instructloop/keys", str(keys)),
        ],
        env={"PATH": os.environ["PATH"], "HOSTNAME": "pod-0", **folders},
        check=True,
    )
    return tmp_path / "secrets"


def test_given_keys_are_put_once_and_closed_to_others(tmp_path):
    secrets = prepare(tmp_path, {})
    assert [*secrets.iterdir()] == []
    assert secrets.stat().st_mode & 0o777 == 0o700
    prepare(tmp_path, {"user.key": b"\x00\x01" * 16, "mac.key": b"m" * 32})
    assert (secrets / "user.key").read_bytes() == b"\x00\x01" * 16
    (secrets / "user.key").chmod(0o660)  # as a kubelet leaves it
    prepare(tmp_path, {"user.key": b"another"})
    assert (secrets / "user.key").read_bytes() == b"\x00\x01" * 16
    assert {path.name for path in secrets.iterdir()} == {"user.key", "mac.key"}
    for path in secrets.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_socket_of_a_stage_lies_in_the_pod_and_a_second_pod_changes_nothing(tmp_path):
    learner = Folders.of(tmp_path / "state").engine_socket.parent
    for _ in range(2):
        prepare(tmp_path, {})
        assert learner.readlink() == tmp_path / "tmp" / "learner"
        learner.mkdir(mode=0o700, exist_ok=True)  # as a worker does
        (tmp_path / "tmp" / "learner" / "here").touch()


def test_a_preparation_of_an_engine_with_a_disk_of_its_own_makes_the_folder_there():
    mounts = {
        mount["mountPath"] for mount in script_of("engine", "prepare", case="s3")["volumeMounts"]
    }
    assert {"/var/lib/instructloop", "/var/local/instructloop", "/etc/instructloop/keys"} <= mounts


async def test_the_trial_redis_starts_with_its_own_command_and_keeps_its_word(state_dir):
    socket = state_dir / "redis.sock"
    text = named("trial", "ConfigMap", "-redis")["data"]["redis.conf"]
    path = state_dir / "redis.conf"
    path.write_text(f"{text.replace('dir /data', f'dir {state_dir}')}port 0\nunixsocket {socket}\n")
    (state_dir / "redis-server").symlink_to(find_redis_server())
    container = script_of("redis", "redis")
    (script,) = container["args"]
    process = subprocess.Popen(
        [*container["command"], script.replace("/etc/redis/redis.conf", str(path))],
        env={"PATH": f"{state_dir}:{os.environ['PATH']}", "REDISCLI_AUTH": "a1b2c3"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"unix://:a1b2c3@{socket}"
        until(lambda: answers(url), what="Redis answers")
        async with connect(url) as client:
            assert await check_redis(client) == []
        with open(f"/proc/{process.pid}/cmdline") as line:
            assert "a1b2c3" not in line.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("ready", "open_door", "ends"), [(200, 401, 0), (503, 401, 1), (200, 200, 1)]
)
def test_the_test_pod_tells_a_service_that_works_from_one_that_does_not(ready, open_door, ends):
    codes = {"/healthz": 200, "/readyz": ready, "/v1/models": open_door}

    class Stub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(codes[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    container = script_of("test", "test")
    script, url = container["args"]
    assert url == f"http://{named('trial', 'Service', '-gateway')['metadata']['name']}:80"
    said = subprocess.run(
        [
            sys.executable,
            *container["command"][1:],
            script,
            f"http://127.0.0.1:{server.server_port}",
        ],
        capture_output=True,
        check=False,
    )
    server.shutdown()
    server.server_close()
    assert said.returncode == ends, said.stderr


def test_another_specification_of_the_first_job_has_another_name():
    def name(values):
        with helm.Chart.load(CHART) as chart:
            said = chart.render(MATRIX["secret"] | values, name="turn", namespace="loop")
        return yaml.safe_load(said["instructloop/templates/init.yaml"])["metadata"]["name"]

    same, other = name({}), name({"model": "org/another"})
    assert same == name({"gateway": {"replicas": 5}})
    assert same != other
    assert named("secret", "Job", same)
    assert pods("secret")["init"]["spec"]["restartPolicy"] == "OnFailure"
