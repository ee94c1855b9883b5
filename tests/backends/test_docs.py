"""What the documents say of backends is so: configurations, queries, names, pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from exporters.instruments import INSTRUMENTS
from sidecar.config import parse
from tests.backends.processes import ROOT
from tests.support import promql

DOCS = ROOT / "docs"
PAGE = (DOCS / "backends.md").read_text(encoding="utf-8")
PICTURE = re.compile(r"!\[[^\]]+\]\((images/[^)]+)\)")
PICTURE_BYTES_MAX = 200_000
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
OURS = [block for block in BLOCKS if block.startswith("telemetry:")]
#: Of the package, and of events, not of a metric.
#: The last is what a metrics adapter calls what it makes (docs/kubernetes.md).
NO_METRICS = {"model_sidecar", "model_sidecar_", "model_sidecar_queue_seconds"}
NO_NAMES = {"model_sidecar.alert.firing"}


def pages() -> list[Path]:
    return sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_configuration_is_yaml(block):
    assert yaml.safe_load(block)


@pytest.mark.parametrize("block", OURS, ids=range(len(OURS)))
def test_our_configurations_are_taken(block, monkeypatch):
    monkeypatch.setenv("COLLECTOR_TOKEN", "secret")
    runtime = {"kind": "remote", "address": "127.0.0.1:1"}
    variants = [{"version": "1", "name": "v", "roles": ["serving"], "runtime": runtime}]
    tree = {"models": [{"name": "m", "variants": variants}], **yaml.safe_load(block)}
    told = parse(tree).telemetry
    assert told.exporter or told.metrics.exporter


def test_every_metric_that_is_named_is_told():
    series = promql.series()
    families = {one.prometheus_name for one in INSTRUMENTS}
    names = {one.name for one in INSTRUMENTS}
    wrong = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        wrong += [
            f"{page.name}: {name}"
            for name in re.findall(r"\b(?:model_sidecar|rpc_server)_\w+", text)
            if name not in series and name not in families and name not in NO_METRICS
        ]
        wrong += [
            f"{page.name}: {name}"
            for name in re.findall(r"\b(?:model_sidecar|rpc\.server)\.[a-z_.]+[a-z_]", text)
            if name not in names and name not in NO_NAMES
        ]
    assert wrong == []


def test_queries_name_labels_that_are_there():
    queries = re.findall(r"^```\n(histogram_quantile.*)\n```", PAGE, re.MULTILINE)
    assert queries
    for query in queries:
        assert list(promql.undeclared(query)) == []


def test_pictures_are_there_and_small():
    shown = {DOCS / name for page in pages() for name in PICTURE.findall(page.read_text("utf-8"))}
    kept = set((DOCS / "images").iterdir())
    assert shown == kept
    for path in kept:
        assert path.stat().st_size < PICTURE_BYTES_MAX, path.name
        assert path.read_bytes().startswith(b"\x89PNG\r\n"), path.name
