"""What Prometheus and Grafana get: rules as rendered, by promtool; monitors that find the pod."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.backends.processes import NO_PROMETHEUS, promtool
from tests.backends.rule_files import TESTS, alerts, exprs
from tests.support import helm, promql
from tests.support.chart_values import CHART

Object = dict[str, Any]
needs_prometheus = pytest.mark.skipif(bool(NO_PROMETHEUS), reason=NO_PROMETHEUS)
CRDS = Path(__file__).parent / "crds"
JOB = f"{helm.RELEASE}-model-sidecar"
BASE = yaml.safe_load((helm.CI / "tls-values.yaml").read_text(encoding="utf-8"))


def rendered(**metrics: Any) -> list[Object]:
    return helm.objects(helm.render({**BASE, "metrics": metrics}))


@pytest.fixture(scope="module")
def scoped() -> Object:
    """Rules of one release."""
    return helm.the(rendered(rules={"enabled": True}), "PrometheusRule")["spec"]


def rules(spec: Object) -> list[Object]:
    return [rule for group in spec["groups"] for rule in group["rules"]]


def written(spec: Object, folder: Path) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


# --- rules ----------------------------------------------------------------------------------------


@needs_prometheus
@pytest.mark.parametrize("scope", ["release", "all"])
def test_promtool_finds_nothing_wrong_with_what_is_rendered(scope, tmp_path):
    spec = helm.the(rendered(rules={"enabled": True, "scope": scope}), "PrometheusRule")["spec"]
    assert len(rules(spec)) == len(list(exprs()))
    status, output = promtool("check", "rules", "--lint=all", "--lint-fatal",
                              str(written(spec, tmp_path)))  # fmt: skip
    assert status == 0, output


def test_every_series_is_of_this_release(scoped):
    wanted = f'namespace="{helm.NAMESPACE}",job="{JOB}"'
    for rule in rules(scoped):
        names = re.findall(r"\b(?:model_sidecar|rpc_server)[\w:]*|\bup\b", rule["expr"])
        assert names
        assert rule["expr"].count(wanted) == len(names), rule["expr"]
        assert list(promql.undeclared(rule["expr"])) == []


def test_rules_of_every_release_are_those_of_the_files():
    spec = helm.the(rendered(rules={"enabled": True, "scope": "all"}), "PrometheusRule")["spec"]
    assert [rule["expr"] for rule in rules(spec)] == [rule.expr for rule in exprs()]


def _ours(job: str) -> bool:
    """Jobs of promtool's tests that stand for this release; others are somebody else's."""
    return job in {"j", "busy"} or "model-sidecar" in job


def _named(series: str, namespace: str) -> str:
    name, _, labels = series.partition("{")
    job = re.search(r'job="([^"]*)"', labels)
    shown = job[1] if job is not None and not _ours(job[1]) else JOB
    labels = re.sub(r'job="[^"]*",? *', "", labels).rstrip("}").rstrip(", ")
    return f'{name}{{namespace="{namespace}", job="{shown}"{", " + labels if labels else ""}}}'


def _moved(test: Object, namespace: str) -> Object:
    """A test of promtool's, about the series of this release in ``namespace``."""
    for one in test["input_series"]:
        one["series"] = _named(one["series"], namespace)
    for case in test["alert_rule_test"]:
        for expected in case["exp_alerts"]:
            labels, texts = expected["exp_labels"], expected["exp_annotations"]
            if job := labels.get("job"):
                word = rf"(?<![\w-]){re.escape(job)}(?![\w-])"
                expected["exp_annotations"] = {
                    key: re.sub(word, JOB, text) for key, text in texts.items()
                }
            labels.update(namespace=namespace, job=JOB)
    return test


def _try(spec: Object, tests: list[Object], folder: Path) -> tuple[int, str]:
    document = {"rule_files": [str(written(spec, folder))], "evaluation_interval": "1m",
                "tests": tests}  # fmt: skip
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return promtool("test", "rules", str(path))


@needs_prometheus
@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("*.yaml")))
def test_they_fire_for_this_release_when_they_should(name, scoped, tmp_path):
    tests = yaml.safe_load((TESTS / name).read_text(encoding="utf-8"))["tests"]
    moved = [_moved(test, helm.NAMESPACE) for test in tests]
    status, output = _try(scoped, moved, tmp_path)
    assert status == 0, output


