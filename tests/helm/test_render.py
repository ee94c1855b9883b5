"""Every `ci/` file: linted, rendered; Kubernetes and the sidecar take what is rendered."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import pytest

from tests.support import helm

CASES = helm.ci_cases()
DEPLOYED = [
    path
    for path in helm.ci_files()
    if not {"pieces", "existing-configmap"} & {helm.case_name(path)}
]


@pytest.mark.parametrize("kubernetes", helm.KUBERNETES)
@pytest.mark.parametrize("values", helm.ci_files(), ids=helm.case_name)
def test_helm_finds_nothing_to_complain_about(values: Path, kubernetes: str):
    arguments = ("lint", "--strict", helm.CHART, "--kube-version", kubernetes, "--values", values)
    assert "1 chart(s) linted, 0 chart(s) failed" in helm.run(*arguments)


@pytest.mark.parametrize(("values", "kubernetes"), CASES, ids=helm.case_name)
def test_every_object_is_one_that_kubernetes_takes(values: Path, kubernetes: str):
    found = helm.ci_objects(values, kubernetes)
    assert found
    for item in found:
        assert item["metadata"]["name"], item
        assert item["metadata"]["namespace"], item
        if not helm.is_custom(item):
            helm.validate(item, kubernetes)
    names = [(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])
             for item in found]  # fmt: skip
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("values", "kubernetes"),
    [(path, version) for path in helm.ci_files() for version in helm.KUBERNETES
     if not helm.is_for(path, version)],
    ids=helm.case_name,
)  # fmt: skip
def test_a_cluster_that_is_too_old_is_refused_with_its_version(values: Path, kubernetes: str):
    with pytest.raises(helm.HelmError, match=rf"need.* Kubernetes 1\.\d+.*not v{kubernetes}"):
        helm.ci_text(values, kubernetes)


def test_the_judge_of_objects_can_say_no():
    found = helm.ci_objects(helm.CI / "minimal-values.yaml")
    deployment = helm.the(found, "Deployment")
    deployment["spec"]["template"]["spec"]["containerz"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="containerz"):
        helm.validate(deployment, helm.KUBERNETES[-1])


@pytest.mark.parametrize("values", DEPLOYED, ids=helm.case_name)
def test_the_sidecar_takes_the_configuration(values: Path, monkeypatch: pytest.MonkeyPatch):
    found = helm.ci_objects(values)
    for name, value in helm.variables(found).items():
        monkeypatch.setenv(name, value)
    config = helm.config(found)
    containers = helm.containers(found)
    gateway = {port["name"]: port["containerPort"] for port in containers["gateway"]["ports"]}
    assert config.gateway.grpc.address.endswith(":9000")
    assert gateway["grpc"] == 9000
    assert (config.gateway.http is not None) == ("http" in gateway)
    if config.gateway.http is not None:
        assert config.gateway.http.address.endswith(f":{gateway['http']}")
    assert config.gateway.health == f"0.0.0.0:{gateway['health']}" == "0.0.0.0:9001"
    assert config.gateway.hooks == f"0.0.0.0:{gateway['hooks']}" == "0.0.0.0:9003"
    assert config.monitor.grpc == "127.0.0.1:9002"
    assert str(config.monitor.state_dir) == "/var/lib/model-sidecar"
    assert str(config.monitor.socket) == "/run/model-sidecar/tap.sock"
    assert str(config.monitor.pages) == "/run/model-sidecar/pages"
    assert config.monitored == ("monitor" in containers)
    if config.monitored:
        assert config.monitor.health == "0.0.0.0:9005"
        assert config.monitor.http in {None, "0.0.0.0:9004"}
        monitor = {port["name"]: port["containerPort"] for port in containers["monitor"]["ports"]}
        assert (config.monitor.http is not None) == ("monitor-http" in monitor)
        assert ("metrics" in monitor) == (config.telemetry.prometheus is not None)
    assert (
        config.gateway.drain.timeout_s + 8
        < helm.pod(found)["spec"]["terminationGracePeriodSeconds"]
    )


@pytest.mark.parametrize("values", DEPLOYED, ids=helm.case_name)
def test_whatever_is_mounted_is_a_volume_and_every_volume_is_mounted(values: Path):
    found = helm.ci_objects(values)
    volumes = [volume["name"] for volume in helm.pod(found)["spec"]["volumes"]]
    mounted = {
        mount["name"]
        for container in helm.containers(found).values()
        for mount in container.get("volumeMounts", [])
    }
    assert sorted(volumes) == sorted(mounted)
    for container in helm.containers(found).values():
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        assert len(paths) == len(set(paths)), container["name"]
        names = [variable["name"] for variable in container.get("env", [])]
        assert len(names) == len(set(names)), container["name"]
    ports = [
        port["containerPort"]
        for container in helm.containers(found).values()
        for port in container.get("ports", [])
    ]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("values", DEPLOYED, ids=helm.case_name)
def test_the_service_shows_nothing_that_is_not_for_clients(values: Path):
    found = helm.ci_objects(values)
    for service in helm.of_kind(found, "Service"):
        targets = {port["targetPort"] for port in service["spec"]["ports"]}
        assert not targets & {9001, 9002, 9003, 9005, 9006}, service["metadata"]["name"]
        assert all(isinstance(target, int) for target in targets)
