"""What operators copy from `deploy/`: the Kubernetes manifest, the alerts, the dashboard, and nginx with Compose.

Each is held to its own schema and to the service: the settings, the routes, the image and the metrics.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from handlers import ROUTES
from settings import Settings
from tests.client import ROOT, Client, create, read
from tests.processes import VARIABLES, run_here
from tests.programs import needed
from tests.servers import free_port

FOLDER = ROOT / "deploy"
MANIFEST = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
DEPLOYMENT = next(resource for resource in MANIFEST if resource["kind"] == "Deployment")
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{
        f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "5m")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    },
}
"""Every query for Prometheus, by what asks it."""
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def found(kind: str, name: str) -> dict[str, Any]:
    """Return a resource of the manifest."""
    (resource,) = (r for r in MANIFEST if (r["kind"], r["metadata"]["name"]) == (kind, name))
    content: dict[str, Any] = resource
    return content


@pytest.mark.parametrize("version", ["1.27", "1.37"])
@pytest.mark.parametrize("resource", MANIFEST, ids=lambda r: f"{r['kind']} {r['metadata']['name']}")
def test_kubernetes_knows_every_field(resource: Mapping[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    wrong = json.loads(json.dumps(DEPLOYMENT))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_the_manifests_selectors_references_and_ports_exist() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    service, budget = found("Service", "notifier"), found("PodDisruptionBudget", "notifier")
    for selector in (DEPLOYMENT["spec"]["selector"], budget["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {port["name"] for port in CONTAINER["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for source in CONTAINER["envFrom"]:
        ((reference, named),) = source.items()
        assert found(
            reference.removesuffix("Ref").replace("configMap", "ConfigMap").replace("secret", "Secret"), **named
        )
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes.keys()
    for volume in volumes.values():
        assert "emptyDir" in volume or found("ConfigMap", **volume["configMap"])
    paths = [mount["mountPath"] for mount in CONTAINER["volumeMounts"]]
    assert not [path for path in paths for other in paths if path.startswith(f"{other}/")]  # one mount in another fails


def test_the_pod_is_as_safe_as_the_container_of_compose() -> None:
    context, pod = CONTAINER["securityContext"], POD["securityContext"]
    user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert [(str(pod["runAsUser"]), str(pod["runAsGroup"]))] == user
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False  # else Kubernetes itself sets variables such as SMTP_PORT


def test_the_network_policy_admits_requests_mongodb_and_mail() -> None:
    policy, settings = found("NetworkPolicy", "notifier")["spec"], found("ConfigMap", "notifier")["data"]
    assert policy["podSelector"] == DEPLOYMENT["spec"]["selector"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (way_in,) = policy["ingress"]
    assert [port["port"] for port in way_in["ports"]] == [port["name"] for port in CONTAINER["ports"]]
    way_out = {(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]}
    assert {("UDP", 53), ("TCP", 27017), ("TCP", int(settings["SMTP_PORT"]))} <= way_out


def test_probes_are_routes_and_pods_have_time_to_start_and_stop() -> None:
    routes = {route.path for route in ROUTES}
    probes = {name: probe["httpGet"]["path"] for name, probe in CONTAINER.items() if name.endswith("Probe")}
    assert set(probes.values()) <= routes
    assert probes == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    startup = CONTAINER["startupProbe"]
    assert (
        startup["periodSeconds"] * startup["failureThreshold"] > Settings.__dataclass_fields__["start_timeout"].default
    )
    command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] >= int(command[-1]) + 8


def environment() -> dict[str, str]:
    """Return the container's variables."""
    given = {item["name"]: item["value"] for item in CONTAINER["env"]}
    return {**found("ConfigMap", "notifier")["data"], **found("Secret", "notifier")["stringData"], **given}


def mounted(folder: Path) -> dict[str, str]:
    """Mount the ConfigMaps below a folder as kubelet does; return the variables, with the paths changed to these."""
    changed = environment()
    for mount in CONTAINER["volumeMounts"]:
        volume = next(volume for volume in POD["volumes"] if volume["name"] == mount["name"])
        if "configMap" in volume:
            target = folder / mount["mountPath"].removeprefix("/")
            (target / "..2026_11_25").mkdir(parents=True)
            (target / "..data").symlink_to("..2026_11_25")
            for name, text in found("ConfigMap", **volume["configMap"])["data"].items():
                (target / "..2026_11_25" / name).write_text(text)
                (target / name).symlink_to(f"..data/{name}")
    for name in ("KINDS_FILE", "TEMPLATES_DIR"):
        changed[name] = str(folder / changed[name].removeprefix("/"))
    return changed


