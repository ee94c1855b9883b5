"""What the server says of its models, over a real socket, from real models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sidecar
from sidecar.gateway import describe
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import model_config_pb2 as config_pb
from tests.gateway.served import (
    Served,
    configure,
    make_models,
    mlp_request,
    model,
    request,
    serving,
    variant,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    versions = model(
        "mlp", variant("mlp", "1", "previous"), variant("mlp", "2"),
        variant("mlp", "2", "fallback", name="spare"),
        batching={"max_size": 8, "max_delay_ms": 2, "max_queue": 50},
    )  # fmt: skip
    with serving(configure(folder, versions, model("many"), model("text", cache=True))) as up:
        yield up


def test_the_server(served: Served) -> None:
    metadata = served.call("ServerMetadata")
    assert metadata.version == sidecar.__version__
    assert {"classification", "statistics", "binary_tensor_data"} <= set(metadata.extensions)
    assert served.call("ServerLive").live
    assert served.call("ServerReady").ready
    served.gateway.draining = True
    assert not served.call("ServerReady").ready
    assert served.call("ServerLive").live
    served.gateway.draining = False


def test_metadata_has_the_artifacts_shapes(served: Served) -> None:
    metadata = served.call("ModelMetadata", name="mlp")
    assert sorted(metadata.versions) == ["1", "2"]
    assert metadata.platform == "onnxruntime_onnx"
    [x], [y] = metadata.inputs, metadata.outputs
    assert (x.name, x.datatype, list(x.shape)) == ("x", "FP32", [-1, 32])
    assert (y.name, y.datatype, list(y.shape)) == ("y", "FP32", [-1, 10])
    many = served.call("ModelMetadata", name="many")
    assert [(o.name, list(o.shape)) for o in many.outputs] == [
        ("sum", [-1, 2]), ("same", [-1, 2]), ("weight", [3]), ("total", []),
    ]  # fmt: skip


def test_config_leaves_the_batch_dimension_out(served: Served) -> None:
    config = served.call("ModelConfig", name="mlp").config
    assert config.max_batch_size == 1024
    [x], [y] = config.input, config.output
    assert (x.data_type, list(x.dims)) == (config_pb.TYPE_FP32, [32])
    assert list(y.dims) == [10]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 50
    assert config.parameters["variant"].string_value == "2/onnx"
    assert config.instance_group[0].kind == config_pb.ModelInstanceGroup.KIND_CPU
    assert not config.response_cache.enable


def test_config_of_a_model_without_a_batch_dimension(served: Served) -> None:
    config = served.call("ModelConfig", name="many").config
    assert config.max_batch_size == 0
    assert [list(i.dims) for i in config.input] == [[-1, 2], [-1, 2]]
    assert not config.HasField("dynamic_batching")
    text = served.call("ModelConfig", name="text").config
    assert text.response_cache.enable
    assert text.input[0].data_type == config_pb.TYPE_STRING


def statistics(served: Served, name: str, version: str = "") -> list[pb.ModelStatistics]:
    return list(served.call("ModelStatistics", name=name, version=version).model_stats)


def test_statistics_are_what_happened(served: Served) -> None:
    x = np.array([b"a", b"b"], object)
    for _ in range(3):
        served.infer(request("text", {"x": x}))
    bad = request("text", {"x": np.zeros(1, np.float32)})
    with pytest.raises(Exception, match="BYTES"):
        served.infer(bad)
    [row] = statistics(served, "text")
    assert (row.name, row.version) == ("text", "1")
    stats = row.inference_stats
    assert (stats.success.count, stats.fail.count) == (3, 1)
    assert (stats.cache_miss.count, stats.cache_hit.count) == (1, 2)
    assert row.execution_count == 1
    assert stats.success.ns > stats.compute_infer.ns > 0
    assert row.last_inference > 1_600_000_000_000
    assert row.memory_usage[0].type == "CPU"
    assert row.memory_usage[0].byte_size > 0


def test_statistics_of_batches(served: Served) -> None:
    for rows in (3, 3, 5):
        served.infer(mlp_request(rows))
    [row] = [r for r in statistics(served, "mlp", "2") if r.inference_count]
    assert row.inference_count == 11
    assert row.execution_count == 3
    sizes = {b.batch_size: b.compute_infer.count for b in row.batch_stats}
    assert sizes == {3: 2, 5: 1}


def test_statistics_of_one_version_or_all(served: Served) -> None:
    served.infer(mlp_request(model_version="1"))
    assert {row.version for row in statistics(served, "mlp")} == {"1", "2"}
    [old] = statistics(served, "mlp", "1")
    assert old.inference_count == 1
    assert {row.name for row in statistics(served, "")} == {"mlp", "many", "text"}


def index(served: Served, *, ready: bool = False) -> dict[tuple[str, str], str]:
    models = served.call("RepositoryIndex", ready=ready).models
    return {(m.name, m.version): m.state for m in models}


def test_the_index_lists_what_can_be_asked_for(served: Served) -> None:
    """The previous version too: a request that names it is answered."""
    assert index(served) == {
        ("mlp", "1"): "READY", ("mlp", "2"): "READY", ("many", "1"): "READY",
        ("text", "1"): "READY",
    }  # fmt: skip
    served.call("RepositoryModelUnload", model_name="mlp")
    assert index(served)["mlp", "2"] == "UNAVAILABLE"
    assert ("mlp", "2") not in index(served, ready=True)
    assert ("many", "1") in index(served, ready=True)
    assert not served.call("ModelReady", name="mlp").ready
    served.call("RepositoryModelLoad", model_name="mlp")
    assert index(served)["mlp", "1"] == "READY"


def test_what_changes_state() -> None:
    """What may be held behind a token; reading never is."""
    changing = {
        method
        for method in (
            "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
            "SystemSharedMemoryStatus", "SystemSharedMemoryRegister",
            "SystemSharedMemoryUnregister", "TraceSetting", "LogSettings",
        )
        if describe.changes_state(method, getattr(pb, f"{method}Request")())
    }  # fmt: skip
    assert changing == {
        "RepositoryModelLoad", "RepositoryModelUnload", "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
    }  # fmt: skip
    request_ = pb.TraceSettingRequest()
    request_.settings["trace_level"].value.append("OFF")
    assert describe.changes_state("TraceSetting", request_)
