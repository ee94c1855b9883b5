"""Replicas: how many, where they stand, how many may go at once, and who has the devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.backends.processes import NO_PROMETHEUS, promtool
from tests.support import helm, promql

Object = dict[str, Any]
AUTO = helm.CI / "autoscaling-values.yaml"
DEVICES = helm.CI / "devices-values.yaml"
TLS = helm.CI / "tls-values.yaml"
PAGE = Path(__file__).parents[2] / "docs" / "kubernetes.md"


def values(path: Path, **changes: Any) -> Object:
    return {**yaml.safe_load(path.read_text(encoding="utf-8")), **changes}


def rendered(path: Path, **changes: Any) -> list[Object]:
    return helm.objects(helm.render(values(path, **changes)))


# --- how many -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", helm.KUBERNETES)
def test_it_scales_by_the_gateways_processor_and_the_queue(version):
    objects = helm.ci_objects(AUTO, version)
    spec = helm.the(objects, "HorizontalPodAutoscaler")["spec"]
    deployment = helm.the(objects, "Deployment")
    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "each upgrade would set them back"
    cpu, queue = spec["metrics"]
    assert cpu["type"] == "ContainerResource"
    assert cpu["containerResource"]["container"] in helm.containers(objects)
    resources = helm.containers(objects)[cpu["containerResource"]["container"]]["resources"]
    assert "cpu" in resources["requests"], "a share of nothing"
    assert queue["pods"]["metric"]["name"] == "model_sidecar_queue_seconds"
    assert queue["pods"]["target"] == {"type": "AverageValue", "averageValue": "20m"}


def test_up_at_once_and_down_slowly():
    behavior = helm.the(helm.ci_objects(AUTO), "HorizontalPodAutoscaler")["spec"]["behavior"]
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    assert up["stabilizationWindowSeconds"] < 60 < down["stabilizationWindowSeconds"]
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


@pytest.mark.parametrize(
    ("autoscaling", "problem"),
    [
        ({"cpu": {"enabled": False}, "queue": {"enabled": False}}, "nothing to go by"),
        ({"minReplicas": 5, "maxReplicas": 3}, "maxReplicas"),
        ({"cpu": {"container": "sidecar"}}, "no container is called sidecar"),
    ],
)
def test_an_autoscaler_that_cannot_work_is_refused(autoscaling, problem):
    changed = {"enabled": True, **autoscaling}
    with pytest.raises(helm.HelmError, match=problem):
        rendered(AUTO, autoscaling=changed)


def test_a_pod_at_a_time_may_go_for_maintenance():
    spec = helm.the(helm.ci_objects(AUTO), "PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == "25%"
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    labels = helm.pod(helm.ci_objects(AUTO))["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    least = rendered(AUTO, podDisruptionBudget={"minAvailable": 2})
    spec = helm.the(least, "PodDisruptionBudget")["spec"]
    assert spec["minAvailable"] == 2
    assert "maxUnavailable" not in spec


def test_one_pod_has_no_budget_that_would_hold_up_a_node():
    assert helm.of_kind(helm.ci_objects(TLS), "PodDisruptionBudget") == []


def test_pods_are_spread_over_zones_and_nodes():
    spec = helm.pod(helm.ci_objects(AUTO))["spec"]
    found = {one["topologyKey"]: one for one in spec["topologySpreadConstraints"]}
    assert set(found) == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    labels = helm.pod(helm.ci_objects(AUTO))["metadata"]["labels"]
    for one in found.values():
        assert one["whenUnsatisfiable"] == "DoNotSchedule"
        assert one["labelSelector"]["matchLabels"].items() <= labels.items()
        assert one["matchLabelKeys"] == ["pod-template-hash"]
    assert spec["priorityClassName"] == "serving"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]


# --- the queue's metric ---------------------------------------------------------------------------


def adapter_rule() -> Object:
    """The rule for prometheus-adapter that the page shows."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (found,) = [one for one in map(yaml.safe_load, blocks) if "metricsQuery" in str(one)]
    (rule,) = found["rules"]["custom"]
    return rule


def query() -> str:
    """As the adapter asks it about the pods of a namespace."""
    text = str(adapter_rule()["metricsQuery"])
    return text.replace("<<.LabelMatchers>>", 'namespace="shop"').replace("<<.GroupBy>>", "pod")


def test_the_metric_on_the_page_is_the_one_that_the_chart_asks_for():
    rule = adapter_rule()
    spec = helm.the(helm.ci_objects(AUTO), "HorizontalPodAutoscaler")["spec"]
    assert rule["name"]["as"] == spec["metrics"][1]["pods"]["metric"]["name"]
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    assert list(promql.undeclared(query())) == []
    assert list(promql.undeclared(rule["seriesQuery"])) == []


