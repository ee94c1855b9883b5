"""The pieces in a pod of another chart's: `charts/customer`, which is also the README's example."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support import helm

CUSTOMER = Path(__file__).with_name("charts") / "customer"


@pytest.fixture(scope="module")
def customer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it with its dependency, which Helm packs from this tree without a network."""
    chart = tmp_path_factory.mktemp("customer") / "customer"
    shutil.copytree(CUSTOMER, chart)
    text = (chart / "Chart.yaml").read_text(encoding="utf-8")
    text, count = re.subn(r"file://\S+", f"file://{helm.CHART}", text)
    assert count == 1
    (chart / "Chart.yaml").write_text(text, encoding="utf-8")
    helm.run("dependency", "update", "--skip-refresh", chart)
    return chart


def test_the_path_of_the_dependency_leads_to_the_chart():
    text = (CUSTOMER / "Chart.yaml").read_text(encoding="utf-8")
    (path,) = re.findall(r"file://(\S+)", text)
    assert (CUSTOMER / path).resolve() == helm.CHART


@pytest.mark.parametrize("kubernetes", helm.KUBERNETES)
def test_the_pieces_fit_into_a_pod_that_has_its_own(customer: Path, kubernetes: str):
    found = helm.objects(helm.render(chart=customer, kubernetes=kubernetes))
    for item in found:
        helm.validate(item, kubernetes)
    spec = helm.pod(found)["spec"]
    order = [[item["name"] for item in spec[key]] for key in ("initContainers", "containers")]
    if kubernetes == "1.28":
        assert order == [["migrate"], ["server", "gateway", "monitor"]]
    else:
        assert order == [["migrate", "gateway", "monitor"], ["server"]]
    mounted = {
        mount["name"]
        for container in helm.containers(found).values()
        for mount in container.get("volumeMounts", [])
    }
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    hook = helm.containers(found)["server"]["lifecycle"]["preStop"]["httpGet"]
    assert (hook["path"], hook["port"]) == ("/drained", 9003)
    assert helm.config(found).models[0].name == "digits"


def test_what_stands_around_the_pod_is_made_and_finds_it(customer: Path):
    found = helm.objects(helm.render(chart=customer))
    kinds = sorted(item["kind"] for item in found)
    assert kinds == ["ConfigMap", "Deployment", "Service", "ServiceAccount"]
    labels = helm.pod(found)["metadata"]["labels"]
    selector = helm.the(found, "Service")["spec"]["selector"]
    assert selector.items() <= labels.items()
    account = helm.the(found, "ServiceAccount")["metadata"]["name"]
    assert helm.pod(found)["spec"]["serviceAccountName"] == account


def test_the_configuration_rolls_that_pod_too(customer: Path):
    def checksum(*settings: str) -> str:
        found = helm.objects(helm.render(chart=customer, settings=settings))
        return str(helm.pod(found)["metadata"]["annotations"]["checksum/config"])

    assert checksum() == checksum("image=example/digits-server:2")
    assert checksum() != checksum("model-sidecar.config.log.level=debug")


def test_models_and_shared_memory_reach_the_containers(customer: Path):
    settings = (
        "model-sidecar.models.source=pvc", "model-sidecar.models.pvc.claimName=m",
        "model-sidecar.sharedMemory.enabled=true",
    )  # fmt: skip
    found = helm.objects(helm.render(chart=customer, settings=settings))
    paths = {mount["mountPath"] for mount in helm.containers(found)["server"]["volumeMounts"]}
    assert paths == {"/var/cache", "/models", "/dev/shm"}


def test_refusals_are_those_of_the_chart(customer: Path):
    settings = ("model-sidecar.config.gateway.drain.timeout_s=5",)
    with pytest.raises(helm.HelmError, match="timeout_s is 5, shorter"):
        helm.render(chart=customer, settings=settings)
