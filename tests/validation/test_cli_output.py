"""What ``sidecar validate`` prints, and how it ends where its output goes nowhere."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import yaml

from sidecar.cli import run
from sidecar.cli.verdicts import console_for, show
from tests.cli.conftest import sidecar
from tests.e2e.support import until
from tests.support import models
from tests.validation import variants

TENSORS = {"y": {"kind": "tensor"}, "p": {"kind": "tensor"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("networks")
    variants.network(made, "right.onnx")
    variants.network(made, "tenfold.onnx", scale=10)
    variants.network(made, "lacks.onnx", outputs={"y": "y"})
    variants.data(made, labels=models.mlp_expected(variants.rows(400)).argmax(axis=1))
    return made


def written(folder, name, members, **validation):
    path = folder / name
    path.write_text(yaml.safe_dump(variants.tree(members, **validation)))
    return str(path)


def shown(result, columns):
    """The lines as a terminal of so many columns has them, without colors."""
    out = io.StringIO()
    show(console_for(file=out, force_terminal=True, width=columns), result)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()


# --- what is printed ------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_long_names_leave_every_column_readable(folder, columns):
    rows = variants.data(folder, name="recorded-in-production-2026-01-31.week-05.npz")
    members = {"truth": "right.onnx", "tenfold-by-mistake": "tenfold.onnx", "lacks": "lacks.onnx"}
    document = variants.tree(members, outputs=TENSORS)
    result = variants.run(folder, document, inputs=(rows,)).result
    lines = shown(result, columns)
    table = lines[1 : next(at for at, line in enumerate(lines) if line.startswith("batch: "))]
    assert all(len(line) <= columns for line in table)
    heads = re.split(r"  +", table[1].strip())
    assert heads == ["variant", "inputs", "output", "rows", "disagree", "worst", "verdict"]
    text = "\n".join(table)
    assert "sqnr_db" in text
    assert re.search(r"\(>=100\)", text), "the limit stands in one piece"
    assert re.search(r" 400 +400 .* FAIL", text)
    # What is wrong with an output is told once, and not in a narrow column.
    assert "see below" in text
    assert any("'p': the candidate lacks it" in line for line in lines)


def test_batches_count_what_they_changed(folder, capsys):
    path = written(
        folder, "c.yaml", {"truth": "right.onnx", "other": "tenfold.onnx"}, outputs=TENSORS
    )
    assert (
        run(
            [
                "validate",
                "--in-process",
                path,
                "-i",
                str(folder / "rows.npz"),
                "--variant",
                "1/other",
            ]
        )
        == 2
    )
    assert "'labels' is no input of the model" in capsys.readouterr().err
    rows = ["-i", str(folder / "rows.npz"), "--labels", "labels", "--label-output", "y"]
    assert run(["validate", "--in-process", path, *rows]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"rows\.npz +y +400 +400 ", printed)
    assert re.search(r"batch +y +206 +0 .*PASS", printed)
    said = "batch: counted are the rows that only another batch changed; those that disagree in "
    assert said + "rows.npz as well" in printed


def test_the_reference_that_cannot_be_loaded_is_told(folder, capsys):
    (folder / "damaged.onnx").write_bytes((folder / "right.onnx").read_bytes()[:300])
    path = written(folder, "damaged.yaml", {"truth": "damaged.onnx", "other": "right.onnx"})
    assert run(["validate", path]) == 4
    printed = capsys.readouterr().out
    assert "INVALID  1/truth, the reference\n    it cannot be loaded: " in printed


def test_rows_of_the_sample_are_no_part_of_what_was_inferred(folder, capsys):
    document = variants.tree({"truth": "right.onnx", "other": "right.onnx"})
    document["models"][0]["validation"] = {}
    path = folder / "inferred.yaml"
    path.write_text(yaml.safe_dump(document))
    assert run(["validate", "--in-process", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "'p' (FP32 [rows, 10]) is compared as class_scores: its rows add up to 1" in printed


def test_passing_rows_are_not_offered_for_replay(folder, tmp_path, capsys):
    path = written(folder, "right.yaml", {"truth": "right.onnx", "other": "right.onnx"})
    rows = ["-i", str(folder / "rows.npz"), "--labels", "labels"]
    assert run(["validate", "--in-process", path, *rows, "--report", str(tmp_path / "report")]) == 0
    assert "sidecar replay" not in capsys.readouterr().out


def test_axes_in_another_order_are_told_once(folder):
    document = variants.tree({"truth": "right.onnx", "other": "turned.onnx"}, outputs=TENSORS)
    turned = onnx.load(str(folder / "right.onnx"))
    [last] = [node for node in turned.graph.node if "y" in node.output]
    last.op_type = "Transpose"
    turned.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [10, "batch"])
    )
    onnx.save(turned, str(folder / "turned.onnx"))
    result = variants.run(folder, document).result
    output = result.variants[1].groups[1].outputs[0]
    assert output.problems == [
        "the reference has 1 rows, the candidate 10: are the axes in another order? "
        "(and 9 more like it)"
    ]


def test_a_quantity_of_unknown_unit_has_the_range_of_the_first_answers(folder):
    # One row alone would be held to a thousandth of its own size, however small that is.
    document = variants.tree(
        {"truth": "right.onnx", "other": "near.onnx"}, outputs={"y": {"kind": "regression"}}
    )
    variants.network(folder, "near.onnx", noise=1e-5)
    outcome = variants.run(folder, document, batch_size=32)
    policy = outcome.policies["1/other"]["y"]
    assert policy.options["range"] > 0
    assert "is judged in units of 0.1 % of" in policy.inferred
    declared = {"y": {"kind": "regression", "options": {"unit": 0.5}}}
    document = variants.tree({"truth": "right.onnx", "other": "near.onnx"}, outputs=declared)
    assert "range" not in variants.run(folder, document).policies["1/other"]["y"].options


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_reader_that_has_enough_does_not_change_the_exit_code(folder, more):
    path = written(folder, "right.yaml", {"truth": "right.onnx", "other": "right.onnx"})
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "validate", path, *more],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_output_that_cannot_be_written_is_no_verdict(folder, more):
    path = written(folder, "right.yaml", {"truth": "right.onnx", "other": "right.onnx"})
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "sidecar", "validate", path, *more],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr == b"error: No space left on device\n"


def test_ctrl_c_ends_with_130_and_leaves_no_process(folder):
    path = written(folder, "right.yaml", {"truth": "right.onnx", "other": "right.onnx"})
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "validate", path, "--rows", "500000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        own = psutil.Process(process.pid)
        until(lambda: len(own.children()) == 2, "both variants have a process", within_s=60)
        children = own.children()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in errors
    gone, left = psutil.wait_procs(children, timeout=30)
    assert len(gone) == 2, left


def test_a_report_that_cannot_be_written_costs_no_verdict(folder, tmp_path, capsys):
    path = written(folder, "right.yaml", {"truth": "right.onnx", "other": "right.onnx"})
    report = tmp_path / "report"
    (report / "report.json" / "in the way").mkdir(parents=True)
    assert run(["validate", "--in-process", path, "--report", str(report)]) == 2
    printed = capsys.readouterr()
    assert "PASS  1/other" in printed.out
    assert "the report cannot be written" in printed.err


@pytest.mark.parametrize(
    ("arrays", "arguments", "said"),
    [
        ({}, (), "given.npz holds no arrays"),
        ({"labels": np.full(3, 10)}, ("--labels", "labels"), "3 labels are no class of output 'y'"),
        ({"labels": np.array([1, 9, 10])}, ("--labels", "labels"), "do they begin at 1?"),
        ({"labels": np.array([0, 3, -1])}, ("--labels", "labels"), "(the first: -1 in row 2)"),
        ({"x": 0}, ("--label-output", "y"), "--label-output without --labels"),
    ],
)
def test_files_that_do_not_fit(folder, capsys, arrays, arguments, said):
    path = written(folder, "right.yaml", {"truth": "right.onnx", "other": "right.onnx"})
    np.savez(folder / "given.npz", **({"x": variants.rows(3), **arrays} if arrays else {}))
    assert run(["validate", "--in-process", path, "-i", str(folder / "given.npz"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_archive_that_is_cut_off(folder):
    whole = (folder / "rows.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    path = written(folder, "right.yaml", {"truth": "right.onnx", "other": "right.onnx"})
    found = sidecar("validate", path, "-i", str(folder / "cut.npz"))
    assert found.returncode == 2
    assert "cut.npz cannot be read as npz or npy" in found.stderr
    assert "is it cut off?" in found.stderr
