"""Execution: a bounded pool of contexts over one engine, each with its stream and buffers.

An execution context serves one request at a time; the engine's weights are shared by all. A
request takes a context from the pool (and waits for one when all are busy), copies in, enqueues,
copies out, and gives it back: nothing is allocated once the largest shapes have been seen.
"""

from __future__ import annotations

import ctypes
import logging
import math
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from sidecar.errors import ArtifactError, ExecutionError
from sidecar.protocol.datatypes import BY_NAME
from sidecar.runtimes.base import Array, Placement, Runtime, Signature, TensorSpec
from sidecar.runtimes.trt_cuda import Buffer, Cuda, DeviceMemoryError
from sidecar.runtimes.trt_library import Library
from sidecar.runtimes.trt_probe import DriverError, NoDeviceError
from sidecar.runtimes.trt_profiles import ShapeGuard

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class EngineTensors:
    """What a loaded engine takes and gives, and the shapes it was built for."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    guard: ShapeGuard


def describe_engine(library: Library, engine: Any, where: str) -> EngineTensors:
    """Read an engine's tensors.

    Raises:
        ArtifactError: one of them cannot be served (a dtype the protocol lacks, a shape input, a
            vectorized memory format).
    """
    trt = library.module
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        tensor = f"the {'input' if is_input else 'output'} {name!r}"
        datatype = library.datatype(engine.get_tensor_dtype(name), tensor, where)
        on_host = engine.get_tensor_location(name) != trt.TensorLocation.DEVICE
        if on_host or engine.is_shape_inference_io(name):
            message = f"{where}: {tensor} carries shapes (a TensorRT shape tensor), which is not "
            message += "served; build the engine from a model where they are constants"
            raise ArtifactError(message)
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            message = (
                f"{where}: {tensor} has the memory format {engine.get_tensor_format_desc(name)}"
            )
            message += "; build the engine with linear inputs and outputs"
            raise ArtifactError(message)
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        (inputs if is_input else outputs).append(TensorSpec(name, datatype, shape))
    profiles = tuple(
        {spec.name: _ranges(engine, spec.name, index) for spec in inputs}
        for index in range(engine.num_optimization_profiles)
    )
    return EngineTensors(tuple(inputs), tuple(outputs), ShapeGuard(profiles))


def _ranges(
    engine: Any, name: str, profile: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    low, middle, high = (
        tuple(int(size) for size in shape)
        for shape in engine.get_tensor_profile_shape(name, profile)
    )
    return low, middle, high


def _make_allocator(library: Library, buffer: Buffer) -> Any:
    """An allocator for one output whose size only the execution itself knows."""

    base: Any = library.module.IOutputAllocator

    class Allocator(base):  # type: ignore[misc] # the base is untyped
        """Called by TensorRT during ``execute_async_v3``; exceptions must not leave it."""

        def __init__(self) -> None:
            base.__init__(self)
            self.shape: tuple[int, ...] | None = None
            self.error: Exception | None = None

        def reallocate_output(self, _name: str, _memory: int, size: int, _alignment: int) -> int:
            try:
                return buffer.reserve_device(size)
            except (DriverError, DeviceMemoryError) as error:
                self.error = error
                return 0  # TensorRT then fails the execution

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, _stream: int
        ) -> int:
            # The stream is idle up to here (each execution ends with a synchronization), so the
            # old memory is free to go without waiting.
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, _name: str, shape: Any) -> None:
            self.shape = tuple(int(size) for size in shape)

    return Allocator()


class _RefusedError(Exception):
    """A call of the execution context answered "no"; its reason is among the library's messages."""


