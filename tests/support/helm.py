"""The real Helm, without a network: charts linted and rendered, and what they render, read.

Each `ci/NAME-values.yaml` is one feature. A first line `# kubernetes: >=1.31` says which clusters
it is for; for the others the chart refuses.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kubernetes_validate import utils
from packaging.specifiers import SpecifierSet

from sidecar.config import SidecarConfig, parse
from tests.support.chart_values import CHART

CI = CHART / "ci"
RELEASE = "demo"
NAMESPACE = "models"
#: The oldest that the chart is for, the first with native sidecars, the newest that is known.
KUBERNETES = ("1.28", "1.29", utils.major_minor(kubernetes_validate.latest_version()))

_CLUSTERS = re.compile(r"^# kubernetes: *(\S+)")

Object = dict[str, Any]


class HelmError(Exception):
    """Helm refused; its text is what a user reads."""


def ci_files() -> list[Path]:
    """Every feature's values."""
    return sorted(CI.glob("*-values.yaml"))


def is_for(values: Path, kubernetes: str) -> bool:
    """Whether these values are for a cluster of this version."""
    found = _CLUSTERS.match(values.read_text(encoding="utf-8"))
    return found is None or SpecifierSet(found[1]).contains(kubernetes)


def run(*arguments: str | Path, folder: Path | None = None) -> str:
    """Run Helm and return what it prints.

    Raises:
        HelmError: it failed; with what it printed.
    """
    homes = dict.fromkeys(("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"), _home())
    environ = {**os.environ, **homes, "HELM_NO_PLUGINS": "1", "KUBECONFIG": os.devnull}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("helm")), *map(str, arguments)],
        env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def render(
    values: Path | dict[str, Any] | None = None,
    *,
    kubernetes: str = KUBERNETES[-1],
    chart: Path = CHART,
    settings: tuple[str, ...] = (),
    release: str = RELEASE,
    apis: tuple[str, ...] = (),
) -> str:
    """What `helm install` would send, as text.

    Args:
        values: a file, or the values themselves.
        kubernetes: the cluster's version.
        chart: its folder.
        settings: each as `--set` takes it.
        release: its name; the namespace is ``NAMESPACE``.
        apis: as `--api-versions` takes them.

    Raises:
        HelmError: the chart refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(values, dict):
            path = Path(folder) / "values.yaml"
            path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
            values = path
        return run(
            "template", release, chart, "--namespace", NAMESPACE, "--kube-version", kubernetes,
            *(() if values is None else ("--values", values)),
            *(part for setting in settings for part in ("--set", setting)),
            *(part for api in apis for part in ("--api-versions", api)),
        )  # fmt: skip


def notes(values: Path | dict[str, Any], *, kubernetes: str = KUBERNETES[-1]) -> str:
    """NOTES.txt as `helm install` would show it; Helm itself shows it only beside a cluster."""
    with tempfile.TemporaryDirectory() as folder:
        chart = shutil.copytree(CHART, Path(folder) / "chart")
        (chart / "templates" / "NOTES.txt").rename(chart / "notes.tpl")
        (chart / "templates" / "shown.yaml").write_text(
            'kind: Notes\ntext: {{ tpl (.Files.Get "notes.tpl") . | toJson }}\n', encoding="utf-8"
        )
        found = objects(render(values, kubernetes=kubernetes, chart=chart))
    return str(the(found, "Notes")["text"])


def objects(text: str) -> list[Object]:
    """The objects of a rendered text."""
    return [item for item in yaml.safe_load_all(text) if item]


@cache
def ci_text(values: Path, kubernetes: str) -> str:
    """One `ci/` file rendered for one version; Helm is asked once."""
    return render(values, kubernetes=kubernetes)


def ci_objects(values: Path, kubernetes: str = KUBERNETES[-1]) -> list[Object]:
    """Its objects, anew each time."""
    return objects(ci_text(values, kubernetes))


def ci_cases() -> list[tuple[Path, str]]:
    """Every file with every version that it is for."""
    return [(path, version) for path in ci_files() for version in KUBERNETES
            if is_for(path, version)]  # fmt: skip


def case_name(value: Any) -> str:
    """For pytest's `ids`."""
    return value.name.removesuffix("-values.yaml") if isinstance(value, Path) else str(value)


def of_kind(found: list[Object], kind: str) -> list[Object]:
    """The objects of one kind."""
    return [item for item in found if item["kind"] == kind]


def the(found: list[Object], kind: str) -> Object:
    """The only object of a kind."""
    (item,) = of_kind(found, kind)
    return item


def pod(found: list[Object]) -> Object:
    """The Deployment's pod: `metadata` and `spec`."""
    template: Object = the(found, "Deployment")["spec"]["template"]
    return template


def containers(found: list[Object]) -> dict[str, Object]:
    """Every container of the pod by its name, init containers first."""
    spec = pod(found)["spec"]
    return {item["name"]: item for item in [*spec.get("initContainers", []), *spec["containers"]]}


def config_text(found: list[Object]) -> str:
    """The rendered configuration; only where the chart makes the ConfigMap."""
    mounted = {
        volume["configMap"]["name"]
        for volume in pod(found)["spec"]["volumes"]
        if volume["name"] == "sidecar-config"
    }
    (text,) = [
        next(iter(item["data"].values()))
        for item in of_kind(found, "ConfigMap")
        if item["metadata"]["name"] in mounted
    ]
    return str(text)


def config(found: list[Object]) -> SidecarConfig:
    """The rendered configuration as the sidecar takes it. Its variables must be set."""
    return parse(yaml.safe_load(config_text(found)), base_dir=Path("/etc/model-sidecar"))


def variables(found: list[Object]) -> dict[str, str]:
    """Something for each secret that the pod's containers get as a variable."""
    references = [
        variable
        for container in containers(found).values()
        for variable in container.get("env", [])
        if "secretKeyRef" in variable.get("valueFrom", {})
    ]
    url = "postgresql://sidecar:secret@database:5432/evidence"
    return {
        item["name"]: url if item["name"] == "MODEL_SIDECAR_STORE_URL" else "https://a-secret"
        for item in references
    }


def validate(item: Object, kubernetes: str) -> None:
    """Check an object against Kubernetes' own schema.

    Raises:
        kubernetes_validate.ValidationError: it is wrong, or has a field that is not known.
    """
    kubernetes_validate.validate(item, kubernetes, strict=True)


def is_custom(item: Object) -> bool:
    """Whether the object is of a kind that Kubernetes itself does not know."""
    group = item["apiVersion"].rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


@cache
def _home() -> str:
    return tempfile.mkdtemp(prefix="helm-home-")
