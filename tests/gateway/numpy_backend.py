"""A small real core over numpy, for tests of transports: models, admission, a pool of threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from sidecar.errors import (
    CancelledError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnsupportedError,
)
from sidecar.gateway.messages import InferRequest, InferResponse, OutputTensor
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.json_codec import ONLY_INPUT
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import model_config_pb2 as config_pb


def read_tensor(tensor: Any) -> np.ndarray:
    """The array of an input that came raw or typed."""
    datatype = BY_NAME[tensor.datatype]
    if tensor.array is not None:
        return tensor.array.reshape(tensor.shape)
    raw = bytes(tensor.raw)
    if datatype.item_bytes:
        if len(raw) != datatype.item_bytes * int(np.prod(tensor.shape)):
            message = f"input {tensor.name!r} has {len(raw)} bytes"
            raise InvalidRequestError(message)
        return np.frombuffer(raw, datatype.numpy).reshape(tensor.shape)
    elements = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        elements.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(tensor.shape)


class NumpyBackend:
    """Serves ``identity``: each input comes back as an output of the same name.

    ``gate`` holds executions back until it is set; ``calls`` records admin calls.
    """

    def __init__(
        self, *, max_requests: int = 64, max_bytes: int = 2**26, token: str | None = None
    ) -> None:
        self.tap = None
        self.tracing = None
        self.sticky: dict[str, str] = {}
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="test-work")
        self._lock = threading.Lock()
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.in_flight = self.bytes_in_flight = 0
        self.gate = threading.Event()
        self.loads = threading.Event()
        self.token = token
        self.reset()

    def reset(self) -> None:
        """Forget what was seen, and let everything through."""
        self.ready = True
        self.gate.set()
        self.loads.set()
        self.entered = threading.Semaphore(0)
        self.requests: deque[InferRequest] = deque(maxlen=100)
        self.calls: list[tuple[str, Any]] = []
        self.cancelled = 0
        self.uncounted: deque[tuple[str, str, int]] = deque(maxlen=100)
        self.failure: BaseException | None = None
        self.bytes_peak = 0

    def close(self) -> None:
        self.gate.set()
        self.loads.set()
        self.pool.shutdown(wait=True)

    def submit(self, work: Callable[[], None]) -> None:
        self.pool.submit(work)

    @contextmanager
    def admit(self, nbytes: int, *, requests: int = 1) -> Iterator[None]:
        with self._lock:
            if self.in_flight + requests > self._max_requests:
                message = "too many requests in flight; try again later"
                raise OverloadedError(message)
            if self.bytes_in_flight + nbytes > self._max_bytes:
                message = "too many bytes in flight; try again later"
                raise OverloadedError(message)
            self.in_flight += requests
            self.bytes_in_flight += nbytes
            self.bytes_peak = max(self.bytes_peak, self.bytes_in_flight)
        try:
            yield
        finally:
            with self._lock:
                self.in_flight -= requests
                self.bytes_in_flight -= nbytes

    def count_failure(
        self, transport: str, error: BaseException, ns: int = 0, *_: object, **__: object
    ) -> None:
        self.uncounted.append((transport, type(error).__name__, ns))

    def serve(self, request: InferRequest, encode: Any, is_cancelled: Any = None) -> Any:
        """Answer; while the gate is closed, ask whether the client has gone away."""
        self.requests.append(request)
        self.entered.release()
        deadline = time.monotonic() + 60
        while not self.gate.wait(0.005):
            assert time.monotonic() < deadline
            if is_cancelled is not None and is_cancelled():
                self.cancelled += 1
                message = "the client went away"
                raise CancelledError(message)
        if self.failure is not None:
            raise self.failure
        return encode(self._identity(request))[0]

    def _identity(self, request: InferRequest) -> InferResponse:
        self._find(request.model_name, request.model_version)
        wanted = {output.name for output in request.outputs}
        outputs = []
        for tensor in request.inputs:
            if tensor.name == ONLY_INPUT:
                raw = np.frombuffer(tensor.raw, "<f4")
                outputs.append(OutputTensor("x", "FP32", raw.shape, raw))
            elif not wanted or tensor.name in wanted:
                array = read_tensor(tensor)
                outputs.append(OutputTensor(tensor.name, tensor.datatype, tensor.shape, array))
        return InferResponse(request.model_name, "1", request.id, outputs)

    def _find(self, name: str, version: str) -> None:
        if name != "identity":
            message = f"no model is called {name!r}"
            raise NotFoundError(message)
        if version not in {"", "1"}:
            message = f"model {name!r} has no version {version!r}"
            raise NotFoundError(message)

    def server_live(self) -> bool:
        return True

    def server_ready(self) -> bool:
        return self.ready

    def server_metadata(self) -> dict[str, object]:
        return {"name": "sidecar", "version": "0", "extensions": ["binary_tensor_data"]}

    def model_ready(self, name: str, version: str) -> bool:
        self._find(name, version)
        return self.ready

    def model_metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        self._find(name, version)
        tensor = pb.ModelMetadataResponse.TensorMetadata(name="x", datatype="FP32", shape=[-1, 4])
        return pb.ModelMetadataResponse(
            name=name, versions=["1"], platform="numpy", inputs=[tensor], outputs=[tensor]
        )

    def model_config(self, name: str, version: str) -> config_pb.ModelConfig:
        self._find(name, version)
        return config_pb.ModelConfig(
            name=name,
            max_batch_size=8,
            input=[config_pb.ModelInput(name="x", data_type=config_pb.TYPE_FP32, dims=[-1, 4])],
            output=[config_pb.ModelOutput(name="x", data_type=config_pb.TYPE_FP32, dims=[-1, 4])],
        )

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        if name:
            self._find(name, version)
        statistics = pb.ModelStatistics(name="identity", version="1", inference_count=2**40)
        statistics.inference_stats.success.count = len(self.requests)
        return pb.ModelStatisticsResponse(model_stats=[statistics])

    def admin(self, method: str, request: Any, token: str | None) -> Any:
        if self.token is not None and token != self.token:
            message = "this call needs the admin token"
            raise (UnauthenticatedError if token is None else PermissionDeniedError)(message)
        self.calls.append((method, request))
        assert self.loads.wait(30)
        if method.startswith("Cuda"):
            message = "CUDA shared memory is not supported"
            raise UnsupportedError(message)
        response = getattr(pb, f"{method}Response")()
        if method == "RepositoryIndex":
            response.models.add(name="identity", version="1", state="READY")
        if method == "SystemSharedMemoryStatus":
            for region in ("b", "a"):
                response.regions[region].name = region
                response.regions[region].byte_size = 2**33
        if method == "TraceSetting":
            response.settings["trace_level"].value.append("OFF")
            response.settings["trace_rate"].value.append("1000")
        if method == "LogSettings":
            response.settings["log_info"].bool_param = True
            response.settings["log_verbose_level"].uint32_param = 0
            response.settings["log_file"].string_param = ""
        return response