class ExecutionSlot:
    """One execution context, its stream and its buffers: what one request uses at a time."""

    def __init__(self, library: Library, cuda: Cuda, engine: Any, tensors: EngineTensors) -> None:
        """Create the context; the calling thread must have activated ``cuda``.

        Raises:
            NoDeviceError: the GPU has no room for it, or refuses.
        """
        self._library = library
        self._cuda = cuda
        self._tensors = tensors
        self._datatypes = {
            spec.name: BY_NAME[spec.datatype] for spec in (*tensors.inputs, *tensors.outputs)
        }
        self._profile = 0
        self._allocators: dict[str, Any] = {}
        with library.sink.capture() as messages:
            self._context = engine.create_execution_context()
            if self._context is None:
                message = f"{library.title} cannot create an execution context: {messages.text()}"
                raise NoDeviceError(message)
        self._stream = cuda.create_stream()
        self._buffers = {name: Buffer(cuda) for name in self._datatypes}

    def outputs_follow_batch(self) -> bool:
        """Whether each output has as many rows as the inputs have, where both are dynamic.

        An output of [-1, 6] may be a list of detections: joined requests could not be told apart.
        Asked of the context with the largest shapes, since the engine's own shapes say only -1.
        """
        shapes = {name: high for name, (_, _, high) in self._tensors.guard.profiles[0].items()}
        rows = {shape[0] for shape in shapes.values() if shape}
        for name, shape in shapes.items():
            self._context.set_input_shape(name, shape)
        outputs = [self._context.get_tensor_shape(spec.name) for spec in self._tensors.outputs]
        return len(rows) == 1 and all(tuple(shape)[:1] == tuple(rows) for shape in outputs)

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """Execute once; arguments and result as ``Runtime.infer`` documents.

        Raises:
            InvalidRequestError: no profile allows these shapes.
            ExecutionError: the GPU or the library failed.
        """
        profile = self._tensors.guard.choose({name: a.shape for name, a in inputs.items()})
        with self._library.sink.capture() as messages:
            try:
                self._cuda.activate()
                self._upload(profile, inputs)
                shapes = self._execute()
                return self._download(shapes, wanted)
            except (DriverError, DeviceMemoryError, _RefusedError) as error:
                self._settle()
                log.error(
                    "%s failed: %s; %s", self._library.title, error, messages.text("no message")
                )
                message = "the model failed on this input: TensorRT's reason is in the server's log"
                if isinstance(error, DeviceMemoryError):
                    message = "the GPU has no memory left for an input or output of this size"
                raise ExecutionError(message) from error

    def _require(self, answer: bool, what: str) -> None:
        if not answer:
            raise _RefusedError(what)

    def _upload(self, profile: int, inputs: Mapping[str, Array]) -> None:
        if profile != self._profile:
            switched = self._context.set_optimization_profile_async(profile, self._stream)
            self._require(switched, f"switching to profile {profile}")
            self._profile = profile
        for name, array in inputs.items():
            buffer = self._buffers[name]
            device = buffer.reserve_device(array.nbytes)
            if array.nbytes:
                host = buffer.reserve_host(array.nbytes)
                ctypes.memmove(host, array.ctypes.data, array.nbytes)
                self._cuda.upload(device, host, array.nbytes, self._stream)
            accepted = self._context.set_input_shape(name, array.shape)
            self._require(accepted, f"set_input_shape({name!r}, {array.shape})")
            self._require(
                self._context.set_tensor_address(name, device), f"set_tensor_address({name!r})"
            )

    def _execute(self) -> dict[str, tuple[int, ...]]:
        """Enqueue, and return each output's shape; outputs lie in their device buffers."""
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as error:
            message = f"infer_shapes: {error}"
            raise _RefusedError(message) from error
        self._require(not unknown, f"infer_shapes: nothing says the shape of {unknown}")
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in self._tensors.outputs:
            shape = tuple(int(size) for size in self._context.get_tensor_shape(spec.name))
            if -1 in shape or spec.name in self._allocators:
                # Once an output had its size from the execution it always has: it depends on data.
                self._prepare_allocator(spec.name)
                continue
            shapes[spec.name] = shape
            device = self._buffers[spec.name].reserve_device(self._size(spec.name, shape))
            self._require(
                self._context.set_tensor_address(spec.name, device),
                f"set_tensor_address({spec.name!r})",
            )
        enqueued = self._context.execute_async_v3(self._stream)
        for name, allocator in self._allocators.items():
            if allocator.error is not None:
                raise allocator.error
            # By contract the shape is known when the call above returns.
            self._require(not enqueued or allocator.shape is not None, f"the shape of {name!r}")
            shapes[name] = allocator.shape
        self._require(enqueued, "execute_async_v3")
        return shapes

    def _prepare_allocator(self, name: str) -> None:
        allocator = self._allocators.get(name)
        if allocator is None:
            allocator = _make_allocator(self._library, self._buffers[name])
            accepted = self._context.set_output_allocator(name, allocator)
            self._require(accepted, f"set_output_allocator({name!r})")
            self._allocators[name] = allocator
        allocator.shape = allocator.error = None

    def _size(self, name: str, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self._datatypes[name].item_bytes

    def _download(
        self, shapes: Mapping[str, tuple[int, ...]], wanted: Sequence[str]
    ) -> list[Array]:
        for name in dict.fromkeys(wanted):
            size = self._size(name, shapes[name])
            if size:
                buffer = self._buffers[name]
                self._cuda.download(buffer.reserve_host(size), buffer.device, size, self._stream)
        self._cuda.synchronize(self._stream)
        arrays = []
        for name in wanted:
            array = np.empty(shapes[name], self._datatypes[name].numpy)
            ctypes.memmove(array.ctypes.data, self._buffers[name].host, array.nbytes)
            arrays.append(array)
        return arrays

    def _settle(self) -> None:
        """Leave nothing running that still reads or writes the buffers."""
        try:
            self._cuda.synchronize(self._stream)
        except DriverError as error:
            # A fault of a kernel stays with the CUDA context: every later call reports it too.
            log.debug("the stream ended with %s", error)

    def close(self) -> None:
        """Free everything; ``cuda`` must be active in the calling thread."""
        self._context = None
        self._allocators.clear()
        for buffer in self._buffers.values():
            buffer.close()
        self._cuda.destroy_stream(self._stream)


def create_slots(
    library: Library, cuda: Cuda, engine: Any, tensors: EngineTensors, count: int
) -> list[ExecutionSlot]:
    """Create the pool's contexts; ``cuda`` is active in the calling thread.

    Raises:
        NoDeviceError: there is no room for so many.
    """
    slots: list[ExecutionSlot] = []
    try:
        for _ in range(count):
            slots.append(ExecutionSlot(library, cuda, engine, tensors))  # noqa: PERF401
    except BaseException:
        for slot in slots:
            slot.close()
        raise
    return slots


class TensorRTRuntime(Runtime):
    """One engine on one GPU."""

    waits: ClassVar[bool] = True

    def __init__(
        self,
        cuda: Cuda,
        slots: Sequence[ExecutionSlot],
        keep: Sequence[Any],
        guard: ShapeGuard,
        signature: Signature,
        placement: Placement,
    ) -> None:
        """Take over what was loaded; ``close`` frees it.

        Args:
            cuda: the GPU's context.
            slots: the pool, at least one.
            keep: the engine, and after it whatever must outlive it (TensorRT's runtime).
            guard: the engine's profiles.
            signature: as the request's path checks requests.
            placement: as shown.
        """
        super().__init__(signature, placement)
        self._cuda = cuda
        self._keep = list(keep)
        self._guard = guard
        self._contexts = len(slots)
        # Last in, first out: the context used last has its buffers grown and its kernels loaded.
        self._idle: queue.LifoQueue[ExecutionSlot] = queue.LifoQueue()
        for slot in slots:
            self._idle.put(slot)
        self._closed = False

    @override
    def example_inputs(self, batch: int = 1) -> dict[str, Array]:
        shapes = self._guard.example(batch)
        return {
            spec.name: np.zeros(shapes[spec.name], BY_NAME[spec.datatype].numpy)
            for spec in self.signature.inputs
        }

    @override
    def infer_impl(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        slot = self._idle.get()
        try:
            return slot.run(inputs, outputs)
        finally:
            self._idle.put(slot)

    @override
    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        slots = []
        try:
            for _ in range(self._contexts):
                slots.append(self._idle.get(timeout=_CLOSE_TIMEOUT_S))  # noqa: PERF401
        except queue.Empty:
            # Memory a kernel still writes must not be freed; the process is about to end anyway.
            log.warning("an execution does not end; its GPU memory is left to the process's end")
            return
        try:
            self._cuda.activate()
            for slot in slots:
                slot.close()
            while self._keep:  # each after what points into it: contexts, engine, runtime
                del self._keep[0]
            self._cuda.close()
        except DriverError as error:
            log.warning("the GPU's memory could not be given back: %s", error)
