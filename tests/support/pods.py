"""Pods of the chart for tests: in front of a model container, or with the runtime within."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from sidecar.protocol.pb import inference_pb2 as pb
from tests.support import models
from tests.support.kubelet import Pod, render

#: What the model container listens on.
MODEL_PORT = 8001
#: A Kubernetes version that makes ``sidecar.form: auto`` this form.
KUBE = {"native": "1.30", "ordinary": "1.28"}
#: ``x`` of ``REQUEST``.
_VALUES = [0.5, 1.0, 1.5, 2.0]


def request() -> pb.ModelInferRequest:
    """One row of four, of the model that both pods serve."""
    message = pb.ModelInferRequest(model_name="here")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(np.array(_VALUES, np.float32).tobytes())
    return message


#: The same as JSON.
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": _VALUES}]}


def model_file(folder: Path) -> Path:
    """``y = 2 x``."""
    node = helper.make_node("Mul", ["x", "two"], ["y"])
    tensors = [("x", "FP32", ["batch", 4])], [("y", "FP32", ["batch", 4])]
    weights = [("two", np.array(2, np.float32))]
    return models.save(folder, "model.onnx", models.onnx_model([node], *tensors, weights))


def values(kind: str, **config: Any) -> dict[str, Any]:
    """The chart's values.

    Args:
        kind: ``remote``: a model container answers; ``onnx``: the sidecar does.
        config: merged over the sidecar's configuration, section by section.
    """
    runtime: dict[str, Any] = {"kind": "onnxruntime", "path": "/models/model.onnx"}
    if kind == "remote":
        runtime = {
            "kind": "remote", "address": f"127.0.0.1:{MODEL_PORT}", "model_name": "there",
            "connect_timeout_s": 600,
        }  # fmt: skip
    variant = {"name": "v", "version": "2", "roles": ["serving"], "runtime": runtime}
    gateway = {
        "grpc": {"address": "0.0.0.0:9000", "max_connection_age_s": 2},
        "drain": {"delay_s": 2, "timeout_s": 20},
    }
    tree: dict[str, Any] = {
        "models": [{"name": "here", "variants": [variant]}],
        "monitor": {"enabled": True},
        **{key: value for key, value in config.items() if key != "gateway"},
        "gateway": {**gateway, **config.get("gateway", {})},
    }
    made: dict[str, Any] = {"config": tree}
    if kind == "remote":
        made["model"] = {"image": "model:1", "ports": [{"containerPort": MODEL_PORT}]}
    else:
        made["models"] = {"source": "hostPath", "hostPath": {"path": "/srv/models"}}
        # A native sidecar stands beside a container; here it is one that does nothing.
        made["extraContainers"] = [
            {"name": "beside", "image": "beside:1", "command": ["sleep", "3600"]}
        ]
    return made


def pod(
    folder: Path, kind: str, form: str, *, chart: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None, images: Mapping[str, list[str]] | None = None,
    **settings: Any,
) -> Pod:  # fmt: skip
    """One pod of the chart, not started. ``settings``: of ``Pod``."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {**values(kind, **(config or {})), **(chart or {})}
    volumes = {}
    if kind == "onnx":
        volumes["sidecar-models"] = model_file(folder).parent
    known = {"model": upstream(), "beside": ["sleep", "3600"]}
    return Pod(
        render(tree, folder, kube=KUBE[form]), folder, images={**known, **(images or {})},
        volumes=volumes, **settings,
    )  # fmt: skip


def upstream() -> list[str]:
    """A model server that ends at SIGTERM, whatever it is doing."""
    return [sys.executable, "-m", "tests.support.upstream", f"{{{MODEL_PORT}}}"]
