"""``sidecar validate`` as a process: the exit codes are a contract."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import yaml

from sidecar.cli import run, validate
from tests.cli.conftest import sidecar
from tests.support import models
from tests.validation import variants


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The right network and others, 400 rows, their labels."""
    made = tmp_path_factory.mktemp("networks")
    variants.network(made, "right.onnx")
    variants.network(made, "tenfold.onnx", scale=10)
    variants.network(made, "nan.onnx", nan_over=2.0)
    variants.network(made, "lacks.onnx", outputs={"y": "y"})
    variants.data(made)
    np.save(made / "labels.npy", models.mlp_expected(variants.rows(400)).argmax(axis=1))
    return made


def config(folder, other, name="config.yaml", **validation):
    path = folder / name
    document = variants.tree({"truth": "right.onnx", "other": other}, **validation)
    path.write_text(yaml.safe_dump(document))
    return str(path)


TENSORS = {"y": {"kind": "tensor"}, "p": {"kind": "tensor"}}


@pytest.mark.parametrize(
    ("other", "more", "code", "verdict"),
    [
        ("right.onnx", (), 0, "PASS"),
        ("tenfold.onnx", (), 1, "FAIL"),
        ("right.onnx", ("--rows", "20"), 3, "INCONCLUSIVE"),
        ("nan.onnx", (), 4, "INVALID"),
        ("lacks.onnx", (), 4, "INVALID"),
    ],
)
def test_each_verdict_has_its_exit_code(folder, capsys, other, more, code, verdict):
    path = config(folder, other, f"{other}.yaml", outputs=TENSORS)
    rows = str(folder / "rows.npz")
    found = sidecar("validate", path, "--input", rows, *more)
    assert found.returncode == code, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1].startswith(f"{verdict}  net")
    assert "against 1/truth" in found.stdout
    assert found.stderr == "", "the bar is for people who look"
    # The same, in this process, as JSON.
    assert run(["validate", "--in-process", path, "--input", rows, *more, "--json"]) == code
    as_json = json.loads(capsys.readouterr().out)
    assert (as_json["verdict"], as_json["exit_code"]) == (verdict, code)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.yaml",), "none.yaml"),
        (("garbage.yaml",), "garbage.yaml"),
        (("config.yaml", "--model", "other"), "the config has no model 'other'; its models: net"),
        (("config.yaml", "--reference", "1/none"), "its variants: 1/truth, 1/other"),
        (("config.yaml", "--variant", "1/truth"), "there is nothing to compare 1/truth with"),
        (("config.yaml", "--input", "none.npz"), "none.npz cannot be read"),
        (("config.yaml", "--input", "garbage.npz"), "garbage.npz is none of npz"),
        (("config.yaml", "--input", "named.npz"), "(is it what the file calls 'pixels'?)"),
        (("config.yaml", "--labels", "label"), "--labels without --input"),
        (("config.yaml", "-i", "rows.npz", "--labels", "label"), "has no labels 'label'"),
        (("config.yaml", "-i", "rows.npz", "--labels", "no.npy"), "no.npy cannot be read"),
        (("config.yaml", "--limit", "y"), "write OUTPUT.METRIC='>= 40'"),
        (("config.yaml", "--limit", "z.max_abs=1"), "there is no output 'z'; outputs: y, p"),
        (("config.yaml", "--limit", "y.max=1"), "class_scores has no such metric; it has: flip"),
        (("config.yaml", "--limit", "y.flip=>= 1"), "points the wrong way"),
        (("config.yaml", "--limit", "y.flip=off"), "would have no limit left"),
        (("config.yaml", "--limit", "y.flip=1", "--limit", "y.flip=2"), "is given twice"),
        (("config.yaml", "--rows", "0"), "--rows"),
        (("single.yaml",), "there is nothing to compare: net: version 1 has one variant"),
        (("config.yaml", "--report", "rows.npz/x"), "report cannot be written"),
    ],
)
def test_bad_use_ends_with_2_and_never_as_a_verdict(folder, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(folder)
    config(folder, "right.onnx")
    (folder / "garbage.yaml").write_text("models: {")
    (folder / "garbage.npz").write_bytes(b"not an archive at all")
    np.savez(folder / "named.npz", pixels=variants.rows(3))
    single = variants.tree({"truth": "right.onnx"})
    (folder / "single.yaml").write_text(yaml.safe_dump(single))
    assert run(["validate", *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert "Traceback" not in printed.err


def test_bad_use_in_a_process_of_its_own(folder):
    found = sidecar("validate", "none.yaml", folder=folder)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr


def test_a_mistake_of_the_program_is_no_verdict(folder, monkeypatch, capsys):
    def broken(*_arguments, **_options):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("sidecar.validation.run.validate", broken)
    assert validate.run(validate.Request(folder / "config.yaml")) == 2
    assert "ZeroDivisionError: of all things (a mistake of this program" in capsys.readouterr().err


def test_generated_inputs_pass_and_say_what_is_not_certified(folder, capsys):
    path = config(folder, "right.onnx")
    assert run(["validate", "--in-process", path, "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    assert "nothing is certified" in printed
    for kind in ("random", "batch", "edges", "extremes", "nonfinite"):
        assert kind in printed


def test_accuracy_is_shown(folder, capsys):
    path = config(folder, "right.onnx")
    rows, labels = str(folder / "rows.npz"), str(folder / "labels.npy")
    assert run(["validate", "--in-process", path, "-i", rows, "--labels", labels]) == 0
    assert "accuracy 100.00% (reference 100.00%), 0 right answers lost" in capsys.readouterr().out


def test_the_best_of_several_models_does_not_hide_the_worst(folder, capsys):
    good = variants.tree({"truth": "right.onnx", "other": "right.onnx"}, model="good")
    bad = variants.tree({"truth": "right.onnx", "other": "lacks.onnx"}, model="bad")
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump({"models": good["models"] + bad["models"]}))
    assert run(["validate", "--in-process", str(path)]) == 4
    assert run(["validate", "--in-process", str(path), "--model", "good"]) == 0
    capsys.readouterr()
    assert run(["validate", "--in-process", str(path), "--input", str(folder / "rows.npz")]) == 2
    assert "say which: --model good or --model bad" in capsys.readouterr().err


def test_a_report_holds_everything_and_its_cases_are_replayed(folder, tmp_path, capsys):
    path = config(folder, "tenfold.onnx", outputs=TENSORS)
    report = tmp_path / "report"
    arguments = [
        "validate",
        "--in-process",
        path,
        "-i",
        str(folder / "rows.npz"),
        "--report",
        str(report),
    ]
    assert run(arguments) == 1
    capsys.readouterr()
    assert {item.name for item in report.iterdir()} == {
        "report.html", "report.json", "report.xml", "metrics.safetensors", "cases",
    }  # fmt: skip
    document = json.loads((report / "report.json").read_text())
    assert document["verdict"] == "FAIL"
    assert document["variants"][1]["artifacts"][0]["name"] == "tenfold.onnx"
    failed = ET.parse(report / "report.xml").getroot().iter("failure")
    assert len(list(failed)) >= 1
    worst = document["variants"][1]["worst"][0]
    assert worst["replay"].startswith("sidecar replay ")
    assert worst["input_set"] in {"rows.npz", "batch"}
    # The command in the report runs the case again, with the same verdict.
    command = shlex.split(worst["replay"])[1:]
    assert run(command) == 1
    # A second run replaces the report, cases and all.
    before = {item.name for item in (report / "cases" / "shards").iterdir()}
    assert run(arguments) == 1
    after = {item.name for item in (report / "cases" / "shards").iterdir()}
    assert len(after) == len(before)
    assert not after & before


def test_stored_cases_are_inputs(folder, tmp_path, capsys):
    path = config(folder, "tenfold.onnx", outputs=TENSORS)
    report = tmp_path / "report"
    assert (
        run(
            [
                "validate",
                "--in-process",
                path,
                "-i",
                str(folder / "rows.npz"),
                "--report",
                str(report),
            ]
        )
        == 1
    )
    cases = report / "cases"
    capsys.readouterr()
    assert run(["validate", "--in-process", path, "-i", str(cases), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    given = document["runs"][0]["inputs"][0]
    assert given["kind"] == "data"
    assert given["rows"] == len(list((cases / "shards").iterdir()))


def test_the_cause_is_shown(folder, capsys):
    path = config(folder, "nan.onnx", outputs=TENSORS)
    assert (
        run(["validate", "--in-process", path, "-i", str(folder / "rows.npz"), "--localize"]) == 4
    )
    printed = capsys.readouterr().out
    assert "cause" in printed
    assert "1 is enough to show it" in printed