@pytest.mark.skipif(bool(NO_PROMETHEUS), reason=NO_PROMETHEUS)
def test_it_is_how_long_requests_waited_in_each_pod(tmp_path):
    def series(pod: str, part: str, values: str, **labels: str) -> Object:
        shown = {"namespace": "shop", "pod": pod, "role": "serving", "stage": "queue", **labels}
        text = ",".join(f'{key}="{value}"' for key, value in shown.items())
        return {"series": f"model_sidecar_inference_duration_seconds_{part}{{{text}}}",
                "values": values}  # fmt: skip

    document = {
        "evaluation_interval": "30s",
        "tests": [{
            "interval": "30s",
            "input_series": [
                # Of ten requests in 30 s each waited for 250 ms; and none comes to the second pod.
                series("busy", "sum", "0+2.5x20"), series("busy", "count", "0+10x20"),
                series("idle", "sum", "5x20"), series("idle", "count", "100x20"),
                # What is not waiting, and what does not serve, does not count.
                series("busy", "sum", "0+9x20", stage="execute"),
                series("busy", "count", "0+10x20", stage="execute"),
                series("busy", "sum", "0+9x20", role="mirror"),
                series("busy", "count", "0+10x20", role="mirror"),
                series("other", "sum", "0+9x20", namespace="elsewhere"),
                series("other", "count", "0+10x20", namespace="elsewhere"),
            ],
            "promql_expr_test": [{
                "expr": query(), "eval_time": "9m",
                "exp_samples": [{"labels": '{pod="busy"}', "value": 0.25},
                                {"labels": '{pod="idle"}', "value": 0}],
            }],
        }],
    }  # fmt: skip
    path = tmp_path / "queue.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    status, output = promtool("test", "rules", str(path))
    assert status == 0, output


# --- devices --------------------------------------------------------------------------------------


def devices(objects: list[Object], name: str) -> Any:
    resources = helm.containers(objects)[name]["resources"]
    return resources["limits"].get(
        "nvidia.com/gpu", resources["limits"].get("nvidia.com/gpu.shared")
    )


def sees(objects: list[Object], name: str) -> Any:
    found = {one["name"]: one.get("value") for one in helm.containers(objects)[name].get("env", ())}
    return found.get("NVIDIA_VISIBLE_DEVICES")


def test_devices_go_to_the_model_and_a_share_to_the_monitor():
    objects = helm.ci_objects(DEVICES)
    assert [str(devices(objects, name)) for name in ("model", "monitor", "gateway")] == [
        "1", "1", "None"
    ]  # fmt: skip
    assert sees(objects, "gateway") == "void"
    assert sees(objects, "monitor") is None
    assert helm.pod(objects)["spec"]["runtimeClassName"] == "nvidia"


def test_a_monitor_sees_no_device_unless_it_is_given_one():
    gpu = {"count": 1}
    config = values(TLS)["config"]
    objects = rendered(TLS, gpu=gpu, config=config)
    assert str(devices(objects, "gateway")) == "1", "where there is no model container"
    assert devices(objects, "monitor") is None
    assert sees(objects, "monitor") == "void"
    assert sees(objects, "gateway") is None


def test_without_devices_nothing_is_said_of_them():
    objects = helm.ci_objects(TLS)
    assert sees(objects, "gateway") is None
    assert sees(objects, "monitor") is None


# --- TLS ------------------------------------------------------------------------------------------


def test_certificates_are_files_of_the_secret():
    objects = helm.ci_objects(TLS)
    config = helm.config(objects)
    (volume,) = [
        one for one in helm.pod(objects)["spec"]["volumes"] if one["name"] == "sidecar-tls"
    ]
    assert volume["secret"]["secretName"] == "digits-tls"
    # Files belong to root and to the pod's group, and to nobody else.
    assert volume["secret"]["defaultMode"] == 0o440
    assert helm.pod(objects)["spec"]["securityContext"]["fsGroup"] == 65532
    (mount,) = [
        one
        for one in helm.containers(objects)["gateway"]["volumeMounts"]
        if one["name"] == "sidecar-tls"
    ]
    for listener in (config.gateway.grpc, config.gateway.http):
        assert listener is not None
        assert listener.tls is not None
        assert str(listener.tls.certificate) == f"{mount['mountPath']}/tls.crt"
        assert str(listener.tls.key) == f"{mount['mountPath']}/tls.key"
        assert str(listener.tls.client_ca) == f"{mount['mountPath']}/ca.crt"


def test_what_kubelet_asks_has_no_tls():
    config = helm.config(helm.ci_objects(TLS))
    assert config.gateway.health == "0.0.0.0:9001"
    probes = helm.containers(helm.ci_objects(TLS))["gateway"]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert probes[name]["grpc"]["port"] == 9001
