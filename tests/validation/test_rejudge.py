"""Judging a stored run again: other limits, nothing run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sidecar.cli import rejudge, run
from sidecar.validation.files import ValidationInputError
from sidecar.validation.policies import parse_limits
from sidecar.validation.store import read_run
from tests.validation import variants


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a variant that is within the limits of fp16, and not within those of fp32."""
    folder = tmp_path_factory.mktemp("stored")
    variants.network(folder, "right.onnx")
    variants.network(folder, "half.onnx", half=True)
    variants.network(folder, "renamed.onnx", outputs={"y": "scores", "p": "p"})
    kinds = {"y": {"kind": "tensor"}, "p": {"kind": "tensor"}}
    document = variants.tree({"truth": "right.onnx", "half": "half.onnx"}, outputs=kinds)
    path = variants.write(folder, document)
    rows = variants.data(folder)
    out = folder / "report"
    assert run(["validate", str(path), "-i", str(rows), "--report", str(out)]) == 0
    for item in folder.glob("*.onnx"):
        item.unlink()  # nothing can be run any more
    rows.unlink()
    return out


def test_the_same_limits_give_the_same_verdict(report, capsys):
    assert rejudge.run(report, []) == 0
    assert "nothing changed" in capsys.readouterr().out
    before = json.loads((report / "report.json").read_text())
    assert rejudge.run(report, [], as_json=True) == 0
    again = json.loads(capsys.readouterr().out)["runs"][0]
    assert again["variants"][1]["groups"] == before["variants"][1]["groups"]


def test_stricter_limits_fail_and_what_changed_is_told(report, capsys):
    assert rejudge.run(report, ["y.sqnr_db=>= 100", "y.max_rel_rms=1e-4"]) == 1
    printed = capsys.readouterr().out
    assert "changed: net: PASS → FAIL" in printed
    assert "changed: 1/half, rows.npz, 'y': PASS with 0 rows → FAIL with 400" in printed
    assert "'p'" not in printed.partition("changed:")[2], "its limits stayed"


def test_a_limit_between_the_rows_splits_them(report, capsys):
    _, metrics = read_run(report)
    values = metrics["1/half", "rows.npz", "y"]["sqnr_db"]
    middle = float(np.median(values))
    assert rejudge.run(report, [f"y.sqnr_db={middle}"], as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    group = document["runs"][0]["variants"][1]["groups"][0]
    assert group["input_set"] == "rows.npz"
    assert group["outputs"][0]["disagreements"] == int((values < middle).sum()) == 200
    assert group["outputs"][0]["certificate"]["k"] == 200


def test_a_limit_can_be_taken_away(report, capsys):
    strict = ["y.sqnr_db=>= 500", "p.sqnr_db=off"]
    assert rejudge.run(report, strict) == 1
    assert rejudge.run(report, ["y.sqnr_db=off"]) == 0
    capsys.readouterr()
    off = [f"y.{name}=off" for name in ("sqnr_db", "max_rel_rms")]
    assert rejudge.run(report, off) == 2
    assert "would have no limit left" in capsys.readouterr().err


def test_the_new_report_lies_elsewhere(report, tmp_path, capsys):
    target = tmp_path / "again"
    arguments = ["rejudge", str(report), "--limit", "y.sqnr_db=>= 100", "--report", str(target)]
    assert run(arguments) == 1
    document = json.loads((target / "report.json").read_text())
    assert document["verdict"] == "FAIL"
    assert document["settings"]["limits"] == {"y.sqnr_db": ">= 100"}
    assert json.loads((report / "report.json").read_text())["verdict"] == "PASS"
    # And can be judged again in turn.
    assert rejudge.run(target, ["y.sqnr_db=50"]) == 0
    assert rejudge.run(report, [], target=report) == 2
    assert "write the new one elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (["z.sqnr_db=1"], "there is no output 'z'; outputs: y, p"),
        (["y.cosin=1"], "tensor has no such metric; it has: sqnr_db"),
        (["y.sqnr_db=<= 1"], "points the wrong way"),
        (["y.sqnr_db=high"], "is not a limit"),
    ],
)
def test_wrong_limits_are_bad_use(report, capsys, limits, said):
    assert rejudge.run(report, limits) == 2
    assert said in capsys.readouterr().err


def test_folders_that_are_no_whole_report(report, tmp_path, capsys):
    def said(folder):
        assert rejudge.run(folder, []) == 2
        return capsys.readouterr().err

    assert "cannot be read: No such file" in said(tmp_path / "none")
    document = tmp_path / "report.json"
    document.write_text("{")
    assert "is no report" in said(tmp_path)
    document.write_text('{"schema": 0}')
    assert "schema 0" in said(tmp_path)
    document.write_bytes((report / "report.json").read_bytes())
    assert "metrics.safetensors is missing" in said(tmp_path)
    (tmp_path / "metrics.safetensors").write_bytes(b"garbage!garbage!")
    assert "cannot be read as safetensors" in said(tmp_path)
    header = b'{"x":{"dtype":"F64","shape":[0],"data_offsets":[0,0]}}'
    (tmp_path / "metrics.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "the report is not whole" in said(tmp_path)


@pytest.mark.parametrize(
    "text", ["y.sqnr_db=>= 40", "y.sqnr_db >= 40", "y.sqnr_db>=40", " y.sqnr_db = >= 40 "]
)
def test_limits_are_read_as_people_write_them(text):
    found = parse_limits([text])
    assert found.keys() == {"y"}
    assert found["y"]["sqnr_db"].replace(" ", "") == ">=40"


def test_names_of_outputs_may_hold_dots():
    assert parse_limits(["heads.score.flip=0.1"]) == {"heads.score": {"flip": "0.1"}}
    for wrong in ("", "y", "y.flip", "=1", ".flip=1", "flip=1"):
        with pytest.raises(ValidationInputError, match="is not understood"):
            parse_limits([wrong])