@needs_prometheus
@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("*.yaml")))
def test_and_are_silent_about_another(name, scoped, tmp_path):
    tests = yaml.safe_load((TESTS / name).read_text(encoding="utf-8"))["tests"]
    for test in tests:
        _moved(test, "elsewhere")
        kept = [case for case in test["alert_rule_test"]
                if case["alertname"] != "ModelSidecarUnobserved"]  # fmt: skip
        test["alert_rule_test"] = [{**case, "exp_alerts": []} for case in kept]
    status, output = _try(scoped, [test for test in tests if test["alert_rule_test"]], tmp_path)
    assert status == 0, output


def test_what_the_values_say_of_alerts():
    spec = helm.the(helm.ci_objects(helm.CI / "prometheus-values.yaml"), "PrometheusRule")
    assert spec["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    found = [rule for rule in rules(spec["spec"]) if "alert" in rule]
    assert {rule["alert"] for rule in found} == {
        rule.alert for rule in alerts() if rule.alert != "ModelSidecarRefusesRequests"
    }
    base = "https://git.example.org/ml/model-sidecar/-/blob/main/"
    for rule in found:
        assert rule["labels"]["team"] == "serving"
        assert (
            rule["annotations"]["runbook_url"] == f"{base}docs/runbooks.md#{rule['alert'].lower()}"
        )
    for rule in rules(spec["spec"]):
        assert "record" not in rule or "labels" not in rule, "a recorded series is not an alert"


@pytest.mark.parametrize(
    ("lease_s", "wait"),
    [(None, "60s"), (1, "60s"), (20, "60s"), (20.5, "62s"), (45, "135s"), (300, "900s")],
)
def test_nobody_leads_for_three_leases_before_it_is_said(lease_s, wait, tmp_path):
    values = yaml.safe_load((helm.CI / "fleet-values.yaml").read_text(encoding="utf-8"))
    if lease_s is None:
        del values["config"]["monitor"]
    else:
        values["config"]["monitor"]["store"]["lease_s"] = lease_s
    objects = helm.objects(helm.render({**values, "metrics": {"rules": {"enabled": True}}}))
    spec = helm.the(objects, "PrometheusRule")["spec"]
    waits = {rule["alert"]: rule.get("for") for rule in rules(spec) if "alert" in rule}
    assert waits.pop("ModelSidecarFleetLeaderless") == wait
    as_written = {rule.alert: rule.wait or None for rule in alerts()}
    del as_written["ModelSidecarFleetLeaderless"]
    assert waits == as_written, "and no other rule's"


def test_leases_that_the_chart_cannot_read_are_the_usual_ones():
    values = yaml.safe_load(
        (helm.CI / "existing-configmap-values.yaml").read_text(encoding="utf-8")
    )
    objects = helm.objects(helm.render({**values, "metrics": {"rules": {"enabled": True}}}))
    found = rules(helm.the(objects, "PrometheusRule")["spec"])
    [rule] = [one for one in found if one.get("alert") == "ModelSidecarFleetLeaderless"]
    assert rule["for"] == "60s"


# --- monitors -------------------------------------------------------------------------------------


def takes(selector: Object, labels: Object) -> bool:
    return selector["matchLabels"].items() <= labels.items()


def test_a_pod_monitor_finds_the_monitors_port():
    objects = helm.ci_objects(helm.CI / "prometheus-values.yaml")
    spec = helm.the(objects, "PodMonitor")["spec"]
    assert takes(spec["selector"], helm.pod(objects)["metadata"]["labels"])
    assert spec["namespaceSelector"] == {"matchNames": [helm.NAMESPACE]}
    (endpoint,) = spec["podMetricsEndpoints"]
    ports = {
        port["name"]: (name, port["containerPort"])
        for name, one in helm.containers(objects).items()
        for port in one.get("ports", ())
    }
    assert ports[endpoint["port"]] == ("monitor", 9464)
    config = helm.config(objects)
    assert config.telemetry.prometheus == "0.0.0.0:9464"
    assert config.telemetry.metrics.exporter == "prometheus"
    named = {one["targetLabel"]: one for one in endpoint["relabelings"]}
    assert named["job"]["replacement"] == JOB, "as the rules ask for it"
    assert named["instance"]["sourceLabels"] == ["__meta_kubernetes_pod_name"]


def test_a_service_monitor_finds_a_service_that_has_only_metrics():
    objects = helm.ci_objects(helm.CI / "service-monitor-values.yaml")
    monitor = helm.the(objects, "ServiceMonitor")
    assert monitor["metadata"]["namespace"] == "monitoring"
    found = [
        item
        for item in helm.of_kind(objects, "Service")
        if takes(monitor["spec"]["selector"], item["metadata"]["labels"])
    ]
    (service,) = found
    assert [port["targetPort"] for port in service["spec"]["ports"]] == [9464]
    assert service["spec"]["ports"][0]["name"] == monitor["spec"]["endpoints"][0]["port"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert takes({"matchLabels": service["spec"]["selector"]},
                 helm.pod(objects)["metadata"]["labels"])  # fmt: skip
    (serving,) = [item for item in helm.of_kind(objects, "Service") if item is not service]
    assert 9464 not in {port["targetPort"] for port in serving["spec"]["ports"]}


def test_two_ways_to_the_same_series_are_refused():
    both = {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}
    with pytest.raises(helm.HelmError, match="each series would come twice"):
        rendered(**both)


def test_what_is_sent_elsewhere_is_not_scraped():
    values = {**BASE, "metrics": {"podMonitor": {"enabled": True}}}
    values["config"] = {**BASE["config"], "telemetry": {"endpoint": "http://collector:4317"}}
    with pytest.raises(helm.HelmError, match="there is nothing to scrape"):
        helm.render(values)


def test_nothing_of_an_operator_is_made_unless_it_is_asked_for():
    assert [item["kind"] for item in rendered() if helm.is_custom(item)] == []


# --- custom resources -----------------------------------------------------------------------------


def schema(kind: str) -> Object:
    """The fields of a custom resource that we write, and those that it requires."""
    return json.loads((CRDS / f"{kind.lower()}.json").read_text(encoding="utf-8"))


def custom() -> list[tuple[str, Object]]:
    return [
        (f"{path.name} {item['kind']}", item)
        for path in helm.ci_files()
        for item in helm.ci_objects(path)
        if helm.is_custom(item)
    ]


def test_custom_resources_have_what_is_required_and_nothing_unknown():
    found = custom()
    assert {item["kind"] for _, item in found} >= {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
    for _, item in found:
        jsonschema.validate(item, schema(item["kind"]))


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("PodMonitor", lambda spec: spec.pop("selector")),
        ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(intervall="1s")),
        ("ServiceMonitor", lambda spec: spec.pop("endpoints")),
        ("PrometheusRule", lambda spec: spec["groups"][0].pop("name")),
        ("PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].pop("expr")),
        ("PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].update({"for": "soon"})),
    ],
)
def test_a_wrong_custom_resource_is_found(kind, spoil):
    item = next(item for _, item in custom() if item["kind"] == kind)
    jsonschema.validate(item, schema(kind))
    spoil(item["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(item, schema(kind))


# --- dashboards -----------------------------------------------------------------------------------


def dashboards(objects: list[Object]) -> list[Object]:
    return [item for item in helm.of_kind(objects, "ConfigMap")
            if "-dashboard-" in item["metadata"]["name"]]  # fmt: skip


def test_dashboards_are_the_files_each_in_a_config_map_of_its_own():
    found = dashboards(helm.ci_objects(helm.CI / "prometheus-values.yaml"))
    shown = {}
    for item in found:
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"]["grafana_folder"] == "Model sidecar"
        assert len(json.dumps(item).encode()) < 2**20, "what a ConfigMap may hold"
        shown.update(item["data"])
    files = {f"model-sidecar-{path.name}": path for path in (CHART / "dashboards").iterdir()}
    assert set(shown) == set(files)
    for name, path in files.items():
        assert json.loads(shown[name]) == json.loads(path.read_text(encoding="utf-8"))


def test_a_dashboard_too_large_for_a_config_map_would_be_found():
    sizes = {path.name: path.stat().st_size for path in (CHART / "dashboards").iterdir()}
    # An object goes through etcd (1.5 MiB) and, applied by a client, into an annotation as well.
    assert max(sizes.values()) < 200_000, sizes


def test_dashboards_go_where_grafana_looks():
    found = dashboards(rendered(dashboards={
        "enabled": True, "namespace": "grafana", "labels": {"shown": "yes"}, "folder": "",
    }))  # fmt: skip
    assert found
    for item in found:
        assert item["metadata"]["namespace"] == "grafana"
        assert item["metadata"]["labels"]["shown"] == "yes"
        assert "annotations" not in item["metadata"]
