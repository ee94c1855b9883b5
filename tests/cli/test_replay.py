"""``sidecar replay``: a stored case on the variants of a configuration."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import yaml
from onnx import helper

from sidecar.cases import Arrays, CaseWriter, Offer
from sidecar.cli import run as run_cli
from sidecar.clock import SystemClock
from sidecar.config_monitor import CasesConfig
from tests.cli.conftest import sidecar
from tests.support import models

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
PASS, FAIL, BAD_USE, INVALID = 0, 1, 2, 4


def scaled(folder, name, scale, *, shape=("batch", 3), output="y", extra=()):
    """y = scale · x, as ONNX; ``extra`` names more outputs."""
    nodes = [helper.make_node("Mul", ["x", "scale"], [output])]
    nodes += [helper.make_node("Identity", ["x"], [more]) for more in extra]
    outputs = [(each, "FP32", list(shape)) for each in (output, *extra)]
    graph = models.onnx_model(
        nodes, [("x", "FP32", list(shape))], outputs, [("scale", np.float32(scale))]
    )
    return models.save(folder, name, graph).name


def write_config(folder, paths, **more):
    """The variants ``1/KEY``; the first is the reference."""
    variants = [
        {
            "name": name, "version": "1", "roles": ["mirror"] if number else ["serving"],
            "runtime": {"kind": "onnxruntime", "path": path},
        }
        for number, (name, path) in enumerate(paths.items())
    ]  # fmt: skip
    document = {"models": [{"name": "net", "variants": variants, **more}]}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def write_case(folder, x=X, *, inputs="keep", fields=None, outputs=None, **changes):
    """A case of ``1/ref`` and ``1/good``; return ``FOLDER#ID``."""
    config = CasesConfig(inputs=inputs, fields=fields or {}, reservoir=100)
    arrays = {"x": x} if not isinstance(x, dict) else x
    with CaseWriter(folder / "cases", config, SystemClock(), random.Random()) as writer:
        case_id = writer.offer(
            Offer(
                **{"model": "net", "candidate": "net:1/good", "baseline": "net:1/ref", **changes}
            ),
            lambda: Arrays(arrays, outputs or {}),
        )
    return f"{folder / 'cases'}#{case_id}"


@pytest.fixture
def folder(tmp_path):
    write_config(
        tmp_path,
        {
            "ref": scaled(tmp_path, "ref.onnx", 2),
            "good": scaled(tmp_path, "good.onnx", 2),
            "bad": scaled(tmp_path, "bad.onnx", 2.5),
            "other": scaled(tmp_path, "other.onnx", 2, output="z"),
            "more": scaled(tmp_path, "more.onnx", 2, extra=["w"]),
            "wide": scaled(tmp_path, "wide.onnx", 2, shape=("batch", 5)),
        },
    )
    return tmp_path


