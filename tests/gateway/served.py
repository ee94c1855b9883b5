"""A gateway with real small models behind a real gRPC socket, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from onnx import helper
from typing_extensions import override

from sidecar.config import SidecarConfig, parse
from sidecar.gateway.core import Gateway
from sidecar.gateway.grpc_server import GrpcServers
from sidecar.gateway.registry import Copy, Entry
from sidecar.protocol.datatypes import BY_NAME, of_array
from sidecar.protocol.encode import raw_bytes
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import Array, Placement, Runtime, Signature, TensorSpec
from tests.support import models

SERVICE = "/inference.GRPCInferenceService"


def make_models(folder: Path) -> None:
    """``mlp``, ``lookup`` (fails on an index over 3), ``many``, ``fixed`` [2,3], ``any`` [?,?]."""
    models.onnx_mlp(folder)
    models.onnx_lookup(folder)
    models.onnx_many(folder)
    for name, datatype, shape in (
        ("fixed", "FP32", [2, 3]), ("any", "FP32", ["a", "b"]), ("text", "BYTES", ["batch"]),
    ):  # fmt: skip
        node = helper.make_node("Identity", ["x"], ["y"])
        model = models.onnx_model([node], [("x", datatype, shape)], [("y", datatype, shape)])
        models.save(folder, f"{name}.onnx", model)


def variant(model: str, version: str = "1", *roles: str, name: str = "onnx") -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "roles": list(roles or ("serving",)),
        "runtime": {"kind": "onnxruntime", "path": f"{model}.onnx"},
    }


def model(name: str, *variants: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": name, "variants": list(variants) or [variant(name)], **settings}


def configure(folder: Path, *models_: dict[str, Any], **gateway: Any) -> SidecarConfig:
    grpc_settings = {"address": "127.0.0.1:0"} | gateway.pop("grpc", {})
    tree = {"models": list(models_), "gateway": {"grpc": grpc_settings, "http": None} | gateway}
    return parse(tree, base_dir=folder, check_files=True)


@contextmanager
def serving(config: SidecarConfig) -> Iterator[Served]:
    """Load and listen; at the end, nothing may be left in flight."""
    gateway = Gateway(config)
    gateway.load_all()
    servers = GrpcServers(gateway, config.gateway)
    address = servers.start({"grpc": "127.0.0.1:0"})["grpc"]
    try:
        # A client of its own for each server: a shared subchannel would hide a cut connection.
        with grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            yield Served(gateway, channel)
    finally:
        servers.stop(5)
        gateway.close()
    assert gateway.admission.idle()
    assert gateway.admission.bytes == 0
    gateway.page.close()  # not by a collection, in the midst of another test


class Served:
    """The gateway, and a client's connection to it."""

    def __init__(self, gateway: Gateway, channel: grpc.Channel) -> None:
        self.gateway = gateway
        self.channel = channel
        self._infer = channel.unary_unary(f"{SERVICE}/ModelInfer")

    def infer_bytes(self, body: bytes, **call: Any) -> pb.ModelInferResponse:
        answer = self._infer(body, timeout=call.pop("timeout", 60), **call)
        return pb.ModelInferResponse.FromString(answer)

    def infer(self, request: pb.ModelInferRequest, **call: Any) -> pb.ModelInferResponse:
        return self.infer_bytes(request.SerializeToString(), **call)

    def call(self, method: str, **fields: Any) -> Any:
        request = getattr(pb, f"{method}Request")(**fields)
        answer = self.channel.unary_unary(f"{SERVICE}/{method}")(
            request.SerializeToString(), timeout=60
        )
        return getattr(pb, f"{method}Response").FromString(answer)

    def stream(self, bodies: Iterator[bytes], **call: Any) -> Any:
        return self.channel.stream_stream(
            f"{SERVICE}/ModelStreamInfer",
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(bodies, timeout=call.pop("timeout", 60), **call)

    def put(self, name: str, infer: Any, **options: Any) -> None:
        """Replace what serves a model by a runtime that runs a function."""
        entry = self.gateway.registry.entry(name)
        [config] = [v for v in entry.config.variants if "serving" in v.roles]
        old = entry.serving[config.version]
        runtime = FunctionRuntime(infer, old.runtime.signature, **options)
        copy = Copy(entry.config, config, runtime, old.slot)
        serving = {config.version: copy}
        self.gateway.registry.commit(
            Entry(entry.config, "READY", "", serving, entry.fallback, config.version)
        )


class FunctionRuntime(Runtime):
    """A runtime like any other, whose model is a function of its inputs."""

    def __init__(
        self,
        function: Callable[[Mapping[str, Array]], list[Array]],
        signature: Signature | None = None,
    ) -> None:
        spec = (TensorSpec("x", "FP32", (-1, 3)),)
        signature = signature or Signature(spec, (TensorSpec("y", "FP32", (-1, 3)),), 8, "p", "b")
        super().__init__(signature, Placement("cpu", 0))
        self._function = function

    @override
    def infer_impl(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        return self._function(inputs)


def request(
    model_name: str, inputs: Mapping[str, np.ndarray], **names: str
) -> pb.ModelInferRequest:
    """A right request, raw."""

    message = pb.ModelInferRequest(model_name=model_name, **names)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=of_array(array).name, shape=array.shape)
        message.raw_input_contents.append(bytes(raw_bytes(array)))
    return message


def mlp_request(rows: int = 1, **names: str) -> pb.ModelInferRequest:
    x = np.arange(rows * 32, dtype=np.float32).reshape(rows, 32) / 100
    return request("mlp", {"x": x}, **names)


def output(answer: pb.ModelInferResponse, name: str) -> np.ndarray:
    """One numeric output of an answer."""

    for index, tensor in enumerate(answer.outputs):
        if tensor.name == name:
            raw = answer.raw_output_contents[index]
            return np.frombuffer(raw, BY_NAME[tensor.datatype].numpy).reshape(tensor.shape)
    raise KeyError(name)
