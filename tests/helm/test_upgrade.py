"""`helm upgrade` from any earlier version keeps names and selectors (support/chart_names.py)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import chart_names, helm
from tests.support.chart_names import RELEASES

FILES = sorted(RELEASES.glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_names_and_selectors_stay(path: Path):
    assert chart_names.lost(load(path)) == []


def test_this_version_is_kept_for_later_ones():
    path = RELEASES / f"{chart_names.version()}.json"
    assert path in FILES, "run: python -m tests.support.chart_names"
    kept = load(path)
    assert set(kept) == set(chart_names.INSTALLED)
    now = {name: set(installed["kept"]) for name, installed in chart_names.rendered().items()}
    before = {name: set(installed["kept"]) for name, installed in kept.items()}
    assert now == before, "run: python -m tests.support.chart_names"


@pytest.mark.parametrize(
    ("template", "old", "new", "message"),
    [
        ("_names.tpl", "app.kubernetes.io/instance: {{ .Release.Name }}",
         "app.kubernetes.io/instance: {{ .Release.Name }}-1", "Deployment models/.*spec.selector"),
        ("_names.tpl", 'printf "%s-%s" .Release.Name $name', 'printf "%s-%s-x" .Release.Name $name',
         "Deployment models/demo-model-sidecar is gone"),
        ("pvc.yaml", '"suffix" "-state"', '"suffix" "-data"', "PersistentVolumeClaim .* is gone"),
    ],
    ids=["selector", "name", "claim"],
)  # fmt: skip
def test_a_change_of_them_is_noticed(
    tmp_path: Path, template: str, old: str, new: str, message: str
):
    chart = shutil.copytree(helm.CHART, tmp_path / "chart")
    path = chart / "templates" / template
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    lost = chart_names.lost(load(FILES[-1]), chart)
    assert any(re.search(message, line) for line in lost), lost
