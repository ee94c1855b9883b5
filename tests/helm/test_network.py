"""The NetworkPolicy: what the configuration serves and calls, on its ports, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support import helm

Object = dict[str, Any]
FULL = helm.CI / "network-policy-values.yaml"


def base() -> Object:
    """Values of a pod that serves one model, and calls nobody."""
    runtime = {"kind": "onnxruntime", "path": "/models/digits-2.onnx"}
    variants = [{"name": "onnx", "version": "2", "roles": ["serving"], "runtime": runtime}]
    return {
        "models": {"source": "pvc", "pvc": {"claimName": "models"}},
        "config": {"models": [{"name": "digits", "variants": variants}]},
        "networkPolicy": {"enabled": True},
    }


def policy(objects: list[Object]) -> Object:
    spec: Object = helm.the(objects, "NetworkPolicy")["spec"]
    return spec


def rendered(**changes: Any) -> Object:
    return policy(helm.objects(helm.render({**base(), **changes})))


def by_port(rules: list[Object], peers: str) -> dict[int, Any]:
    """Port → who; ``None``: anybody."""
    return {port["port"]: rule.get(peers) for rule in rules for port in rule["ports"]}


def space(name: str) -> list[Object]:
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}]


def test_it_is_off_unless_asked_for():
    assert helm.of_kind(helm.ci_objects(helm.CI / "tls-values.yaml"), "NetworkPolicy") == []


def test_it_is_about_the_pods_of_this_release():
    objects = helm.ci_objects(FULL)
    labels = helm.pod(objects)["metadata"]["labels"]
    assert policy(objects)["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy(objects)["policyTypes"] == ["Ingress", "Egress"]


def test_in_come_those_who_are_named_each_to_its_ports():
    found = by_port(policy(helm.ci_objects(FULL))["ingress"], "from")
    nodes = [{"ipBlock": {"cidr": "10.0.0.0/16"}}]
    assert found == {
        9000: space("shop"), 8080: space("shop"),
        9004: space("argo-rollouts"),
        9464: space("monitoring"),
        9001: nodes, 9005: nodes, 9003: nodes,
    }  # fmt: skip


def test_by_default_clients_are_anybody_and_kubelet_is_let_in_by_its_node():
    found = by_port(rendered()["ingress"], "from")
    assert found == {9000: None, 8080: None, 9464: space("monitoring")}


def test_what_does_not_listen_is_in_no_rule():
    values = base()
    values["config"]["gateway"] = {"http": None}
    found = by_port(
        rendered(config=values["config"], metrics={"enabled": False})["ingress"], "from"
    )
    assert found == {9000: None}


def test_out_go_calls_that_the_configuration_names():
    spec = policy(helm.ci_objects(FULL))
    found = by_port(spec["egress"], "to")
    assert found == {
        53: space("kube-system"),
        5432: [{"podSelector": {"matchLabels": {"app": "postgresql"}}}],
        4317: space("monitoring"),
        9093: None,
        # The API server's, of an action; the chat's URL is a secret, so anybody's 443 as well.
        443: [{"ipBlock": {"cidr": "10.0.0.1/32"}}], 6443: [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
        8001: None, 8101: None,
    }  # fmt: skip
    assert {"protocol": "UDP", "port": 53} in spec["egress"][0]["ports"]
    alerts = [{"protocol": "TCP", "port": 9093}, {"protocol": "TCP", "port": 443}]
    assert {"ports": alerts} in spec["egress"]


def test_a_pod_that_calls_nobody_may_only_ask_for_names():
    assert by_port(rendered()["egress"], "to") == {53: None}


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("triton.shop:8001", 8001),
        ("dns:///triton.shop:8001", 8001),
        ("[fd00::1]:8001", 8001),
        ("127.0.0.1:8001", None),
        ("localhost:8001", None),
        ("[::1]:8001", None),
        ("unix:/run/triton.sock", None),
    ],
)
def test_upstreams_outside_of_the_pod(address, port):
    values = base()
    runtime = {"kind": "remote", "address": address}
    values["config"]["models"][0]["variants"][0]["runtime"] = runtime
    found = by_port(rendered(config=values["config"], model={"image": "triton:1"})["egress"], "to")
    assert set(found) - {53} == ({port} if port else set())


@pytest.mark.parametrize(
    ("telemetry", "ports"),
    [
        ({"endpoint": "http://collector:4317"}, {4317}),
        ({"endpoint": "https://otlp.example.org"}, {443}),
        ({"exporter": "otlp-http", "endpoint": "http://otlp.example.org"}, {80}),
        ({"endpoint": "http://localhost:4317"}, set()),
        ({"traces": {"exporter": "otlp-http", "endpoint": "http://tempo:4318/v1/traces"},
          "logs": {"exporter": "otlp-http", "endpoint": "http://loki:3100/otlp/v1/logs"}},
         {4318, 3100}),
    ],
)  # fmt: skip
def test_where_telemetry_goes(telemetry, ports):
    config = {**base()["config"], "telemetry": telemetry}
    assert set(by_port(rendered(config=config)["egress"], "to")) - {53} == ports


def test_ports_may_be_said_and_the_rest_added():
    more = {"ports": [{"protocol": "TCP", "port": 9999}]}
    spec = rendered(networkPolicy={
        "enabled": True,
        "ingress": {"extra": [more], "prometheus": []},
        "egress": {"telemetry": {"ports": [4317]}, "extra": [more]},
    })  # fmt: skip
    assert by_port(spec["ingress"], "from") == {9000: None, 8080: None, 9999: None}
    assert by_port(spec["egress"], "to") == {53: None, 4317: None, 9999: None}


def test_only_what_comes_in_may_be_bounded():
    spec = rendered(networkPolicy={"enabled": True, "egress": {"enabled": False}})
    assert spec["policyTypes"] == ["Ingress"]
    assert "egress" not in spec


def test_whoever_fetches_the_models_may():
    values = yaml.safe_load((helm.CI / "models-init-values.yaml").read_text(encoding="utf-8"))
    found = policy(helm.objects(helm.render({**values, "networkPolicy": {"enabled": True}})))
    assert 443 in by_port(found["egress"], "to")
