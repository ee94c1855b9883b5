"""What the chart's examples render to: `python -m tests.support.chart_examples` writes it anew.

An example is a folder of values for the chart, or a chart of its own that takes ours as a
dependency. Each `values.yaml` gives `rendered.yaml`; each `values-NAME.yaml` beside it, on top of
it, `rendered-NAME.yaml`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.support import helm
from tests.support.chart_values import CHART

EXAMPLES = CHART / "examples"
#: The name of the release and of the cluster's version that the examples are rendered with.
RELEASE = "digits"
KUBERNETES = helm.KUBERNETES[-1]


def values_files() -> list[Path]:
    """Every example's values, variations included."""
    return sorted(EXAMPLES.glob("*/values*.yaml"))


def rendered(values: Path) -> Path:
    """Where the objects of these values are kept."""
    return values.with_name(values.name.replace("values", "rendered", 1))


def name(values: Path) -> str:
    """A short name of these values: ``kserve/values-knative``."""
    return f"{values.parent.name}/{values.stem}"


def package(chart: Path, into: Path) -> Path:
    """Package a chart; return the archive."""
    helm.run("package", chart, "--destination", into)
    (archive,) = into.glob(f"{chart.name}-*.tgz")
    return archive


def render(values: Path) -> str:
    """What `helm template` makes of an example's values."""
    with tempfile.TemporaryDirectory() as folder:
        chart, given = CHART, [values]
        if (values.parent / "Chart.yaml").exists():
            # A copy: `helm dependency build` would put our archive into the example's folder.
            chart = Path(folder, values.parent.name)
            shutil.copytree(values.parent, chart, ignore=shutil.ignore_patterns("charts", "*.lock"))
            package(CHART, chart / "charts")
            given = [] if values.name == "values.yaml" else [values]
        return helm.run(
            "template", RELEASE, chart, "--namespace", helm.NAMESPACE,
            "--kube-version", KUBERNETES, *(part for one in given for part in ("--values", one)),
        )  # fmt: skip


if __name__ == "__main__":
    for one in values_files():
        rendered(one).write_text(render(one), encoding="utf-8")
        print(f"{name(one)}: {len(helm.objects(render(one)))} objects")
