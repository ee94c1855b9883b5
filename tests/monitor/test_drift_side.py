"""Drift in a monitor: an alarm is a span at the backend, and Evidently looks at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sidecar.clock import SystemClock
from sidecar.config import parse, telemetry
from sidecar.monitor.drift_side import DriftSide
from sidecar.monitor.events import EventLog
from sidecar.monitor.telling import Telling
from tests.e2e.support import until
from tests.monitor.drifting import SETTINGS, WINDOW, registered, tensors
from tests.support.otlp_receiver import GrpcReceiver


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def test_an_alarm_is_told_and_looked_into(tmp_path, caplog):
    path = tmp_path / "m.reference.json.gz"
    path.write_bytes(registered())
    variant = {
        "version": "1", "name": "v", "roles": ["serving"],
        "runtime": {"kind": "remote", "address": "127.0.0.1:1"},
    }  # fmt: skip
    drift = {**SETTINGS, "reference": str(path), "deep": {"html": "never"}}
    with GrpcReceiver() as backend:
        config = parse(
            {
                "models": [{"name": "m", "variants": [variant], "drift": drift}],
                "telemetry": {"exporter": "otlp-grpc", "endpoint": backend.endpoint},
            }
        )
        clock = SystemClock()
        telling = Telling(telemetry(config), lambda record: None, clock)
        side = DriftSide(config, EventLog(clock), tmp_path, telling, clock)
        telling.start([side.points])
        side.start()
        try:
            rng = np.random.default_rng(3)
            for shift in (0.0, 1.0, 1.0, 1.0):
                side.watch.take("m", *tensors(rng, WINDOW, shift), True)
                side.watch.settle()
            until(lambda: len(backend.spans) == 4, "a span for each window")
            until(lambda: side.views()[0].report_json, "a deep run", within_s=150)
            told = json.loads(Path(side.views()[0].report_json).read_text(encoding="utf-8"))
            assert told["drifted"]
        finally:
            side.close()
            telling.close()
    states = []
    for span in backend.spans:
        said = {one.key: one.value for one in span.attributes}
        assert (span.name, said["rows"].int_value) == ("drift.window", WINDOW)
        states.append(said["state"].string_value)
    assert states == ["ok", "suspect", "alarm", "alarm"]
    assert "skipped" not in caplog.text  # one alarm asks for one run
    assert "model_sidecar.drift.alarm" in backend.metrics()
