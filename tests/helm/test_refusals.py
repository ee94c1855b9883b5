"""What the chart refuses, each with the value's name and the way out."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.config import json_schema
from tests.helm.test_pod import REMOTE, hosted, values
from tests.support import helm

Change = Callable[[dict[str, Any]], None]


def put(path: str, value: Any) -> Change:
    """Sets `config.models.0.…` of the values."""

    def change(tree: dict[str, Any]) -> None:
        node: Any = tree
        *parents, last = path.split(".")
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if isinstance(node, list):
            node[int(last) :] = [value]
        else:
            node[last] = value

    return change


def previous() -> Change:
    variant = {"name": "server", "version": 0, "roles": ["previous"],
               "runtime": {"kind": "remote", "address": "old.models.svc:9000"}}  # fmt: skip
    return lambda tree: tree["config"]["models"][0]["variants"].append(variant)


ACTION = {"kind": "deployment", "namespace": "models", "name": "digits"}
GIVEN = {"name": "a-secret", "key": "k"}

#: The values' changes, the cluster, and what must be said.
REFUSED: dict[str, tuple[dict[str, Any], list[Change], str, str]] = {
    "no models": (
        {}, [], "", r"config\.models is empty.*configMap\.existing",
    ),
    "two configurations": (
        values(), [put("configMap.existing", "mine")], "",
        r"configMap\.existing \(mine\).*leave one",
    ),
    "listener on loopback": (
        values(), [put("config.gateway.grpc.address", "127.0.0.1:9000")], "",
        r"config\.gateway\.grpc\.address is 127\.0\.0\.1:9000.*0\.0\.0\.0:PORT",
    ),
    "listener on a socket": (
        values(), [put("config.gateway.http.address", "unix:/run/http.sock")], "",
        r"config\.gateway\.http\.address is unix:",
    ),
    "any port": (
        values(), [put("config.gateway.grpc.address", "0.0.0.0:0")], "",
        r"config\.gateway\.grpc\.address is 0\.0\.0\.0:0.*port must be known",
    ),
    "no health": (
        values(), [put("config.gateway.health", None)], "", r"config\.gateway\.health is null",
    ),
    "no hooks": (
        values(), [put("config.gateway.hooks", None)], "", r"config\.gateway\.hooks is null",
    ),
    "monitor's health on loopback": (
        values(), [put("config.monitor.health", "localhost:9005")], "",
        r"config\.monitor\.health is localhost:9005",
    ),
    "Prometheus on loopback": (
        values(), [put("config.telemetry.prometheus", "127.0.0.1:9464")], "",
        r"config\.telemetry\.prometheus is 127",
    ),
    "monitor's calls for everybody": (
        values(), [put("config.monitor.grpc", "0.0.0.0:9002")], "",
        r"config\.monitor\.grpc is 0\.0\.0\.0:9002.*port-forward",
    ),
    "admin calls for everybody": (
        values(), [put("config.gateway.admin.address", "0.0.0.0:9006")], "",
        r"config\.gateway\.admin\.address is 0\.0\.0\.0:9006.*admin\.token",
    ),
    "state elsewhere": (
        values(), [put("config.monitor.state_dir", "/data")], "",
        r"config\.monitor\.state_dir is /data.*/var/lib/model-sidecar",
    ),
    "socket elsewhere": (
        values(), [put("config.monitor.socket", "/tmp/tap.sock")], "",
        r"config\.monitor\.socket is /tmp/tap\.sock",
    ),
    "a port of the model's": (
        values(), [put("model.ports.0", {"containerPort": 8080})], "",
        r"port 8080 is taken twice.*sidecar's http.*container model",
    ),
    "a port of the monitor's own": (
        values(), [put("model.ports.0", {"containerPort": 9002})], "", r"config\.monitor\.grpc",
    ),
    "two listeners on a port": (
        values(), [put("config.gateway.http.address", "[::]:9000")], "",
        r"port 9000 is taken twice",
    ),
    "monitor on and off": (
        values(), [put("config.monitor.enabled", False)], "",
        r"config\.monitor\.enabled is false, and monitor\.enabled true",
    ),
    "nobody there for labels": (
        values(monitor={"enabled": False, "http": {"enabled": True}}), [], "",
        r"monitor\.http\.enabled is set, and monitor\.enabled is false",
    ),
    "nobody there for metrics": (
        values(monitor={"enabled": False}), [put("metrics.podMonitor.enabled", True)], "",
        r"metrics\.podMonitor\.enabled is set, and monitor\.enabled is false",
    ),
    "metrics that go elsewhere": (
        values(),
        [put("metrics.podMonitor.enabled", True), put("config.telemetry.exporter", "otlp-grpc")],
        "",
        r"metrics\.podMonitor\.enabled is true.*otlp-grpc.*config\.telemetry\.metrics\.exporter",
    ),
    "metrics that are off": (
        values(metrics={"enabled": False, "podMonitor": {"enabled": True}}), [], "",
        r"nothing to scrape \(metrics\.enabled is false\)",
    ),
    "TLS twice": (
        values(tls={"secretName": "t"}),
        [put("config.gateway.grpc.tls", {"certificate": "/a", "key": "/b"})], "",
        r"config\.gateway\.grpc\.tls is set, and tls\.secretName too",
    ),
    "authorities without a secret": (
        values(tls={"clientCa": "ca.crt"}), [], "", r"tls\.secretName, which is empty",
    ),
    "a store twice": (
        values(store={"postgresql": {"existingSecret": "s"}}, secrets={"URL": GIVEN}),
        [put("config.monitor.store.url", "${URL}")], "",
        r"config\.monitor\.store\.url is set, and store\.postgresql\.existingSecret too",
    ),
    "a store nowhere": (
        values(), [put("config.monitor.store.sync_s", 2)], "",
        r"config\.monitor\.store is set without a url.*store\.postgresql\.existingSecret",
    ),
    "each pod judges by itself": (
        values(replicas=2), [previous()], "", r"replicas is 2.*store\.postgresql\.existingSecret",
    ),
    "each of many judges by itself": (
        values(autoscaling={"enabled": True}), [previous()], "",
        r"autoscaling\.enabled is true, and each pod",
    ),
    "evidence in a pod that is replaced": (
        values(), [previous(), put("config.models.0.rollback.action", ACTION)], "",
        r"the action deployment \(models/digits\).*emptyDir.*store\.persistence\.enabled",
    ),
    "two pods on a claim": (
        values(replicas=2, store={"persistence": {"enabled": True}}), [], "",
        r"store\.persistence\.enabled is true with more than one replica",
    ),
    "two pods on a claim while they are replaced": (
        values(store={"persistence": {"enabled": True}}, strategy={"type": "RollingUpdate"}),
        [], "",
        r"strategy starts a new pod beside the old one.*maxSurge: 0",
    ),
    "a claim that is not used": (
        values(store={"persistence": {"existingClaim": "c"}}), [], "",
        r"store\.persistence\.existingClaim is c.*turn it on",
    ),
    "connections longer than the drain": (
        values(), [put("config.gateway.grpc.max_connection_age_s", 45)], "",
        r"config\.gateway\.drain\.timeout_s is 45.*at least 50",
    ),
    "a drain that is too short": (
        values(), [put("config.gateway.drain.timeout_s", 20)], "",
        r"config\.gateway\.drain\.timeout_s is 20, shorter.*at least 35",
    ),
    "a pod that is killed while it drains": (
        values(terminationGracePeriodSeconds=45), [], "",
        r"terminationGracePeriodSeconds is 45, and stopping may take 63",
    ),
    "a source without a name": (
        hosted(models={"source": "pvc"}), [], "",
        r"models\.source is pvc, and models\.pvc\.claimName is empty",
    ),
    "image volumes on an old cluster": (
        hosted(models={"source": "image", "image": {"reference": "example/m:1"}}), [], "1.30",
        r"image volumes need Kubernetes 1\.31.*not v1\.30.*pvc or init",
    ),
    "a part of an image volume": (
        hosted(models={"source": "image", "image": {"reference": "example/m:1", "subPath": "a"}}),
        [], "1.32", r"models\.image\.subPath is set.*1\.33",
    ),
    "a model beside the configuration": (
        hosted(), [put("config.models.0.variants.0.runtime.path", "digits.onnx")], "",
        r"runtime\.path is digits\.onnx.*write /models/digits\.onnx",
    ),
    "a model where nothing is mounted": (
        hosted(), [put("config.models.0.variants.0.runtime.path", "/srv/digits.onnx")], "",
        r"runtime\.path is /srv/digits\.onnx, outside of models\.mountPath \(/models\)",
    ),
    "a server in the pod that is not there": (
        hosted(), [put("config.models.0.variants.0.runtime", REMOTE)], "",
        r"runtime\.address is 127\.0\.0\.1:8001.*set model\.image",
    ),
    "native on an old cluster": (
        values(sidecar={"form": "native"}), [], "1.28",
        r"sidecar\.form is native.*1\.29.*write auto",
    ),
    "a device for nobody": (
        hosted(gpu={"count": 1, "container": "model"}), [], "", r"gpu\.container is model.*gateway",
    ),
    "a device for a monitor that is off": (
        values(gpu={"count": 1, "container": "monitor"}, monitor={"enabled": False}), [], "",
        r"gpu\.container is monitor, and monitor\.enabled is false",
    ),
    "headless with an address": (
        values(service={"headless": True, "type": "LoadBalancer"}), [], "",
        r"service\.headless is true with service\.type LoadBalancer",
    ),
    "the chart's own variable": (
        values(secrets={"MODEL_SIDECAR_STORE_URL": GIVEN}), [], "",
        r"secrets\.MODEL_SIDECAR_STORE_URL is the chart's own name",
    ),
    "a variable that nobody gives": (
        values(), [put("config.alerts.channels", [{"kind": "slack", "url": "${SLACK}"}])], "",
        r"names the variable SLACK.*container monitor.*`SLACK: \{name",
    ),
    "a URL with a password": (
        values(),
        [put("config.alerts.channels", [{"kind": "alertmanager", "url": "http://a:b@am"}])],
        "",
        r"config\.alerts\.channels\[0\]\.url is a URL with a password",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_said_why(name: str):
    tree, changes, kubernetes, message = REFUSED[name]
    tree = copy.deepcopy(tree)
    for change in changes:
        change(tree)
    with pytest.raises(helm.HelmError) as refused:
        helm.render(tree, kubernetes=kubernetes or helm.KUBERNETES[-1])
    said = [line for line in str(refused.value).splitlines() if line.startswith("  - ")]
    assert len(said) == 1, refused.value
    assert re.search(message, said[0]), refused.value


def test_everything_is_said_at_once():
    tree = values(terminationGracePeriodSeconds=5, replicas=2)
    for change in (previous(), put("config.gateway.hooks", None), put("tls.clientCa", "ca.crt")):
        change(tree)
    with pytest.raises(helm.HelmError) as refused:
        helm.render(tree)
    assert str(refused.value).count("\n  - ") == 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replicas", 2),
        ("config.models.0.rollback.action", ACTION),
    ],
)
def test_with_a_shared_store_it_is_taken(path: str, value: Any):
    tree = values(store={"postgresql": {"existingSecret": "s"}})
    for change in (previous(), put(path, value)):
        change(tree)
    assert helm.the(helm.objects(helm.render(tree)), "Deployment")


def test_several_that_only_serve_need_no_store():
    assert helm.the(helm.objects(helm.render(values(replicas=3))), "Deployment")


# --- secrets: every one that the configuration's schema knows -------------------------------------

#: Where in a configuration each of them stands: (group, key) → (path, what must stand around it).
SECRETS: dict[tuple[str, str], tuple[str, Any]] = {
    ("AdminConfig", "token"): ("config.gateway.admin", {"token": "X"}),
    ("StoreConfig", "url"): ("config.monitor.store", {"url": "X"}),
    ("TelemetryConfig", "headers"): ("config.telemetry.headers", {"a": "X"}),
    ("TracesConfig", "headers"): ("config.telemetry.traces.headers", {"a": "X"}),
    ("MetricsConfig", "headers"): ("config.telemetry.metrics.headers", {"a": "X"}),
    ("LogsConfig", "headers"): ("config.telemetry.logs.headers", {"a": "X"}),
    ("WebhookConfig", "headers"): (
        "config.models.0.rollback.action",
        {"kind": "webhook", "url": "https://a.example", "headers": {"a": "X"}},
    ),
    ("SlackConfig", "url"): ("config.alerts.channels", [{"kind": "slack", "url": "X"}]),
    ("AppriseConfig", "url"): ("config.alerts.channels", [{"kind": "apprise", "url": "X"}]),
    ("PagerDutyConfig", "routing_key"): (
        "config.alerts.channels", [{"kind": "pagerduty", "routing_key": "X"}],
    ),
    ("AlertmanagerConfig", "headers"): (
        "config.alerts.channels",
        [{"kind": "alertmanager", "url": "http://am:9093", "headers": {"a": "X"}}],
    ),
    ("CloudEventsConfig", "headers"): (
        "config.alerts.channels",
        [{"kind": "cloudevents", "url": "http://ce:80", "headers": {"a": "X"}}],
    ),
    ("EmailConfig", "password"): (
        "config.alerts.channels",
        [{"kind": "email", "host": "m", "user": "u", "password": "X", "sender": "a@b",
          "to": ["c@d"]}],
    ),
}  # fmt: skip


def with_secret(around: Any, secret: str) -> Any:
    """``around`` with the secret in the place of X."""
    if isinstance(around, dict):
        return {key: with_secret(value, secret) for key, value in around.items()}
    if isinstance(around, list):
        return [with_secret(value, secret) for value in around]
    return secret if around == "X" else around


def secrets_of_the_schema() -> set[tuple[str, str]]:
    def is_secret(node: Any) -> bool:
        if isinstance(node, dict):
            return bool(node.get("writeOnly")) or any(is_secret(item) for item in node.values())
        return isinstance(node, list) and any(is_secret(item) for item in node)

    return {
        (group, key)
        for group, node in json_schema()["$defs"].items()
        for key, value in node.get("properties", {}).items()
        if is_secret(value)
    }


def test_every_secret_is_known_here():
    assert set(SECRETS) == secrets_of_the_schema()


@pytest.mark.parametrize("secret", SECRETS, ids=".".join)
def test_a_secret_is_not_written_down(secret: tuple[str, str]):
    path, around = SECRETS[secret]
    tree = values(secrets={"A_NAME": GIVEN})
    put(path, with_secret(around, "${A_NAME}"))(tree)
    assert "${A_NAME}" in helm.render(tree)
    put(path, with_secret(around, "hunter2"))(tree)
    with pytest.raises(helm.HelmError, match=r"holds the secret itself.*under secrets"):
        helm.render(tree)
