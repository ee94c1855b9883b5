"""The chart as an archive: what is in it, and that it renders the same as the folder."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml

from tests.support import chart_examples, helm
from tests.support.chart_values import CHART

#: Everything that a release needs. What only developing it needs stays out.
FILES = {"Chart.yaml", "values.yaml", "values.schema.json", "README.md", ".helmignore"}
FOLDERS = {"templates", "dashboards", "rules"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chart_examples.package(CHART, tmp_path_factory.mktemp("package"))


def names(archive: Path) -> set[str]:
    with tarfile.open(archive) as opened:
        assert all(member.isfile() or member.isdir() for member in opened)
        found = {member.name for member in opened if member.isfile()}
    assert all(name.startswith("model-sidecar/") for name in found)
    return {name.removeprefix("model-sidecar/") for name in found}


def test_it_is_called_by_its_version(archive: Path):
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert archive.name == f"model-sidecar-{about['version']}.tgz"


def test_it_holds_what_a_release_needs_and_nothing_else(archive: Path):
    wanted = {
        path.relative_to(CHART).as_posix()
        for path in CHART.rglob("*")
        if path.is_file()
        and (path.relative_to(CHART).parts[0] in FOLDERS or path.relative_to(CHART).name in FILES)
        and path.relative_to(CHART).parts[0] not in {"ci", "examples", "charts"}
    }
    assert names(archive) == wanted
    assert wanted >= FILES


def test_it_fits_into_a_release(archive: Path):
    """Helm keeps each release, the chart within it, in a Secret, which holds 1 MiB at most."""
    assert archive.stat().st_size < 500_000


@pytest.mark.parametrize("values", helm.ci_files(), ids=helm.case_name)
def test_it_renders_what_the_folder_renders(values: Path, archive: Path):
    version = helm.KUBERNETES[-1]
    assert helm.render(values, kubernetes=version, chart=archive) == helm.ci_text(values, version)
