"""``sidecar reference`` and ``sidecar drift``: files, messages and exit codes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml

from sidecar.cli import drift, run
from sidecar.cli.drift_screen import drift_group, drift_line, sparkline
from sidecar.monitor.drift_reference import read
from sidecar.monitor.view_drift import DriftUnit, DriftView
from tests.support import digits


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    digits.model(folder)
    np.savez(folder / "good.npz", image=digits.images(), label=digits.labels())
    np.savez(folder / "few.npz", image=digits.images()[:300])
    np.savez(folder / "other.npz", picture=digits.images())
    runtime = {"kind": "onnxruntime", "path": "digits.onnx"}
    variant = {"version": "1", "name": "onnx", "roles": ["serving"], "runtime": runtime}
    model = {
        "name": "digits", "variants": [variant], "drift": {"window_rows": 200, "min_rows": 100},
    }  # fmt: skip
    (folder / "sidecar.yaml").write_text(yaml.safe_dump({"models": [model]}))
    wrong = {**model, "drift": {**model["drift"], "inputs": {"imgae": {}}}}
    (folder / "wrong.yaml").write_text(yaml.safe_dump({"models": [wrong]}))
    two = {"models": [model, {**model, "name": "again"}]}
    (folder / "two.yaml").write_text(yaml.safe_dump(two))
    return folder


def test_a_reference_is_registered_and_shown(place, capsys):
    arguments = ["reference", place / "sidecar.yaml", "--inputs", place / "good.npz", "--labels"]
    assert run([*map(str, arguments), "label"]) == 0
    said = capsys.readouterr().out
    assert "image.brightness" in said
    assert "probabilities.class" in said
    assert "watched as image" in said
    assert re.search(r"accuracy 9\d\.\d+%", said)
    assert "drift.reference" in said
    registered = read(place / "digits.reference.json.gz")
    assert (registered.model, registered.variant) == ("digits", "1/onnx")
    assert registered.columns.batched
    assert registered.reference.rows == len(digits.images())
    assert registered.facts["accuracy"] > 0.9
    assert len(registered.artifact) == 64
    assert any("rows are few" in text for text in registered.facts["warnings"])
    # image.channel0 is brightness again; neither is constant.
    assert not any("constant" in text for text in registered.facts["warnings"])


def test_json_for_programs(place, capsys, tmp_path):
    target = tmp_path / "r.json.gz"
    arguments = ["reference", place / "sidecar.yaml", "-i", place / "good.npz", "-o", target]
    assert run([*map(str, arguments), "--json", "--shuffle", "--labels", "label"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == str(target)
    assert document["bytes"] == target.stat().st_size
    assert {"name": "probabilities.class", "type": "categorical", "method": "chi_square"} in (
        document["columns"]
    )
    assert document["threshold"] > 0


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ("sidecar.yaml", ["-i", "few.npz"], "300 rows are too few for windows of 200: 400"),
        ("sidecar.yaml", ["-i", "other.npz"], "what the file calls 'picture'"),
        ("sidecar.yaml", ["-i", "nothing.npz"], "nothing.npz"),
        ("sidecar.yaml", ["-i", "good.npz", "--labels", "nobody"], "no labels 'nobody'"),
        ("sidecar.yaml", ["-i", "few.npz", "--variant", "2/x"], "no variant '2/x'"),
        ("sidecar.yaml", ["-i", "few.npz", "--model", "m"], "no model 'm'"),
        ("two.yaml", ["-i", "few.npz"], "--model digits or --model again"),
        ("wrong.yaml", ["-i", "few.npz", "--rows", "10"], "too few"),
    ],
)
def test_what_cannot_be_registered_ends_with_2_and_says_why(
    place, capsys, monkeypatch, config, arguments, message
):
    monkeypatch.chdir(place)
    assert run(["reference", config, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_tensor_that_is_misspelled_is_named(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    np.savez("good-images.npz", image=digits.images())
    assert run(["reference", "wrong.yaml", "-i", "good-images.npz"]) == 2
    assert "drift.inputs names 'imgae'" in capsys.readouterr().err


# --- drift ----------------------------------------------------------------------------------------


def view(state="ok", **changes):
    units = [
        DriftUnit("x.mean", "ks", 0.1, 0.2, 0.5, 1.2, "ok", "", [0.1, 0.5]),
        DriftUnit("x.std", "ks", 0.4, 0.2, 3.0, 1.2, state, "> 2: 1.0% → 9.0%", [2.0, 3.0]),
    ]
    return DriftView(
        **{"model": "m", "reference": "m.json", "reference_source": "file", "state": state,
           "windows": 7, "rows_in_window": 12, "window_rows": 500, "units": units, **changes}
    )  # fmt: skip


def drawn(what) -> str:
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as caught:
        console.print(what)
    return caught.get()


def test_exit_codes_of_check():
    codes = {
        state: drift.exit_code([view(), view(state)])
        for state in ("ok", "suspect", "alarm", "not_watched", "insufficient_data")
    }
    assert codes == {
        "ok": 0, "suspect": 0, "alarm": 1, "not_watched": 1, "insufficient_data": 3,
    }  # fmt: skip
    assert drift.exit_code([]) == 3
    assert drift.exit_code([view("insufficient_data"), view("alarm")]) == 1


def test_what_moved_is_drawn_first_with_its_windows():
    said = drawn(drift_group([view("alarm", message="a warning")], 0))
    assert said.index("x.std") < said.index("x.mean")
    assert "> 2: 1.0% → 9.0%" in said
    assert "a warning" in said
    assert "no model is watched" in drawn(drift_group([], 0))
    bars = sparkline([0.0, 1.2, 9.0], 1.2)
    assert bars.plain == "▁▅█"
    assert [str(span.style) for span in bars.spans] == ["green", "green", "red"]


def test_the_line_of_a_model():
    assert "x.std (7 windows" in drift_line(view("alarm")).plain
    collecting = view(
        "insufficient_data", reference="", reference_source="collecting", units=[],
        reference_rows=30, reference_rows_wanted=1000,
    )  # fmt: skip
    assert "30 of 1,000 rows" in drift_line(collecting).plain
    assert "why" in drift_line(view("not_watched", message="why")).plain