def replay(capsys, case, *arguments):
    """Run the command; return (exit code, document or ``None``, messages)."""
    code = run_cli(["replay", str(case), "--json", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else None, printed.err


def variant(document, key):
    (run,) = document["runs"]
    return next(item for item in run["variants"] if item["key"] == key)


def test_the_two_variants_of_the_case_are_run_again(folder, capsys):
    case = write_case(folder, outputs={"net:1/ref": {"y": 2 * X}, "net:1/good": {"y": 2 * X}})
    code, document, _ = replay(capsys, case, "--config", folder / "config.yaml")
    assert code == document["exit_code"] == PASS
    (run,) = document["runs"]
    assert [item["key"] for item in run["variants"]] == ["1/ref", "1/good"]
    assert run["reference"] == "1/ref"
    (group,) = variant(document, "1/good")["groups"]
    (output,) = group["outputs"]
    assert (output["rows"], output["disagreements"], output["verdict"]) == (4, 0, "PASS")
    assert "1/good y: as it was stored" in run["notes"]
    assert "1/ref y: as it was stored" in run["notes"]


def test_a_case_is_found_by_its_file_too(folder, capsys):
    where, _, case_id = write_case(folder).partition("#")
    path = f"{where}/shards/{case_id}.safetensors"
    assert replay(capsys, path, "--config", folder / "config.yaml")[0] == PASS


def test_any_variants_can_be_compared(folder, capsys):
    code, document, _ = replay(
        capsys, write_case(folder), "--config", folder / "config.yaml", "--variant", "1/good",
        "--variant", "1/bad",
    )  # fmt: skip
    assert code == FAIL
    assert variant(document, "1/good")["verdict"] == "PASS"
    bad = variant(document, "1/bad")
    assert bad["verdict"] == "FAIL"
    assert bad["reasons"][0] == "'y': 4 of 4 rows disagree"
    assert bad["groups"][0]["outputs"][0]["metrics"]["max_abs"]["max"] == pytest.approx(0.5)
    assert document["runs"][0]["reasons"][0] == "1/bad: 'y': 4 of 4 rows disagree"


def test_one_bad_row_of_many_is_a_failure(tmp_path, capsys):
    """A share that a certificate would allow is none in a case."""
    nodes = [
        helper.make_node("Greater", ["x", "limit"], ["over"]),
        helper.make_node("Where", ["over", "limit", "x"], ["y"]),
    ]
    io = [("x", "FP32", ["batch", 1])], [("y", "FP32", ["batch", 1])]
    for name, limit in (("ref", 1e9), ("good", 1000)):
        graph = models.onnx_model(nodes, *io, [("limit", np.float32(limit))])
        models.save(tmp_path, f"{name}.onnx", graph)
    config = write_config(tmp_path, {"ref": "ref.onnx", "good": "good.onnx"})
    x = np.ones((2000, 1), np.float32)
    x[77] = 5000
    code, document, _ = replay(capsys, write_case(tmp_path, x), "--config", config)
    assert code == FAIL
    assert variant(document, "1/good")["reasons"][0] == "'y': 1 of 2000 rows disagree"


def test_a_variant_that_answers_otherwise_than_it_did_is_told(folder, capsys):
    stored = {"net:1/ref": {"y": 2 * X}, "net:1/good": {"y": 2 * X + np.float32(0.25)}}
    code, document, _ = replay(
        capsys, write_case(folder, outputs=stored), "--config", folder / "config.yaml"
    )
    assert code == PASS
    notes = document["runs"][0]["notes"]
    assert "1/good y: not exactly as it was stored: largest difference 0.25" in notes


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("1/other", "the candidate lacks it"),
        ("1/more", "the reference has no such output"),
        ("1/wide", "it failed: "),
    ],
)
def test_what_cannot_be_compared_is_invalid(folder, capsys, key, message):
    code, document, _ = replay(
        capsys, write_case(folder), "--config", folder / "config.yaml", "--variant", key
    )
    assert code == INVALID
    assert message in " ".join(variant(document, key)["reasons"])


def test_a_variant_that_cannot_be_loaded_does_not_hide_the_others(folder, capsys):
    (folder / "bad.onnx").write_bytes(b"broken")
    code, document, _ = replay(
        capsys, write_case(folder), "--config", folder / "config.yaml", "--variant", "1/bad",
        "--variant", "1/good",
    )  # fmt: skip
    assert code == INVALID
    assert "it cannot be loaded" in variant(document, "1/bad")["reasons"][0]
    assert variant(document, "1/good")["verdict"] == "PASS"


def test_a_reference_that_does_not_answer_is_invalid(folder, capsys):
    (folder / "ref.onnx").write_bytes(b"broken")
    code, document, _ = replay(capsys, write_case(folder), "--config", folder / "config.yaml")
    assert code == INVALID
    assert "the reference did not answer (it cannot be loaded" in document["runs"][0]["reasons"][0]


def test_not_a_number_on_one_side_is_invalid(tmp_path, capsys):
    config = write_config(
        tmp_path,
        {"ref": scaled(tmp_path, "a.onnx", 2), "good": scaled(tmp_path, "b.onnx", np.nan)},
    )
    code, document, _ = replay(capsys, write_case(tmp_path), "--config", config)
    assert code == INVALID
    assert "4 not finite on one side only" in " ".join(variant(document, "1/good")["reasons"])


