"""The pod that the chart makes: its two forms, probes, hooks, volumes, secrets, roll-outs."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support import helm
from tests.support.chart_values import CHART

CONFIG = "/etc/model-sidecar/config.yaml"
REMOTE = {"kind": "remote", "address": "127.0.0.1:8001"}


def values(**changes: Any) -> dict[str, Any]:
    """A model container with a server behind the sidecar, and changes at the top."""
    variant = {"name": "server", "version": 1, "roles": ["serving"], "runtime": REMOTE}
    base = {
        "model": {"image": "example/server:1", "ports": [{"name": "model", "containerPort": 8001}]},
        "config": {"models": [{"name": "digits", "variants": [variant]}]},
    }
    return {**base, **changes}


def hosted(**changes: Any) -> dict[str, Any]:
    """No model container: the sidecar runs the model."""
    runtime = {"kind": "onnxruntime", "path": "/models/digits.onnx"}
    variant = {"name": "onnx", "version": 1, "roles": ["serving"], "runtime": runtime}
    base = {
        "models": {"source": "pvc", "pvc": {"claimName": "models"}},
        "config": {"models": [{"name": "digits", "variants": [variant]}]},
    }
    return {**base, **changes}


def made(tree: dict[str, Any], kubernetes: str = helm.KUBERNETES[-1]) -> list[helm.Object]:
    return helm.objects(helm.render(tree, kubernetes=kubernetes))


def names(found: list[helm.Object], key: str) -> list[str]:
    return [item["name"] for item in helm.pod(found)["spec"].get(key, [])]


# --- the two forms ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "kubernetes", "expected"),
    [
        ("auto", "1.28", "ordinary"),
        ("auto", "1.29", "native"),
        ("auto", helm.KUBERNETES[-1], "native"),
        ("native", "1.29", "native"),
        ("ordinary", helm.KUBERNETES[-1], "ordinary"),
    ],
)
def test_the_sidecar_stands_where_the_cluster_allows(form: str, kubernetes: str, expected: str):
    found = made(values(sidecar={"form": form}), kubernetes)
    containers = helm.containers(found)
    restarts = {name: containers[name].get("restartPolicy") for name in ("gateway", "monitor")}
    if expected == "native":
        assert names(found, "initContainers") == ["gateway", "monitor"]
        assert names(found, "containers") == ["model"]
        assert set(restarts.values()) == {"Always"}
    else:
        assert names(found, "initContainers") == []
        assert names(found, "containers") == ["model", "gateway", "monitor"]
        assert set(restarts.values()) == {None}


@pytest.mark.parametrize("form", ["auto", "native", "ordinary"])
def test_without_a_model_container_the_sidecar_is_the_pod(form: str):
    found = made(hosted(sidecar={"form": form}))
    assert names(found, "initContainers") == []
    assert names(found, "containers") == ["gateway", "monitor"]


def test_both_forms_run_the_same():
    native = helm.containers(made(values(sidecar={"form": "native"})))
    ordinary = helm.containers(made(values(sidecar={"form": "ordinary"})))
    for name in ("gateway", "monitor"):
        assert native[name].pop("restartPolicy") == "Always"
    assert native == ordinary


def test_what_fetches_models_comes_before_the_sidecar_and_what_is_extra_before_that():
    tree = hosted(
        models={"source": "init", "init": {"image": "example/fetch:1", "args": ["/models"]}},
        extraInitContainers=[{"name": "wait", "image": "example/wait:1"}],
        extraContainers=[{"name": "logs", "image": "example/logs:1"}],
    )
    found = made(tree)
    assert names(found, "initContainers") == ["wait", "models", "gateway", "monitor"]
    assert names(found, "containers") == ["logs"]
    fetch = helm.containers(found)["models"]
    assert fetch["securityContext"]["runAsUser"] == 65532
    writable = {
        name: not mount.get("readOnly", False)
        for name, container in helm.containers(found).items()
        for mount in container.get("volumeMounts", [])
        if mount["name"] == "sidecar-models"
    }
    assert writable == {"models": True, "gateway": False, "monitor": False}


# --- probes and stopping ------------------------------------------------------------------------


def test_probes_ask_the_plain_listeners_and_only_readiness_asks_for_the_model():
    containers = helm.containers(made(values()))
    gateway, monitor = containers["gateway"], containers["monitor"]
    asked = {kind: gateway[f"{kind}Probe"]["grpc"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"port": 9001, "service": "live"},
        "liveness": {"port": 9001, "service": "live"},
        "readiness": {"port": 9001, "service": ""},
    }
    assert monitor["livenessProbe"]["grpc"] == {"port": 9005, "service": "live"}
    # It may be down: then nobody is watched, and everybody is served.
    assert not {"readinessProbe", "startupProbe"} & set(monitor)


def test_how_often_a_probe_asks_is_a_value_and_whom_is_not():
    probes = {"startup": {"failureThreshold": 7}, "liveness": {"grpc": {"port": 1}}}
    gateway = helm.containers(made(values(gateway={"probes": probes})))["gateway"]
    assert gateway["startupProbe"]["failureThreshold"] == 7
    assert gateway["startupProbe"]["periodSeconds"] == 1
    assert gateway["livenessProbe"]["grpc"]["port"] == 9001


def test_the_drain_comes_first_and_everybody_waits_for_it():
    containers = helm.containers(made(values()))
    assert containers["gateway"]["command"] == ["sidecar", "gateway", CONFIG]
    assert containers["monitor"]["command"] == ["sidecar", "monitor", CONFIG]
    drain = containers["gateway"]["lifecycle"]["preStop"]["exec"]["command"]
    assert drain == ["sidecar", "drain", CONFIG]
    for name in ("model", "monitor"):
        hook = containers[name]["lifecycle"]["preStop"]["httpGet"]
        assert (hook["path"], hook["port"]) == ("/drained", 9003), name


def test_a_hook_of_the_models_own_is_kept():
    own = {"preStop": {"exec": {"command": ["/bin/stop"]}}}
    tree = values()
    tree["model"]["lifecycle"] = own
    assert helm.containers(made(tree))["model"]["lifecycle"] == own
    tree["model"]["lifecycle"] = {"postStart": {"exec": {"command": ["/bin/start"]}}}
    assert set(helm.containers(made(tree))["model"]["lifecycle"]) == {"preStop", "postStart"}


@pytest.mark.parametrize(
    ("drain", "model", "seconds"),
    [
        ({}, {}, 45 + 8 + 7 + 10),
        ({"timeout_s": 100}, {"stopSeconds": 30}, 100 + 8 + 7 + 30),
        ({"timeout_s": 60.5}, {}, 61 + 8 + 7 + 10),
        ({"delay_s": 0}, {"image": ""}, 45 + 8 + 7),
    ],
)
def test_the_grace_period_follows_from_the_drain(drain: Any, model: Any, seconds: int):
    tree = values() if model.get("image", "x") else hosted()
    tree["config"]["gateway"] = {"drain": drain}
    tree["model"] = {**tree.get("model", {}), **model}
    assert helm.pod(made(tree))["spec"]["terminationGracePeriodSeconds"] == seconds


def test_a_grace_period_that_is_long_enough_is_taken():
    found = made(values(terminationGracePeriodSeconds=300))
    assert helm.pod(found)["spec"]["terminationGracePeriodSeconds"] == 300


# --- volumes ------------------------------------------------------------------------------------


def volumes(found: list[helm.Object]) -> dict[str, Any]:
    return {
        volume["name"]: {key: value for key, value in volume.items() if key != "name"}
        for volume in helm.pod(found)["spec"]["volumes"]
    }


@pytest.mark.parametrize(
    ("models", "volume"),
    [
        ({"source": "pvc", "pvc": {"claimName": "m"}},
         {"persistentVolumeClaim": {"claimName": "m", "readOnly": True}}),
        ({"source": "image", "image": {"reference": "example/m:1"}},
         {"image": {"reference": "example/m:1", "pullPolicy": "IfNotPresent"}}),
        ({"source": "hostPath", "hostPath": {"path": "/srv"}},
         {"hostPath": {"path": "/srv", "type": "Directory"}}),
        ({"source": "init", "init": {"image": "example/fetch:1", "sizeLimit": "3Gi"}},
         {"emptyDir": {"sizeLimit": "3Gi"}}),
    ],
    ids=["pvc", "image", "hostPath", "init"],
)  # fmt: skip
def test_models_come_from_where_they_are_and_are_read_only(models: Any, volume: Any):
    found = made(hosted(models=models))
    assert volumes(found)["sidecar-models"] == volume
    for name in ("gateway", "monitor"):
        (mount,) = [
            mount
            for mount in helm.containers(found)[name]["volumeMounts"]
            if mount["name"] == "sidecar-models"
        ]
        assert mount == {"name": "sidecar-models", "mountPath": "/models", "readOnly": True}


def test_both_containers_share_state_and_sockets_and_have_a_tmp_each():
    found = made(values())
    made_of = volumes(found)
    assert made_of["sidecar-run"]["emptyDir"]["medium"] == "Memory"
    assert set(made_of["sidecar-state"]) == {"emptyDir"}
    mounts = {
        name: {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        for name, container in helm.containers(found).items()
        if name != "model"
    }
    shared = {
        "/etc/model-sidecar": "sidecar-config",
        "/var/lib/model-sidecar": "sidecar-state",
        "/run/model-sidecar": "sidecar-run",
    }
    assert mounts["gateway"] == {**shared, "/tmp": "sidecar-tmp-gateway"}
    assert mounts["monitor"] == {**shared, "/tmp": "sidecar-tmp-monitor"}


def test_state_on_a_claim_belongs_to_one_pod_at_a_time():
    found = made(values(store={"persistence": {"enabled": True}}))
    claim = helm.the(found, "PersistentVolumeClaim")
    name = claim["metadata"]["name"]
    assert volumes(found)["sidecar-state"] == {"persistentVolumeClaim": {"claimName": name}}
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "storageClassName" not in claim["spec"]
    assert helm.the(found, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    found = made(values(store={"persistence": {"enabled": True, "existingClaim": "mine"}}))
    assert helm.of_kind(found, "PersistentVolumeClaim") == []
    assert volumes(found)["sidecar-state"] == {"persistentVolumeClaim": {"claimName": "mine"}}


def test_otherwise_a_new_pod_is_ready_before_an_old_one_goes():
    strategy = helm.the(made(values()), "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_shared_memory_is_shared_by_gateway_and_model():
    found = made(values(sharedMemory={"enabled": True, "sizeLimit": "2Gi"}))
    assert volumes(found)["sidecar-shm"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}
    with_it = {
        name
        for name, container in helm.containers(found).items()
        if "/dev/shm" in {mount["mountPath"] for mount in container.get("volumeMounts", [])}
    }
    assert with_it == {"gateway", "model"}


# --- configuration and secrets --------------------------------------------------------------------


def checksum(tree: dict[str, Any]) -> str | None:
    return helm.pod(made(tree))["metadata"].get("annotations", {}).get("checksum/config")


def test_pods_are_rolled_by_the_configuration_and_by_nothing_else():
    first = checksum(values())
    assert first is not None
    assert checksum(values(commonLabels={"a": "b"}, service={"type": "NodePort"})) == first
    changed = values()
    changed["config"]["log"] = {"level": "debug"}
    assert checksum(changed) not in {None, first}


def test_a_configmap_that_exists_is_mounted_under_the_same_name():
    tree = values(configMap={"existing": "mine", "key": "a.yaml", "checksum": 7}, config={})
    found = made(tree)
    assert helm.of_kind(found, "ConfigMap") == []
    assert volumes(found)["sidecar-config"] == {
        "configMap": {"name": "mine", "items": [{"key": "a.yaml", "path": "config.yaml"}]}
    }
    assert checksum(tree) == "7"
    del tree["configMap"]["checksum"]
    assert checksum(tree) is None


def test_what_config_says_wins_where_that_is_safe():
    tree = values(monitor={"http": {"enabled": True}})
    tree["config"]["gateway"] = {
        "grpc": {"address": "[::]:7000", "reflection": False},
        "http": None,
        "health": "0.0.0.0:7001",
    }
    tree["config"]["log"] = {"format": "text"}
    found = made(tree)
    config = yaml.safe_load(helm.config_text(found))
    assert config["gateway"]["grpc"] == {"address": "[::]:7000", "reflection": False}
    assert config["gateway"]["http"] is None
    assert config["log"] == {"format": "text"}
    containers = helm.containers(found)
    ports = {port["name"]: port["containerPort"] for port in containers["gateway"]["ports"]}
    assert ports == {"grpc": 7000, "health": 7001, "hooks": 9003}
    assert containers["gateway"]["readinessProbe"]["grpc"]["port"] == 7001
    (port,) = [
        port for port in helm.the(found, "Service")["spec"]["ports"] if port["name"] == "grpc"
    ]
    assert (port["port"], port["targetPort"]) == (9000, 7000)


def test_large_numbers_and_texts_that_look_like_numbers_arrive_as_they_were_written():
    tree = values()
    tree["config"]["models"][0]["variants"][0]["version"] = "1.10"
    tree["config"]["gateway"] = {"admission": {"max_bytes": 8589934592}}
    config = yaml.safe_load(helm.config_text(made(tree)))
    assert config["gateway"]["admission"]["max_bytes"] == 8589934592
    assert isinstance(config["gateway"]["admission"]["max_bytes"], int)
    assert config["models"][0]["variants"][0]["version"] == "1.10"


def test_admin_calls_are_for_the_pod_alone_unless_a_token_is_asked_for():
    assert yaml.safe_load(helm.config_text(made(values())))["gateway"]["admin"] == {
        "address": "127.0.0.1:9006"
    }
    tree = values(secrets={"TOKEN": {"name": "admin", "key": "token"}})
    tree["config"]["gateway"] = {"admin": {"token": "${TOKEN}"}}
    found = made(tree)
    assert yaml.safe_load(helm.config_text(found))["gateway"]["admin"] == {"token": "${TOKEN}"}


def test_secrets_are_references_and_the_gateway_gets_only_its_own():
    found = helm.ci_objects(helm.CI / "secrets-values.yaml")
    given = {
        name: {
            item["name"]: item["valueFrom"]["secretKeyRef"]
            for item in container["env"]
            if "secretKeyRef" in item.get("valueFrom", {})
        }
        for name, container in helm.containers(found).items()
        if name != "model"
    }
    assert given["gateway"] == {"ADMIN_TOKEN": {"name": "digits-admin", "key": "token"}}
    assert set(given["monitor"]) == {
        "ADMIN_TOKEN", "OTLP_TOKEN", "PAGERDUTY_KEY", "SLACK_URL", "MAIL_PASSWORD",
        "DELIVERY_TOKEN",
    }  # fmt: skip


def test_the_url_of_the_database_is_the_monitors_alone():
    found = helm.ci_objects(helm.CI / "fleet-values.yaml")
    config = yaml.safe_load(helm.config_text(found))
    assert config["monitor"]["store"] == {
        "url": "${MODEL_SIDECAR_STORE_URL}", "sync_s": 2, "lease_s": 15,
    }  # fmt: skip
    variables = {
        name: [item["name"] for item in container.get("env", [])]
        for name, container in helm.containers(found).items()
    }
    assert "MODEL_SIDECAR_STORE_URL" in variables["monitor"]
    assert "MODEL_SIDECAR_STORE_URL" not in variables["gateway"]


def test_a_variable_of_ones_own_takes_the_place_of_the_charts():
    tree = values(gateway={"env": [{"name": "HOME", "value": "/cache"}]})
    env = helm.containers(made(tree))["gateway"]["env"]
    assert [item for item in env if item["name"] == "HOME"] == [{"name": "HOME", "value": "/cache"}]


# --- what is not made -----------------------------------------------------------------------------


def test_without_a_monitor_there_is_no_container_no_metrics_and_no_watching():
    found = made(values(monitor={"enabled": False}))
    assert "monitor" not in helm.containers(found)
    config = yaml.safe_load(helm.config_text(found))
    assert config["monitor"]["enabled"] is False
    assert "telemetry" not in config


def test_metrics_go_to_prometheus_unless_they_go_elsewhere():
    def ports(telemetry: dict[str, Any]) -> set[str]:
        tree = values()
        tree["config"]["telemetry"] = telemetry
        monitor = helm.containers(made(tree))["monitor"]
        return {port["name"] for port in monitor["ports"]}

    assert "metrics" in ports({})
    assert "metrics" in ports({"traces": {"exporter": "otlp-grpc"}})
    assert "metrics" not in ports({"exporter": "otlp-grpc"})
    assert "metrics" not in ports({"exporter": "none"})
    assert "metrics" in ports({"exporter": "otlp-grpc", "metrics": {"exporter": "prometheus"}})


def test_the_image_is_named_by_tag_variant_or_digest():
    def image(**settings: str) -> str:
        name = helm.containers(made(values(image=settings)))["gateway"]["image"]
        return str(name)

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert image() == f"model-sidecar:{chart['appVersion']}"
    assert image(variant="torch") == f"model-sidecar:{chart['appVersion']}-torch"
    assert image(repository="example/sidecar", tag="7") == "example/sidecar:7"
    digest = "sha256:" + "ab" * 32
    assert image(digest=digest, tag="7", variant="torch") == f"model-sidecar@{digest}"


def test_the_chart_is_of_this_version():
    from sidecar import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == __version__
