"""Drift watched live: real processes, a reference made by the command, traffic that changes."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from sidecar.monitor.client import MonitorClient
from sidecar.monitor.view import VerdictEvent
from sidecar.monitor.view_drift import DriftView
from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e.support import LOCAL, Client, Server, running, until
from tests.e2e.test_monitor import is_connected, monitor_of
from tests.support import digits, models

WINDOW, REQUEST = 200, 10
REFERENCE = "digits.reference.json.gz"


def configure(folder: Path, model: Path, name: str = "digits", **drift: Any) -> Path:
    runtime = {"kind": "onnxruntime", "path": model.name}
    variant = {"version": "1", "name": "onnx", "roles": ["serving"], "runtime": runtime}
    settings = {"window_rows": WINDOW, "min_rows": 100, **drift}
    tree = {
        "models": [{"name": name, "variants": [variant], "drift": settings}],
        "gateway": {
            "grpc": {"address": LOCAL}, "http": None, "drain": {"delay_s": 0, "timeout_s": 2},
        },
        "monitor": {
            "grpc": LOCAL, "flush_s": 0.1, "mirror": {"sample_rate": 1.0, "cpu_share": 1.0},
        },
    }  # fmt: skip
    path = folder / "sidecar.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def sidecar(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture
def config(tmp_path):
    """A model that reads digits, and its reference, registered by the command."""
    path = configure(tmp_path, digits.model(tmp_path), reference=REFERENCE)
    np.savez(tmp_path / "good.npz", image=digits.traffic(1500, 1), label=digits.labels()[:1500])
    found = sidecar("reference", path, "--inputs", tmp_path / "good.npz", "--labels", "label")
    assert found.returncode == 0, found.stderr
    return path


class Sender:
    """Sends rows through the gateway; under pressure the sample may rightly shrink."""

    def __init__(self, server: Server, model: str = "digits", name: str = "image") -> None:
        self.monitor = monitor_of(server)
        is_connected(server)
        self.gateway = server.addresses["grpc"]
        self.model, self.name = model, name
        self.sent = 0

    def send(self, rows: np.ndarray) -> None:
        with Client(self.gateway) as client:
            for start in range(0, len(rows), REQUEST):
                part = rows[start : start + REQUEST]
                request = pb.ModelInferRequest(model_name=self.model)
                request.inputs.add(name=self.name, datatype="FP32", shape=part.shape)
                request.raw_input_contents.append(part.tobytes())
                client.call("ModelInfer", request)
        self.sent += len(rows)

    def view(self) -> DriftView:
        with MonitorClient(self.monitor, timeout_s=30) as client:
            [found] = client.drift(self.model)
        return found

    def until(self, check: Any, what: str, **traffic: Any) -> DriftView:
        """Send until the view is so."""

        def looked() -> DriftView | None:
            found = self.view()
            if check(found):
                return found
            self.send(digits.traffic(50, 100 + self.sent, **traffic))
            return None

        return until(looked, what, within_s=90)


def counted(view: DriftView) -> int:
    return view.windows * view.window_rows + view.rows_in_window


def alarms(monitor: str) -> list[VerdictEvent]:
    found = []
    with MonitorClient(monitor, timeout_s=30) as client:
        last = client.status().last_seq
        if last == 0:
            return []
        for what in client.watch(0):
            if isinstance(what, VerdictEvent):
                found.append(what)
                if what.seq >= last:
                    return found
    return found


def test_clean_traffic_is_ok_rotated_and_noisy_traffic_alarms_and_it_clears(config):
    with running(config) as server:
        sender = Sender(server)
        before = sender.view()
        assert (before.state, before.windows, before.reference) == (
            "insufficient_data", 0, REFERENCE,
        )  # fmt: skip
        assert sidecar("drift", sender.monitor, "--check").returncode == 3
        found = sender.until(lambda view: view.windows >= 3, "three windows were judged")
        assert (found.state, found.reference_source) == ("ok", "file")
        assert sidecar("drift", sender.monitor, "--check").returncode == 0

        found = sender.until(
            lambda view: view.state == "alarm", "rotation and noise alarm", degrees=40, noise=3.0
        )
        # Up to one window holds the last of the clean rows; two in a row make an alarm.
        assert found.windows <= 3 + 3
        moved = {unit.unit for unit in found.units if unit.state == "alarm"}
        assert {"image.contrast", "probabilities.top"} <= moved
        assert found.alarm_since_wall_ns is not None
        [event] = [one for one in alarms(sender.monitor) if one.verdict == "FAIL"]
        assert event.text.startswith("drift: ")
        assert "image.contrast moved" in event.text or "more" in event.text
        assert "WARNING" in server.text.upper()

        shown = sidecar("drift", sender.monitor)
        assert "image.contrast" in shown.stdout
        assert "alarm" in shown.stdout
        assert sidecar("drift", sender.monitor, "--check").returncode == 1
        [document] = json.loads(sidecar("drift", sender.monitor, "--json").stdout)
        assert document["state"] == "alarm"
        assert "drift alarm" in sidecar("status", sender.monitor).stdout

        sender.until(lambda view: view.state == "ok", "it is over")
        assert alarms(sender.monitor)[-1].text.startswith("drift: over")
        server.signal()
        assert server.wait() == 0


def test_windows_and_states_survive_the_monitor_being_killed(config):
    with running(config) as server:
        sender = Sender(server)
        sender.until(lambda view: view.state == "alarm", "an alarm", degrees=40, noise=3.0)
        sender.send(digits.traffic(60, 1, degrees=40, noise=3.0))
        before = sender.until(
            lambda view: view.rows_in_window > 0, "a window is open", degrees=40, noise=3.0
        )
        with MonitorClient(sender.monitor, timeout_s=30) as client:
            pid = client.status().pid
        # What is counted is written within flush_s, which nobody outside can see happen but so.
        written = until(lambda: stored(config) >= counted(before), "it was written")
        assert written
        psutil.Process(pid).send_signal(signal.SIGKILL)
        sender.monitor = monitor_of(server, after=1)
        after = until(sender.view, "it is back")
        assert counted(after) >= counted(before)
        assert (after.state, after.alarm_since_wall_ns) == ("alarm", before.alarm_since_wall_ns)
        assert {unit.unit for unit in after.units} == {unit.unit for unit in before.units}
        is_connected(server, times=2)
        more = sender.until(lambda view: counted(view) > counted(after), "it goes on")
        assert more.windows >= after.windows


def stored(config: Path) -> int:
    """Rows that the store on disk has counted."""
    import contextlib
    import sqlite3

    path = config.parent / "sidecar-state" / "monitor.sqlite3"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT plain FROM drift_windows").fetchall()
    if not rows:
        return 0
    [plain] = [json.loads(text) for (text,) in rows]  # one life's: the one before was taken over
    return plain["state"]["windows"] * WINDOW + plain["window"]["joint"]["rows"]


def test_without_a_file_the_first_rows_are_the_reference_and_survive_a_restart(tmp_path):
    config = configure(tmp_path, digits.model(tmp_path), enabled=True, reference_rows=1000)
    with running(config) as server:
        sender = Sender(server)
        found = sender.until(lambda view: view.reference_rows >= 300, "some were collected")
        assert (found.reference_source, found.state) == ("collecting", "insufficient_data")
        assert found.reference_rows_wanted == 1000
        assert "image 'image'" not in found.message
        assert any("'image'" in text for text in found.inferred)
        assert "collecting its reference" in sidecar("drift", sender.monitor).stdout
        server.signal()
        assert server.wait() == 0
    with running(config) as server:
        sender = Sender(server)
        # What had been collected is there, without any traffic.
        assert sender.view().reference_rows >= 300
        found = sender.until(lambda view: view.windows >= 1, "a window was judged")
        assert (found.reference, found.reference_source) == ("live", "live")
        assert found.reference_rows == 1000
        server.signal()
        assert server.wait() == 0
    with running(config) as server:
        again = Sender(server).view()
        assert (again.reference_source, again.reference_rows) == ("live", 1000)
        assert again.windows >= found.windows


@pytest.mark.parametrize("what", ["corrupt", "other model", "other version", "missing"])
def test_a_reference_that_cannot_be_used_is_said_and_nothing_is_ok(config, what):
    path = config.parent / REFERENCE
    if what == "missing":
        path.unlink()
    elif what == "corrupt":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        plain = json.loads(gzip.decompress(path.read_bytes()))
        change = {"model": "letters"} if what == "other model" else {"version": 99}
        path.write_text(json.dumps({**plain, **change}))
    with running(config) as server:
        sender = Sender(server)
        sender.send(digits.traffic(300, 1))
        found = sender.view()
        assert (found.state, found.windows) == ("not_watched", 0)
        assert "sidecar reference" in found.message
        assert sidecar("drift", sender.monitor, "--check").returncode == 1
    assert "sidecar reference" in sidecar("check-config", config).stdout


def test_inputs_of_another_shape_are_no_longer_watched_and_said(tmp_path):
    """A model that takes any width, and is suddenly sent another."""
    model = models.onnx_identity(tmp_path, "FP32", ("batch", "width"))
    config = configure(tmp_path, model, "wide", enabled=True, reference_rows=1000)
    with running(config) as server:
        sender = Sender(server, "wide", "x")
        rng = np.random.default_rng(1)

        def send(width: int) -> None:
            sender.send(rng.normal(size=(100, width)).astype(np.float32))

        def judged() -> bool:
            send(8)
            return sender.view().state == "ok"

        until(judged, "it is watched", within_s=90)

        def said() -> DriftView | None:
            send(5)
            found = sender.view()
            return found if found.state == "not_watched" else None

        found = until(said, "that it does not fit", within_s=60)
        assert found.skipped["misfit"] >= 10
        assert "sidecar reference" in found.message
        until(judged, "and again when it does fit", within_s=90)


def test_a_model_of_texts_is_watched(tmp_path):
    """BYTES in: the text is a category; one that was never seen moves the column."""
    from tests.e2e.support import variant

    model = models.onnx_identity(tmp_path, "BYTES", ("batch", 1))
    config = configure(tmp_path, model, "texts", enabled=True, reference_rows=1000)
    assert variant
    with running(config) as server:
        sender = Sender(server, "texts", "x")
        rng = np.random.default_rng(1)

        def send(words: list[str]) -> DriftView:
            with Client(sender.gateway) as client:
                for _ in range(10):
                    request = pb.ModelInferRequest(model_name="texts")
                    request.inputs.add(name="x", datatype="BYTES", shape=[20, 1])
                    chosen = [words[at].encode() for at in rng.integers(0, len(words), 20)]
                    request.inputs[0].contents.bytes_contents.extend(chosen)
                    client.call("ModelInfer", request)
            return sender.view()

        until(lambda: send(["red", "green", "blue"]).state == "ok", "it is watched", within_s=90)
        until(lambda: send(["red", "mauve"]).state == "alarm", "it alarms", within_s=60)
        moved = {unit.unit: unit.detail for unit in sender.view().units if unit.state == "alarm"}
        assert "x.value" in moved
