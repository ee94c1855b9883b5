"""The trace file of a real core: which requests are written, and that lines stay whole."""

from __future__ import annotations

import json
import multiprocessing
import os

import numpy as np
import pytest

from sidecar.config import parse
from sidecar.errors import NotFoundError
from sidecar.gateway.core import Gateway
from sidecar.gateway.messages import InferRequest, InputTensor
from sidecar.gateway.tracefile import TraceWriter
from tests.e2e.support import onnx_times, variant


def serve(folder, path, *, rate: str = "1") -> tuple[Gateway, TraceWriter]:
    document = {
        "models": [
            {"name": name, "variants": [variant("v", folder / "m.onnx")]} for name in ("m", "n")
        ],
        "gateway": {"trace": {"file": str(path)}},
    }
    gateway = Gateway(parse(document, base_dir=folder))
    gateway.load_all()
    gateway.trace.prepare({"trace_rate": [rate]}, "")()
    writer = TraceWriter(gateway.config.gateway.trace, gateway)
    writer.start()
    return gateway, writer


def infer(gateway: Gateway, number: int, model: str = "m") -> None:
    tensor = InputTensor("x", "FP32", (1, 1), raw=np.ones((1, 1), np.float32).tobytes())
    request = InferRequest(model, "", "", f"r{number}", [tensor], nbytes=9, traceparent="00-a")
    gateway.infer(request)


@pytest.fixture
def folder(tmp_path):
    onnx_times(tmp_path, 2, "m.onnx")
    return tmp_path


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_line_says(folder):
    path = folder / "trace.jsonl"
    gateway, writer = serve(folder, path)
    infer(gateway, 1)
    with pytest.raises(NotFoundError):
        infer(gateway, 2, "unknown")
    writer.stop()
    gateway.close()
    [line] = lines(path)
    assert line["request_id"] == "r1"
    assert line["traceparent"] == "00-a"
    assert line["variant"] == "m:1/v"
    assert line["outcome"] == "OK"
    assert line["bytes_in"] == 9
    assert 0 < line["execute_ns"] < line["end_ns"] - line["start_ns"]


def test_rate_count_and_level_choose(folder):
    path = folder / "trace.jsonl"
    gateway, writer = serve(folder, path, rate="3")
    gateway.trace.prepare({"trace_level": ["OFF"]}, "n")()
    for number in range(9):
        infer(gateway, number)
        infer(gateway, 100 + number, "n")
    writer.stop()
    assert [line["request_id"] for line in lines(path)] == ["r0", "r3", "r6"]
    path.unlink()
    gateway.trace.prepare({"trace_rate": ["1"], "trace_count": ["2"]}, "")()
    writer = TraceWriter(gateway.config.gateway.trace, gateway)
    writer.start()
    for number in range(5):
        infer(gateway, number)
    writer.stop()
    gateway.close()
    assert [line["request_id"] for line in lines(path)] == ["r0", "r1"]


def _write_many(folder: str, path: str, worker: int) -> None:
    from pathlib import Path

    gateway, writer = serve(Path(folder), Path(path))
    for number in range(600):
        infer(gateway, worker * 1000 + number)
    writer.stop()
    gateway.close()
    os._exit(0)


def test_lines_of_several_workers_stay_whole(folder):
    path = folder / "trace.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_write_many, args=(str(folder), str(path), n)) for n in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ids = [line["request_id"] for line in lines(path)]
    assert len(ids) == len(set(ids)) == 1800


def test_a_file_that_cannot_be_written_stops_tracing_only(folder):
    gateway, writer = serve(folder, folder / "no" / "trace.jsonl")
    infer(gateway, 1)
    writer.stop()
    infer(gateway, 2)
    gateway.close()
