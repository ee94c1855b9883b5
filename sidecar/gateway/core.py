"""The core of a worker: everything a request needs, behind no transport.

``Gateway`` implements ``api.Backend``; ``servicer.py`` (gRPC) and ``http.py`` stand in front of it.
"""

from __future__ import annotations

import hmac
import logging
import os
import threading
from collections.abc import Callable
from concurrent import futures
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import sidecar
from sidecar.clock import Clock, SystemClock
from sidecar.config_plain import read_token
from sidecar.errors import (
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from sidecar.gateway import describe, path, record
from sidecar.gateway.admission import Admission
from sidecar.gateway.batcher import Batcher
from sidecar.gateway.cache import ResponseCache
from sidecar.gateway.changes import Changes, Control, LocalControl
from sidecar.gateway.messages import InferRequest, InferResponse
from sidecar.gateway.pages import Page, SlotSum, create_page, sum_slot
from sidecar.gateway.registry import Copy, Registry
from sidecar.gateway.settings import LogSettings, TraceSettings
from sidecar.gateway.shm import SharedMemory
from sidecar.gateway.timing import RequestIds, TimingBuffer
from sidecar.gateway.upstreams import Upstreams
from sidecar.gateway.workpool import WorkPool
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import model_config_pb2 as config_pb

if TYPE_CHECKING:
    from sidecar.config import ModelConfig, SidecarConfig
    from sidecar.gateway.tap import Tap
    from sidecar.gateway.tracing import Tracing

logger = logging.getLogger(__name__)

#: Executions of one variant that may hang behind its fallback before it is not tried any more.
_BULKHEAD_THREADS = 8


#: More threads than this at work in one process slow each other down on Python's lock, unless the
#: model is large; then `pool.running` says more.
_RUNNING_MAX = 8


def default_running(cores: int, workers: int) -> int:
    """How many requests a worker works on at once: its share of the cores.

    One worker alone takes two even on one core: while one thread is in the runtime, which has
    released Python's lock, another one decodes.
    """
    share = -(-cores // workers)
    return min(max(share, 2 if workers == 1 else 1), _RUNNING_MAX)


class _Bulkhead:
    """A few threads for a variant that may hang; full means failed, at once."""

    def __init__(self, name: str) -> None:
        self._executor = futures.ThreadPoolExecutor(_BULKHEAD_THREADS, f"bulkhead-{name}")
        self._free = threading.Semaphore(_BULKHEAD_THREADS)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> futures.Future[Any]:
        if not self._free.acquire(blocking=False):
            text = "every execution that was allowed to wait is still running"
            raise OverloadedError(text)
        future = self._executor.submit(work, *arguments)
        future.add_done_callback(lambda _: self._free.release())
        return future


class Gateway:
    """One worker's data plane.

    Args:
        config: the whole tree.
        pages: this worker's page first, then the others' (for statistics); made here when absent.
        clock: injected in tests.
        cores: of this machine, for how many requests are worked on at once.
    """

    def __init__(
        self,
        config: SidecarConfig,
        pages: list[Page] | None = None,
        *,
        clock: Clock | None = None,
        cores: int = 2,
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        if pages is None:
            slots = sum(len(model.variants) for model in config.models)
            descriptor = create_page(slots)
            pages = [Page(descriptor, slots, owner=True)]
            os.close(descriptor)  # the mapping keeps the page
        self.pages = pages
        self.page = pages[0]
        gateway = config.gateway
        running = gateway.pool.running or default_running(cores, gateway.workers)
        self.pool = WorkPool(running, gateway.pool.threads)
        self.admission = Admission(gateway.admission, self.page)
        self.count_failure = partial(record.refused, self)
        self.shm = SharedMemory(gateway.shared_memory)
        caches = any(model.cache for model in config.models) and gateway.cache.max_bytes > 0
        self.cache = ResponseCache(gateway.cache.max_bytes) if caches else None
        self.timings = TimingBuffer(gateway.trace.buffer_records, self.page)
        self.request_ids = RequestIds()
        self.trace = TraceSettings(gateway.trace, [model.name for model in config.models])
        self.logs = LogSettings(config.log)
        self._token = read_token(gateway.admin)
        self.registry = Registry(config, self._make_batcher, self._token)
        self.sticky = self.registry.sticky
        self.changes = Changes(self)
        self.control: Control = LocalControl(self.changes)
        self.draining = False
        self._bulkheads: dict[str, _Bulkhead] = {}
        self._own_admin_listener = gateway.admin.address is not None
        self._upstreams = Upstreams(self.registry)
        self.tap: Tap | None = None  # set by whoever knows where the monitor is, before it serves
        self.tracing: Tracing | None = None  # the same

    # --- life -----------------------------------------------------------------------------------

    def load_all(self, skip: frozenset[str] = frozenset()) -> None:
        """Load every model of the config, except those that are unloaded on request.

        Raises:
            SidecarError: the first that cannot be loaded.
        """
        for model in self.config.models:
            if model.name in skip:
                self.registry.unload(model.name)
            else:
                self.registry.commit(self.registry.prepare(model.name))

    def _make_batcher(self, model: ModelConfig, copy: Copy) -> Batcher | None:
        batching = model.batching
        limit = copy.max_batch_size
        if batching.max_size <= 1 or copy.forwards:
            return None  # another server does its own batching
        if limit == 0:
            logger.warning(
                "%s has no batch dimension, so that its requests are not batched", copy.key
            )
            return None
        page, slot, runtime = self.page, copy.slot, copy.runtime

        def on_batch(
            rows: int, requests: int, input_ns: int, infer_ns: int, output_ns: int
        ) -> None:
            del requests
            page.record_batch(slot, rows, input_ns, infer_ns, output_ns)

        return Batcher(
            runtime.infer,
            max_size=min(batching.max_size, limit),
            max_delay_ms=batching.max_delay_ms,
            max_queue=batching.max_queue,
            pool=self.pool,
            on_batch=on_batch,
        )

    def bulkhead(self, copy: Copy) -> _Bulkhead:
        """The threads on which a variant with a time limit runs."""
        bulkhead = self._bulkheads.get(copy.key)
        if bulkhead is None:
            bulkhead = self._bulkheads.setdefault(copy.key, _Bulkhead(copy.key))
        return bulkhead

    def forget_cached(self, model: str) -> None:
        """Drop a model's cached answers: another copy may answer otherwise."""
        if self.cache is not None:
            self.cache.clear(f"{model}:")

    def check_upstreams(self) -> None:
        """Ask the servers behind remote variants whether they are ready."""
        self._upstreams.check()

    def close(self) -> None:
        """Free everything; no request is under way any more."""
        if self.tap is not None:
            self.tap.close()
        self.registry.clear()
        self.pool.close()

    # --- api.Backend ----------------------------------------------------------------------------

    def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request as arrays (its encoding is not timed)."""
        return path.infer(self, request, lambda response: (response, 0))

    def serve(
        self,
        request: InferRequest,
        encode: path.Encode[path.Encoded],
        is_cancelled: path.IsCancelled | None = None,
    ) -> path.Encoded:
        """Answer one request in the transport's form; its encoding is timed with it."""
        return path.infer(self, request, encode, is_cancelled)

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` on the work pool."""
        self.pool.put(work)

    def admit(self, nbytes: int, *, requests: int = 1) -> AbstractContextManager[None]:
        """Count a request and its body as in flight."""
        return self.admission.admit(nbytes, requests=requests)

    def server_live(self) -> bool:
        """The process answers."""
        return True

    def server_ready(self) -> bool:
        """Every model is loaded, the servers behind remotes are ready, no drain has begun."""
        return not self.draining and self.registry.ready() and self._upstreams.all_ready()

    def server_metadata(self) -> dict[str, object]:
        """Name, version, extensions."""
        extensions = list(describe.EXTENSIONS)
        return {"name": "model-sidecar", "version": sidecar.__version__, "extensions": extensions}

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a model answers; an unknown one is an error."""
        entry = self.registry.entry(name)
        if not entry.serving:
            return False
        _, copy = self.registry.find(name, version)
        if not self._upstreams.ready(copy):
            fallback = path.fallback_for(entry, copy, version)
            return fallback is not None and self._upstreams.ready(fallback)
        return entry.state == "READY"

    def model_metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        """Inputs, outputs, versions."""
        return describe.metadata(*self.registry.find(name, version))

    def model_config(self, name: str, version: str) -> config_pb.ModelConfig:
        """The model's configuration as clients read it."""
        return describe.model_config(*self.registry.find(name, version))

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Counts and times over all workers."""
        names = [name] if name else list(self.registry.entries)
        response = pb.ModelStatisticsResponse()
        for each in names:
            entry = self.registry.entry(each)
            # A row a version, as clients expect: a fallback's answers count for its version.
            rows: dict[str, list[Copy]] = {}
            for copy in entry.copies:
                rows.setdefault(copy.version, []).append(copy)
            if version and version not in rows:
                self.registry.find(each, version)  # raises, naming the versions there are
            for each_version, copies in rows.items():
                if version in ("", each_version):
                    counts = self.counts(*(copy.slot for copy in copies))
                    describe.add_statistics(response, copies[0], counts)
        return response

    def counts(self, *slots: int) -> SlotSum:
        """The counters of one variant, or of several together, summed over the workers."""
        return sum_slot(self.pages, *slots)

    # --- control calls --------------------------------------------------------------------------

    def admin(self, method: str, request: Any, token: str | None, *, trusted: bool = False) -> Any:
        """Run a control call; ``trusted``: it came by the admin listener."""
        if method.startswith("CudaSharedMemory"):
            return _no_cuda_regions(method, request)
        handler = getattr(self, f"_admin_{_SNAKE[method]}")
        if describe.changes_state(method, request):
            self._authorize(token, trusted=trusted)
        return handler(request)

    def _authorize(self, token: str | None, *, trusted: bool) -> None:
        if self._own_admin_listener and not trusted:
            text = "this call changes the server's state; it is taken by the admin listener only"
            raise PermissionDeniedError(text)
        if self._token is not None and not hmac.compare_digest(
            (token or "").encode(), self._token.encode()
        ):
            text = "this call changes the server's state; it needs `authorization: Bearer TOKEN`"
            raise (UnauthenticatedError if token is None else PermissionDeniedError)(text)

    def _admin_repository_index(self, request: Any) -> Any:
        return describe.repository_index(self.registry, ready_only=request.ready)

    def _admin_load(self, request: Any) -> Any:
        for parameter in request.parameters:
            text = f"load parameter '{parameter}' is not offered: models come from the config"
            raise UnsupportedError(text)
        self._require_model(request.model_name)
        self.control.apply({"op": "load", "model": request.model_name})
        return pb.RepositoryModelLoadResponse()

    def _admin_unload(self, request: Any) -> Any:
        for parameter in request.parameters:
            if parameter != "unload_dependents":  # there are none, so that it changes nothing
                text = f"unknown unload parameter '{parameter}'"
                raise InvalidRequestError(text)
        self._require_model(request.model_name)
        self.control.apply({"op": "unload", "model": request.model_name})
        return pb.RepositoryModelUnloadResponse()

    def _require_model(self, name: str) -> None:
        self.registry.entry(name)
        if self.draining:
            text = "the server is shutting down"
            raise UnavailableError(text)

    def _admin_shm_status(self, request: Any) -> Any:
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self.shm.status(request.name):
            response.regions[region.name].CopyFrom(
                pb.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name, key=region.key, offset=region.offset,
                    byte_size=region.byte_size,
                )
            )  # fmt: skip
        return response

    def _admin_shm_register(self, request: Any) -> Any:
        self.control.apply(
            {
                "op": "shm_register",
                "name": request.name,
                "key": request.key,
                "offset": request.offset,
                "byte_size": request.byte_size,
            }
        )
        return pb.SystemSharedMemoryRegisterResponse()

    def _admin_shm_unregister(self, request: Any) -> Any:
        self.control.apply({"op": "shm_unregister", "name": request.name})
        return pb.SystemSharedMemoryUnregisterResponse()

    def _admin_trace(self, request: Any) -> Any:
        if request.settings:
            settings = {name: list(value.value) for name, value in request.settings.items()}
            self.control.apply({"op": "trace", "settings": settings, "model": request.model_name})
        response = pb.TraceSettingResponse()
        for name, value in self.trace.get(request.model_name).items():
            response.settings[name].value.extend(value)
        return response

    def _admin_log(self, request: Any) -> Any:
        if request.settings:
            settings = {}
            for name, value in request.settings.items():
                choice = value.WhichOneof("parameter_choice")
                settings[name] = getattr(value, choice) if choice else None
            self.control.apply({"op": "log", "settings": settings})
        response = pb.LogSettingsResponse()
        for name, value in self.logs.get().items():
            field = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
            setattr(response.settings[name], field, value)
        return response


def _no_cuda_regions(method: str, request: Any) -> Any:
    """CUDA shared memory is not offered: there are no regions, and none can be registered.

    Clients unregister everything before they begin (perf_analyzer does); that nothing is left to
    unregister is true, so it is no error.
    """
    if method == "CudaSharedMemoryStatus" and not request.name:
        return pb.CudaSharedMemoryStatusResponse()
    if method == "CudaSharedMemoryUnregister" and not request.name:
        return pb.CudaSharedMemoryUnregisterResponse()
    text = "CUDA shared memory is not offered yet; use system shared memory"
    raise UnsupportedError(text)


_SNAKE = {
    "RepositoryIndex": "repository_index",
    "RepositoryModelLoad": "load",
    "RepositoryModelUnload": "unload",
    "SystemSharedMemoryStatus": "shm_status",
    "SystemSharedMemoryRegister": "shm_register",
    "SystemSharedMemoryUnregister": "shm_unregister",
    "TraceSetting": "trace",
    "LogSettings": "log",
}