def test_the_manifest_is_a_complete_configuration(tmp_path: Path) -> None:
    assert environment().keys() <= VARIABLES
    variables = mounted(tmp_path) | {"API_KEYS": "k" * 32}
    done = run_here("preview", "order_shipped", "--data", '{"number": 4711}', cwd=tmp_path, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Subject: Order 4711 is on its way\n\nHello,")


def test_with_the_key_of_the_example_the_service_does_not_start(tmp_path: Path) -> None:
    done = run_here(cwd=tmp_path, **mounted(tmp_path) | {"PORT": str(free_port())})
    assert done.returncode == 2
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines()[1:]] == ["API_KEYS"]


@pytest.fixture
async def metrics(client: Client) -> Mapping[str, set[str]]:
    """Return the names in the /metrics of a service that has been used, each with the labels of its samples."""
    await create(client, key="new_login")
    await read(client, "0" * 24)
    families = list(text_string_to_metric_families(await (await client.get("/metrics")).text()))
    names: dict[str, set[str]] = {}
    for family in families:
        for suffix in SUFFIXES.get(family.type, ()):
            names[family.name + suffix] = {label for sample in family.samples for label in sample.labels}
    return names


async def test_every_query_uses_metrics_and_labels_that_exist(metrics: Mapping[str, set[str]]) -> None:
    for title, expression in EXPRESSIONS.items():
        asked = re.findall(r"\bnotifier_\w+", expression)
        assert asked, title
        assert set(asked) <= metrics.keys(), title
        labels = re.findall(r"(\w+)=~?\"", expression)
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            labels += group.split(", ")
        known = {"instance", "le"}.union(*(metrics[name] for name in asked)) | {"outcome", "reason", "group", "reply"}
        assert set(labels) <= known, title


async def test_the_dashboard_shows_every_metric(metrics: Mapping[str, set[str]]) -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    assert not [name for name in metrics if re.sub("_(bucket|count|sum|created)$", "", name) not in shown]


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


