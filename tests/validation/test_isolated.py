"""A variant that ends its process: its own verdict, and nobody else's."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import numpy as np
import psutil
import pytest
import yaml

from sidecar.cli import run
from sidecar.clock import SystemClock
from sidecar.errors import ArtifactError, ExecutionError
from sidecar.validation import isolated
from tests.monitor import naughty
from tests.monitor.naughty import CRASH, rows
from tests.validation import variants

CLOCK = SystemClock()


def child_pids():
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``naughty``, which crashes on row 37, and two that are right."""
    made = tmp_path_factory.mktemp("isolated")
    naughty.identity(made)
    naughty.naughty(made)
    x = np.ones((64, 4), np.float32)
    x[37] = CRASH
    np.savez(made / "rows.npz", x=x)
    return made


def torch_variant():
    tensor = {"datatype": "FP32", "shape": [-1, 4]}
    return {
        "runtime": {
            "kind": "pytorch", "path": "naughty.pth", "factory": "naughty_factory:make",
            "factory_path": ".",
        },
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
    }  # fmt: skip


def write(folder, members, name):
    onnx = next(path.name for path in folder.glob("*.onnx"))
    given = {key: value or onnx for key, value in members.items()}
    document = variants.tree(given, outputs={"y": {"kind": "tensor"}})
    (folder / name).write_text(yaml.safe_dump(document))
    return str(folder / name)


def test_a_crash_is_the_verdict_of_the_variant_that_crashed(folder, tmp_path, capsys):
    # In this process: were the crash not contained, these tests would end here.
    report = tmp_path / "report"
    path = write(folder, {"truth": "", "bad": torch_variant(), "good": ""}, "crash.yaml")
    # Batches of 1: naughty looks at the first row of a call.
    arguments = ["--input", str(folder / "rows.npz"), "--batch-size", "1", "--localize"]
    assert run(["validate", path, *arguments, "--report", str(report)]) == 4
    printed = capsys.readouterr().out
    crash = "it ended its process (signal 11, SIGSEGV)"
    assert f"rows.npz: row 37: {crash}" in printed
    assert f"1/bad was not localized, which runs it in this process: {crash}" in printed
    plain = json.loads((report / "report.json").read_text())
    verdicts = {variant["key"]: variant["verdict"] for variant in plain["variants"]}
    # 64 rows are too few for a certificate: the other one was judged on all of them.
    assert verdicts == {"1/truth": "PASS", "1/bad": "INVALID", "1/good": "INCONCLUSIVE"}
    assert plain["variants"][2]["groups"][0]["outputs"][0]["rows"] == 64
    # The row is stored, and running it again is contained as well.
    [case] = [c for c in plain["variants"][1]["worst"] if c["reason"] == "failure:CrashError"]
    assert case["row"] == 37
    assert run(["replay", f"{report / 'cases'}#{case['id']}", "--config", path]) == 4
    assert crash in capsys.readouterr().out


@contextlib.contextmanager
def no_process_left():
    before = child_pids()
    yield lambda: next(iter(child_pids() - before))
    assert child_pids() == before


def test_it_is_started_again(tmp_path):
    with no_process_left() as own_pid:
        runtime = isolated.build(naughty.identity(tmp_path), CLOCK)
        [y] = runtime.infer({"x": rows(1, 3)})
        assert np.array_equal(y, rows(1, 3))
        assert runtime.compute_ns > 0
        with pytest.raises(ExecutionError) as raised:  # it only raises
            runtime.infer({"x": np.zeros((2, 3), np.float32)})
        assert not isinstance(raised.value, isolated.CrashError)
        assert runtime.crash == ""
        os.kill(own_pid(), signal.SIGSEGV)
        with pytest.raises(isolated.CrashError, match=r"it ended its process \(signal 11, SIGSEGV"):
            runtime.infer({"x": rows(1)})
        [y] = runtime.infer({"x": rows(2)})
        assert np.array_equal(y, rows(2))
        many = [{"x": rows(first, 2)} for first in range(150)]
        answers = list(runtime.infer_many(many))
        assert [y[0, 0] for [y] in answers] == list(range(150))
        assert "SIGSEGV" in runtime.crash
        runtime.close()


def test_it_is_not_started_again_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "LIVES_MAX", 1)
    with no_process_left() as own_pid:
        runtime = isolated.build(naughty.identity(tmp_path), CLOCK)
        os.kill(own_pid(), signal.SIGKILL)
        for said in ("SIGKILL: out of memory", "as it did 1 times: it is not started again"):
            with pytest.raises(isolated.CrashError, match=said):
                runtime.infer({"x": rows(1)})
        runtime.close()


def test_what_cannot_be_loaded_says_why(tmp_path):
    good = naughty.identity(tmp_path)
    settings = good.runtime.model_copy(update={"path": tmp_path / "none.onnx"})
    with no_process_left() as own_pid:
        with pytest.raises(ArtifactError, match=r"none\.onnx does not exist"):
            isolated.build(good.model_copy(update={"runtime": settings}), CLOCK)
        starting = isolated.start(good, CLOCK)
        os.kill(own_pid(), signal.SIGSEGV)
        with pytest.raises(ArtifactError, match=r"loading it ended its process \(signal 11"):
            starting.finish()
        isolated.start(good, CLOCK).close()