def test_a_model_without_batch_dimension_is_one_row(tmp_path, capsys):
    config = write_config(
        tmp_path,
        {
            "ref": scaled(tmp_path, "a.onnx", 2, shape=(3,)),
            "good": scaled(tmp_path, "b.onnx", 3, shape=(3,)),
        },
    )
    case = write_case(tmp_path, X[0], outputs={"net:1/ref": {"y": 2 * X[0]}})
    code, document, _ = replay(capsys, case, "--config", config)
    assert code == FAIL
    assert variant(document, "1/good")["groups"][0]["outputs"][0]["rows"] == 1
    assert "1/ref y: as it was stored" in document["runs"][0]["notes"]


def test_limits_of_the_config_count(folder, capsys):
    paths = {"ref": "ref.onnx", "good": "bad.onnx"}
    outputs = {"y": {"kind": "tensor", "limits": {"max_abs": "<= 0.6"}}}
    config = write_config(folder, paths, validation={"outputs": outputs})
    assert replay(capsys, write_case(folder), "--config", config)[0] == PASS
    outputs["y"]["limits"]["max_abs"] = "<= 0.4"
    config = write_config(folder, paths, validation={"outputs": outputs})
    assert replay(capsys, write_case(folder), "--config", config)[0] == FAIL


@pytest.mark.parametrize(
    ("inputs", "fields", "what"),
    [("drop", {}, "input 'x' was not kept"), ("hash", {}, "input 'x' was not kept"),
     ("keep", {"x": "drop"}, "input 'x' was not kept")],
)  # fmt: skip
def test_a_case_without_its_inputs_says_how_to_keep_them(folder, capsys, inputs, fields, what):
    case = write_case(folder, inputs=inputs, fields=fields)
    code, document, said = replay(capsys, case, "--config", folder / "config.yaml")
    assert (code, document) == (BAD_USE, None)
    assert what in said
    assert "monitor.cases.inputs: keep" in said


def test_bad_use_is_told_apart_from_every_verdict(folder, capsys):
    config = folder / "config.yaml"
    case = write_case(folder)
    for arguments, message in [
        ((case,), "--config CONFIG (the case is of net, net:1/ref and net:1/good)"),
        ((case, "--config", folder / "nothing.yaml"), "nothing.yaml"),
        ((f"{folder / 'cases'}#nothing", "--config", config), "has no case nothing"),
        ((folder / "nothing", "--config", config), "there is no case"),
        ((case, "--config", config, "--variant", "9/x"), "no variant '9/x'"),
        ((case, "--config", config, "--variant", "1/ref"), "nothing to compare 1/ref with"),
        ((write_case(folder, model="another"), "--config", config), "model 'another'"),
        ((write_case(folder, candidate="net:7/gone"), "--config", config), "no variant '7/gone'"),
        ((write_case(folder, {"q": X}), "--config", config), "needs input 'x'"),
    ]:
        code, document, said = replay(capsys, *arguments)
        assert (code, document) == (BAD_USE, None), arguments
        assert message in said


def test_a_baseline_that_is_gone_is_replaced_by_the_first_variant_named(folder, capsys):
    case = write_case(folder, baseline="net:0/old")
    code, document, _ = replay(
        capsys, case, "--config", folder / "config.yaml", "--variant", "1/ref", "--variant", "1/bad"
    )
    assert code == FAIL
    (run,) = document["runs"]
    assert run["reference"] == "1/ref"
    assert run["reference_note"] == "the case's baseline, 0/old, is not in this config"


def test_people_get_a_table(folder):
    found = sidecar(
        "replay", write_case(folder), "--config", str(folder / "config.yaml"), "--variant", "1/bad"
    )
    assert found.returncode == FAIL, found.stderr
    assert "1/bad" in found.stdout
    assert "FAIL" in found.stdout
    assert "4 of 4 rows disagree" in found.stdout
