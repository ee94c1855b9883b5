"""The examples of the chart: what they render to, whether it is valid, and what their pages say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml

from sidecar.config import parse
from tests.support import chart_examples, helm
from tests.support.chart_values import CHART

ROOT = Path(__file__).parents[2]
EXAMPLES = chart_examples.values_files()
FOLDERS = sorted({path.parent for path in EXAMPLES})
CRDS = Path(__file__).parent / "crds"
#: Pages whose commands are run, beside the examples' own.
PAGES = [ROOT / "docs" / name for name in ("deploy.md", "deploy-kserve.md", "deploy-triton.md")]


def kept(values: Path) -> list[helm.Object]:
    return helm.objects(chart_examples.rendered(values).read_text(encoding="utf-8"))


@pytest.mark.parametrize("values", EXAMPLES, ids=chart_examples.name)
def test_what_is_kept_is_what_is_rendered(values: Path):
    text = chart_examples.rendered(values).read_text(encoding="utf-8")
    assert text == chart_examples.render(values), "python -m tests.support.chart_examples"


def test_nothing_is_kept_that_no_values_give():
    made = {chart_examples.rendered(path) for path in EXAMPLES}
    assert set(chart_examples.EXAMPLES.glob("*/rendered*.yaml")) == made


@pytest.mark.parametrize("values", EXAMPLES, ids=chart_examples.name)
def test_kubernetes_would_take_it(values: Path):
    for item in kept(values):
        if not helm.is_custom(item):
            helm.validate(item, chart_examples.KUBERNETES)


@pytest.mark.parametrize("values", EXAMPLES, ids=chart_examples.name)
def test_the_sidecar_takes_the_configuration(values: Path, monkeypatch: pytest.MonkeyPatch):
    found = kept(values)
    monkeypatch.setenv("MODEL_SIDECAR_STORE_URL", "postgresql://sidecar:secret@database/evidence")
    monkeypatch.setenv("ALERTMANAGER_AUTH", "Bearer secret")
    (text,) = [
        item["data"]["config.yaml"]
        for item in helm.of_kind(found, "ConfigMap")
        if "config.yaml" in item["data"]
    ]
    config = parse(yaml.safe_load(text), base_dir=Path("/etc/model-sidecar"))
    assert config.models


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_example_says_what_it_is_in_ten_lines(folder: Path):
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    text = [line for line in lines if line.strip() and not line.startswith(("```", "helm "))]
    assert len(text) <= 10
    assert f"helm install {'shop' if folder.name == 'own-chart' else 'digits'} " in "\n".join(lines)


# --- a chart of one's own -------------------------------------------------------------------------


def pod_of(name: str) -> helm.Object:
    return helm.pod(kept(chart_examples.EXAMPLES / name / "values.yaml"))


def test_another_charts_pod_has_the_sidecar_and_waits_for_it():
    spec = pod_of("own-chart")["spec"]
    names = [item["name"] for item in spec["initContainers"]]
    assert names == ["gateway", "monitor"], "native: the cluster has it"
    (model,) = spec["containers"]
    assert model["lifecycle"]["preStop"]["httpGet"] == {
        "path": "/drained", "port": 9003, "scheme": "HTTP",
    }  # fmt: skip
    mounted = {m["name"] for item in spec["initContainers"] for m in item["volumeMounts"]}
    assert mounted <= {volume["name"] for volume in spec["volumes"]}


def test_the_service_of_the_dependency_finds_the_other_charts_pods():
    found = kept(chart_examples.EXAMPLES / "own-chart" / "values.yaml")
    labels = helm.pod(found)["metadata"]["labels"]
    selector = helm.the(found, "Service")["spec"]["selector"]
    assert selector.items() <= labels.items()
    deployment = helm.the(found, "Deployment")
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


# --- KServe ---------------------------------------------------------------------------------------

KSERVE = sorted((chart_examples.EXAMPLES / "kserve").glob("values*.yaml"))


def predictor(values: Path) -> helm.Object:
    spec: helm.Object = helm.the(kept(values), "InferenceService")["spec"]["predictor"]
    return spec


@pytest.mark.parametrize("values", KSERVE, ids=chart_examples.name)
def test_an_inference_service_is_what_kserve_publishes(values: Path):
    schema = json.loads((CRDS / "inferenceservice.json").read_text(encoding="utf-8"))
    jsonschema.validate(helm.the(kept(values), "InferenceService"), schema)


@pytest.mark.parametrize("values", KSERVE, ids=chart_examples.name)
def test_kserve_sends_requests_to_the_gateway(values: Path):
    """KServe's Service takes the ports of the container that is called so, the first as port 80."""
    spec = predictor(values)
    assert spec["model"]["modelFormat"], "exactly one implementation of the predictor"
    names = [item["name"] for item in spec["containers"]]
    assert names == ["transformer-container", "monitor"]
    gateway = spec["containers"][0]
    config = yaml.safe_load(helm.the(kept(values), "ConfigMap")["data"]["config.yaml"])["gateway"]
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    grpc = int(config["grpc"]["address"].rpartition(":")[2])
    http = int(config["http"]["address"].rpartition(":")[2])
    standard = values.name == "values.yaml"
    assert list(ports.items()) == (
        [("http", http), ("grpc", grpc)] if standard else [("h2c", grpc)]
    )
    assert {8080, 9000}.isdisjoint(ports.values()), "Triton's, in KServe's runtime"


def test_knative_refuses_what_is_not_there():
    """Its field masks: no hooks, no grace period; ports and probes of one container only."""
    spec = predictor(chart_examples.EXAMPLES / "kserve" / "values-knative.yaml")
    assert "terminationGracePeriodSeconds" not in spec
    assert "initContainers" not in spec
    assert 0 < spec["timeout"] <= 600
    assert not any("lifecycle" in item for item in [spec["model"], *spec["containers"]])
    serving, *others = spec["containers"]
    assert len(serving["ports"]) == 1
    for item in others:
        assert not {"ports", "readinessProbe", "livenessProbe", "startupProbe"} & set(item)


# --- the commands of the pages --------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """The Helm commands of a page that need no cluster, or have a form that does not."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = ("install", "upgrade", "template", "lint", "package", "dependency", "show")
    return [line for line in lines if re.match(rf"helm ({'|'.join(words)}) ", line)]


def offline(command: str) -> list[str]:
    """The command as it is run here: `helm template` in place of what asks a cluster."""
    _, verb, *rest = shlex.split(command, comments=True)
    if verb not in {"install", "upgrade"}:
        return [verb, *rest]
    alone = {"--install", "--atomic", "--wait", "--create-namespace"}
    arguments = [word for word in rest if word not in alone and not word.startswith("--timeout")]
    return ["template", *arguments, "--kube-version", chart_examples.KUBERNETES]


def is_run(page: Path) -> object:
    return pytest.param(page, id=f"{page.parent.name}-{page.stem}")


@pytest.mark.parametrize(
    "page", [is_run(page) for page in [*PAGES, *(folder / "README.md" for folder in FOLDERS)]]
)
def test_the_helm_commands_of_a_page_work(page: Path, tmp_path: Path):
    found = commands(page)
    assert found
    shutil.copytree(CHART, tmp_path / "helm" / "model-sidecar")
    for command in found:
        done = helm.run(*offline(command), folder=tmp_path)
        assert done or command.startswith("helm dependency"), command
