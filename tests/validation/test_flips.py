"""`sidecar validate --flip-budget`: how many answers a new version may change, for the monitor."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
import yaml

from sidecar.cli import run
from sidecar.config import load
from sidecar.monitor.flip_budgets import FILE, PAIRS_MAX, FlipBudget, FlipBudgets
from sidecar.monitor.mirror_protocol import CopyInfo
from sidecar.monitor.plan import make_plan
from sidecar.monitor.policies import Precisions
from sidecar.runtimes import build
from tests.validation import variants
from validators.statistics import clopper_pearson

ROWS = 400


@pytest.fixture
def folder(tmp_path):
    """Version 1, version 2 with other weights, and rows."""
    variants.network(tmp_path, "one.onnx", outputs={"y": "y"})
    variants.network(tmp_path, "two.onnx", outputs={"y": "y"}, noise=0.05)
    variants.network(tmp_path, "lacks.onnx", outputs={"p": "p"})
    np.savez(tmp_path / "rows.npz", x=variants.rows(ROWS))
    return tmp_path


def config(folder, new="two.onnx", *, roles=(["previous"], ["serving"]), **more):
    listed = [
        {
            "name": "onnx", "version": str(number), "roles": of,
            "runtime": {"kind": "onnxruntime", "path": path},
        }
        for number, (of, path) in enumerate(zip(roles, ("one.onnx", new), strict=True), 1)
    ]  # fmt: skip
    validation = {"outputs": {"y": {"kind": "class_scores"}}}
    tree = {"models": [{"name": "net", "variants": listed, "validation": validation}], **more}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def validate(path, *more, rows=True):
    given = ("--input", str(path.parent / "rows.npz")) if rows else ()
    return run(["validate", "--in-process", str(path), *given, *more])


def identity_of(path):
    """The pair as the monitor plans it."""
    [model] = load(path).models
    copies = {
        f"net:{variant.key}": CopyInfo(f"net:{variant.key}", build(variant).signature)
        for variant in model.variants
    }
    [pair] = make_plan(model, copies, Precisions()).pairs
    assert not pair.blocked
    return pair.identity


def test_the_measured_bound_is_recorded_for_the_pair_that_the_monitor_watches(folder, capsys):
    path = config(folder)
    assert validate(path, "--flip-budget", "measured") == 0
    said = capsys.readouterr()
    x = variants.rows(ROWS)
    [one, two] = (build(variant) for variant in load(path).models[0].variants)
    classes = [runtime.infer({"x": x})[0].argmax(axis=1) for runtime in (one, two)]
    flips = int((classes[0] != classes[1]).sum())
    assert 0 < flips < ROWS / 2
    budgets = FlipBudgets(folder / "sidecar-state")
    bound = clopper_pearson(flips, ROWS, 0.05)[1]
    assert budgets.budget(identity_of(path)) == pytest.approx(bound)
    assert f"may change {100 * bound:.3g} % of rows beside net:1/onnx" in said.err
    assert f"measured: {flips} of {ROWS}" in said.err
    assert "net:2/onnx" in said.err
    assert "against 1/onnx  (the previous version)" in said.out


def test_a_replaced_artifact_has_no_budget(folder):
    path = config(folder)
    assert validate(path, "--flip-budget", "measured") == 0
    before = identity_of(path)
    shutil.copy(folder / "one.onnx", folder / "two.onnx")
    budgets = FlipBudgets(folder / "sidecar-state")
    assert budgets.budget(before) is not None
    assert budgets.budget(identity_of(path)) is None


def test_an_operator_may_state_more_and_not_what_is_surely_too_little(folder, capsys):
    path = config(folder, monitor={"state_dir": str(folder / "elsewhere")})
    named = ("--reference", "1/onnx", "--variant", "2/onnx")
    assert validate(path, "--flip-budget", "0.4", *named) == 0
    assert "40 % of rows beside net:1/onnx (stated; measured:" in capsys.readouterr().err
    budgets = FlipBudgets(folder / "elsewhere")
    assert budgets.budget(identity_of(path)) == 0.4
    assert validate(path, "--flip-budget", "0.0001") == 2
    assert "rows already" in capsys.readouterr().err
    assert budgets.budget(identity_of(path)) == 0.4


def test_a_candidate_is_compared_with_the_version_that_serves(folder, capsys):
    path = config(folder, roles=(["serving"], ["candidate"]))
    assert validate(path, "--flip-budget", "measured") == 0
    assert "net:2/onnx may change" in capsys.readouterr().err
    assert FlipBudgets(folder / "sidecar-state").budget(identity_of(path)) is not None


@pytest.mark.parametrize(
    ("changes", "more", "rows", "message"),
    [
        ({}, ("lots",), True, "--flip-budget lots: it is `measured`, or a share between 0 and 1"),
        ({}, ("1.5",), True, "it is `measured`, or a share between 0 and 1"),
        ({}, ("measured",), False, "needs rows as they are in production: give them with --input"),
        ({"roles": (["serving"], ["serving"])}, ("measured",), True, "role previous or candidate"),
        ({"new": "lacks.onnx"}, ("measured",), True, "2/onnx beside 1/onnx cannot be compared"),
    ],
)
def test_what_cannot_be_measured_is_not_recorded(folder, capsys, changes, more, rows, message):
    path = config(folder, **changes)
    assert validate(path, "--flip-budget", *more, rows=rows) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "sidecar-state" / FILE).exists()


def budget(identity, share=0.1):
    return FlipBudget(
        identity, "m:2/a", "m:1/a", share, 1, 100, share, 0.05, False, "2026-01-01T00:00:00+00:00"
    )


def test_what_another_process_writes_is_seen(tmp_path):
    reading = FlipBudgets(tmp_path)
    assert reading.budget("a") is None
    writing = FlipBudgets(tmp_path)
    writing.record([budget("a"), budget("b", 0.2)])
    assert (reading.budget("a"), reading.budget("b")) == (0.1, 0.2)
    writing.record([budget("a", 0.3)])
    assert (reading.budget("a"), reading.budget("b")) == (0.3, 0.2)
    (tmp_path / FILE).unlink()
    assert reading.budget("a") is None
    assert list(tmp_path.iterdir()) == []


def test_budgets_are_bounded_and_the_oldest_go(tmp_path):
    budgets = FlipBudgets(tmp_path)
    budgets.record([budget(str(n)) for n in range(PAIRS_MAX)])
    budgets.record([budget("0"), budget("new")])
    assert budgets.budget("1") is None
    assert budgets.budget("0") == budgets.budget("new") == budgets.budget("2") == 0.1


@pytest.mark.parametrize(
    "text", ["", "[", "[]", '{"format": 2, "pairs": {}}', '{"format": 1, "pairs": 3}', "\xff"]
)
def test_a_file_that_cannot_be_read_gives_no_budget_and_is_said_once(tmp_path, caplog, text):
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    budgets = FlipBudgets(tmp_path)
    with caplog.at_level(logging.ERROR, "sidecar.monitor.flip_budgets"):
        assert [budgets.budget("a") for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    budgets.record([budget("a")])
    assert budgets.budget("a") == 0.1


@pytest.mark.parametrize("share", [0, 1, -1, 2.0, True, None, "0.1", [], float("nan")])
def test_shares_that_are_none_are_left_out(tmp_path, share):
    pairs = {"bad": {"budget": share}, "good": {"budget": 0.5}, "odd": 3}
    (tmp_path / FILE).write_text(json.dumps({"format": 1, "pairs": pairs}))
    budgets = FlipBudgets(tmp_path)
    assert [budgets.budget(name) for name in ("bad", "good", "odd")] == [None, 0.5, None]