@pytest.fixture
def promtool(tmp_path: Path) -> Callable[[str, Mapping[str, Any]], None]:
    """Return a function that gives promtool a file to check or to test."""
    program = needed("promtool")

    def check(command: str, content: Mapping[str, Any]) -> None:
        (file := tmp_path / "file.yaml").write_text(yaml.safe_dump(dict(content)))
        done = subprocess.run(
            [program, *command.split(), str(file)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return check


def test_prometheus_can_read_every_query(promtool: Callable[[str, Mapping[str, Any]], None]) -> None:
    rules = [{"record": f"query:{n}", "expr": expression} for n, expression in enumerate(EXPRESSIONS.values())]
    promtool("check rules", {"groups": [{"name": "queries", "rules": rules}]})
    promtool("check rules", yaml.safe_load((FOLDER / "alerts.yaml").read_text()))


LAG = {"series": 'notifier_event_loop_lag_seconds{instance="a"}', "values": "0.01x120"}
REQUESTS = 'notifier_http_request_duration_seconds_count{route="/create",method="POST",status='
QUIET = [
    LAG,
    {"series": 'notifier_oldest_email_owed_seconds{instance="a"}', "values": "5000x120"},  # greylisted, say
    {"series": 'notifier_smtp_breaker_open{instance="a"}', "values": "0x120"},
    {"series": 'notifier_emails_total{outcome="dead",reason="permanent"}', "values": "0+0.1x120"},
    {"series": 'notifier_emails_total{outcome="retried",reason="unclear"}', "values": "0+0.05x120"},
    {"series": "notifier_dead_letters", "values": "50x120"},
    {"series": 'notifier_api_open{instance="a"}', "values": "0x120"},
    {"series": "notifier_emails_not_owed_total", "values": "5x120"},
    {"series": f'{REQUESTS}"201"}}', "values": "0+1000x120"},
    {"series": f'{REQUESTS}"503"}}', "values": "0+1x120"},
]
FIRING = {
    "NotifierAbsent": [],
    "NotifierMailStuck": [
        {"series": 'notifier_oldest_email_owed_seconds{instance="a"}', "values": "1000+60x120"},
        {"series": 'notifier_smtp_breaker_open{instance="b"}', "values": "1x120"},
    ],
    "NotifierEmailsDie": [
        {"series": 'notifier_emails_total{outcome="dead",reason="permanent"}', "values": "0+1x120"},
        {"series": 'notifier_emails_total{outcome="dead",reason="transient"}', "values": "0+1x120"},
    ],
    "NotifierDeadLetters": [{"series": "notifier_dead_letters", "values": "150x120"}],
    "NotifierRefusalsUnclear": [
        {"series": 'notifier_emails_total{outcome="retried",reason="unclear"}', "values": "0+1x120"}
    ],
    "NotifierRequestsFail": [
        {"series": f'{REQUESTS}"201"}}', "values": "0+50x120"},
        {"series": f'{REQUESTS}"503"}}', "values": "0+1x120"},
    ],
    "NotifierEventLoopLags": [{"series": 'notifier_event_loop_lag_seconds{instance="a"}', "values": "0.5x120"}],
    "NotifierOpen": [{"series": 'notifier_api_open{instance="a"}', "values": "1x120"}],
    "NotifierEmailsNotOwed": [{"series": "notifier_emails_not_owed_total", "values": "0+1x120"}],
}
"""What happens when each alert fires, and no other."""


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_an_alert_fires_when_it_should_and_then_only(
    alert: str, promtool: Callable[[str, Mapping[str, Any]], None]
) -> None:
    def after_two_hours(series: Sequence[Mapping[str, str]], firing: Sequence[str]) -> dict[str, Any]:
        return {
            "interval": "1m",
            "input_series": series,
            "promql_expr_test": [
                {
                    "expr": f'count by (alertname) (ALERTS{{alertstate="firing",alertname="{rule["alert"]}"}})',
                    "eval_time": "119m",
                    "exp_samples": [{"labels": f'{{alertname="{rule["alert"]}"}}', "value": 1}]
                    if rule["alert"] in firing
                    else [],
                }
                for rule in RULES
            ],
        }

    series = FIRING[alert]
    if alert not in {"NotifierAbsent", "NotifierEventLoopLags"}:
        series = [LAG, *series]
    tests = [after_two_hours(series, [alert]), after_two_hours(QUIET, [])]
    promtool("test rules", {"rule_files": [str(FOLDER / "alerts.yaml")], "evaluation_interval": "1m", "tests": tests})


def test_compose_with_nginx_has_the_services_of_compose() -> None:
    alone, behind = (
        yaml.safe_load((ROOT / name).read_text()) for name in ("docker-compose.yml", "deploy/docker-compose.nginx.yml")
    )
    assert behind["services"]["mongodb-1"] == alone["services"]["mongodb-1"]
    assert behind["volumes"] == alone["volumes"]
    notifier = {name: value for name, value in alone["services"]["notifier"].items() if name != "ports"}
    assert behind["services"]["notifier"] == notifier | {"environment": {"PORT": "8080"}}
    assert "set $replicas notifier:8080;" in (FOLDER / "nginx.conf").read_text()
    source, target, mode = behind["services"]["nginx"]["volumes"][0].split(":")
    assert (ROOT / source).is_file()
    assert (target, mode) == ("/etc/nginx/conf.d/default.conf", "ro")


def test_mongodbs_health_check_stops_once_there_is_a_primary(tmp_path: Path) -> None:
    """So that its log is not full of the connections of the check."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    shell, check = services["mongodb-1"]["healthcheck"]["test"]
    assert shell == "CMD-SHELL"
    asked = tmp_path / "asked"
    for code in (1, 0, 1, 1):  # what mongosh ends with
        (tmp_path / "mongosh").write_text(f'#!/bin/sh\necho "$*" >> {asked}\nexit {code}\n')
        (tmp_path / "mongosh").chmod(0o755)
        command = ["/bin/sh", "-c", check.replace("/tmp/primary", f"{tmp_path}/primary")]  # noqa: S108 - of a container
        done = subprocess.run(command, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False)
        assert done.returncode == (0 if (tmp_path / "primary").exists() else 1)
    assert len(asked.read_text().split("--quiet")[1:]) == 2


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/docker-compose.nginx.yml"])
def test_compose_reads_its_files(file: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "deploy")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    command = [needed("docker-compose"), "--project-directory", ".", "-f", file, "config", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_nginx_reads_its_configuration(tmp_path: Path) -> None:
    server = (FOLDER / "nginx.conf").read_text().replace("listen 80;", f"listen 127.0.0.1:{free_port()};")
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {server} }}"
    )
    command = [needed("nginx"), "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
