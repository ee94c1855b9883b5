"""Late labels through a real `sidecar serve`, over gRPC and out of a file; and a candidate that is
run beside the version that serves."""

from __future__ import annotations

import contextlib
import json

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.label_intake import Label
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import monitor_pb2 as mpb
from tests.cli.conftest import sidecar
from tests.e2e.support import LOCAL, SERVICE, running, until
from tests.e2e.test_monitor import MONITOR, is_connected, monitor_of, perturbed
from tests.support import models

pytestmark = pytest.mark.timeout(900)
TOKEN = "let me in"


@pytest.fixture
def config(tmp_path):
    mlp = models.onnx_mlp(tmp_path)
    worse = perturbed(tmp_path, mlp)

    def variant(version, roles, path):
        runtime = {"kind": "onnxruntime", "path": path.name}
        return {"version": version, "name": "onnx", "roles": roles, "runtime": runtime}

    tree = {
        "models": [
            {
                "name": "mlp", "labels": {},
                "validation": {"outputs": {"y": {"kind": "class_scores"}}},
                "rollback": {"calibration": {"rate": 1.0}},
                "variants": [
                    variant("1", ["previous"], mlp), variant("2", ["serving"], worse),
                    variant("3", ["candidate"], mlp),
                ],
            },
            {"name": "other", "variants": [variant("1", ["serving"], mlp)]},
        ],
        "gateway": {
            "grpc": {"address": LOCAL}, "http": None, "drain": {"delay_s": 0, "timeout_s": 2},
            "admin": {"token": TOKEN},
        },
        "monitor": {
            "grpc": LOCAL, "flush_s": 0.2, "mirror": {"sample_rate": 1.0, "cpu_share": 1.0},
        },
    }  # fmt: skip
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def ask(address, request_id, x):
    """One request; the answer's classes."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        request = pb.ModelInferRequest(model_name="mlp")
        request.inputs.add(name="x", datatype="FP32").shape.extend(x.shape)
        request.raw_input_contents.append(x.tobytes())
        answer = call(request, timeout=30, metadata=[("x-request-id", request_id)])
    return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(-1, 10).argmax(axis=1)


def cells(address, metric, sides=("mlp:2/onnx", "mlp:1/onnx")):
    """Cells of a metric of a pair, over outputs, policies and blocks."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{MONITOR}/GetEvidence",
            request_serializer=mpb.GetEvidenceRequest.SerializeToString,
            response_deserializer=mpb.GetEvidenceResponse.FromString,
        )
        rows = call(mpb.GetEvidenceRequest(model="mlp", page_size=10_000), timeout=30).rows
    total: dict[str, float] = {}
    for row in rows:
        if (row.key.candidate, row.key.baseline, row.key.metric) == (*sides, metric):
            for name, count in row.cells.items():
                total[name] = total.get(name, 0) + count
    return total


def test_labels_of_live_requests_count_for_both_versions(config, tmp_path):
    rng = np.random.default_rng(4)
    with running(config) as server, contextlib.ExitStack() as stack:
        monitor = monitor_of(server)
        is_connected(server)
        gateway = server.addresses["grpc"]
        # What the previous version says is the truth: it has the weights that the other lost.
        weights = models.mlp_weights()
        asked = {f"r{n}": rng.normal(size=(1 + n % 3, 32)).astype(np.float32) for n in range(60)}
        truth = {
            name: (
                np.maximum(x @ weights["a.weight"].T + weights["a.bias"], 0)
                @ weights["b.weight"].T + weights["b.bias"]
            ).argmax(axis=1).tolist()
            for name, x in asked.items()
        }  # fmt: skip
        client = stack.enter_context(MonitorClient(monitor, timeout_s=30))
        early = Label("mlp", "r0", tuple(truth["r0"]))
        with pytest.raises(MonitorCallError, match="authorization"):
            client.put_labels("mlp", [early], timeout_s=30)
        with pytest.raises(MonitorCallError, match="other takes no labels"):
            client.put_labels("other", [early], token=TOKEN, timeout_s=30)
        with pytest.raises(MonitorCallError, match="there is mlp, other"):
            client.put_labels("none", [early], token=TOKEN, timeout_s=30)
        assert client.put_labels("mlp", [early], token=TOKEN, timeout_s=30).early == 1
        said = {name: ask(gateway, name, x).tolist() for name, x in asked.items()}
        wrong = sum(int(s != t) for n in asked for s, t in zip(said[n], truth[n], strict=True))
        rows = sum(map(len, truth.values()))
        assert 0 < wrong < rows
        # The candidate, which answers nobody, is run beside the version that serves; of a batch its
        # pairs are counted last.
        candidate = "mlp:3/onnx", "mlp:2/onnx"
        until(lambda: sum(cells(monitor, "flip", candidate).values()) > 59.5, "all were run on all")
        assert cells(monitor, "error")["n00"] == 60
        assert cells(monitor, "error", candidate)["n00"] == 60
        assert sum(cells(monitor, "slow", candidate).values()) == 40  # less the warm-up
        changed = cells(monitor, "flip")
        assert changed["n10"] == cells(monitor, "flip", candidate)["n10"] > 0
        # Each request is calibrated for one of the pairs, so both versions before are run twice.
        calibrated = [
            cells(monitor, "calibration", (key, key)).get("pairs", 0)
            for key in ("mlp:1/onnx", "mlp:2/onnx")
        ]
        assert sum(calibrated) == 40
        assert min(calibrated) > 5
        until(lambda: cells(monitor, "accuracy"), "the early label has found its request")

        table = {
            "request_id": [name for name, of in truth.items() for _ in of],
            "row": [at for of in truth.values() for at in range(len(of))],
            "label": [label for of in truth.values() for label in of],
        }
        file = tmp_path / "labels.parquet"
        pq.write_table(pa.table(table), file)
        arguments = ("labels", monitor, str(file), "--model", "mlp", "--token", TOKEN)
        first = sidecar(*arguments, "--json")
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout) == {
            "matched": 59, "early": 0, "repeated": 1, "refused": {},
        }  # fmt: skip
        again = sidecar(*arguments)
        assert again.returncode == 0, again.stderr
        assert "60  repeated" in again.stdout.replace("   ", "  ")
        found = until(
            lambda: sum(cells(monitor, "accuracy").values()) >= rows and cells(monitor, "accuracy"),
            "all labels have counted",
        )
        assert found == {"n11": 0, "n10": wrong, "n01": 0, "n00": rows - wrong}
        mirrored = {"n11": 0, "n10": 0, "n01": wrong, "n00": rows - wrong}
        assert cells(monitor, "accuracy", candidate) == mirrored
        assert cells(monitor, "served_accuracy", ("mlp:2/onnx", "")) == {
            "k": rows - wrong,
            "n": rows,
        }
        server.signal()
        assert server.wait() == 0
