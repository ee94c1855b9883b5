"""TensorRT, and TensorRT for RTX: engines, and ONNX files built into engines on first start.

- ``trt_probe``: which GPUs there are, asked of the driver before TensorRT is touched
- ``trt_library``: the two modules, their log, their dtypes
- ``trt_onnx``, ``trt_profiles``, ``trt_cache``, ``trt_build``: ONNX file → engine, cached
- ``trt_cuda``, ``trt_execute``: device memory, and requests on a pool of contexts

``tensorrt_rtx`` builds engines on any machine; executing needs an NVIDIA GPU and its driver.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sidecar.errors import ArtifactError, SidecarError
from sidecar.runtimes.artifacts import DESCRIPTIONS, sniff
from sidecar.runtimes.base import Placement, Runtime, Signature
from sidecar.runtimes.signature import batch_limit
from sidecar.runtimes.trt_build import BuildProgress, Progress, build_engine, device_index
from sidecar.runtimes.trt_cache import EngineFile
from sidecar.runtimes.trt_cuda import Cuda
from sidecar.runtimes.trt_execute import (
    EngineTensors,
    TensorRTRuntime,
    create_slots,
    describe_engine,
)
from sidecar.runtimes.trt_library import Library, TensorRTSettings, load_library
from sidecar.runtimes.trt_probe import DriverError, GpuDevice, NoDeviceError, probe

if TYPE_CHECKING:
    from sidecar.config import VariantConfig

ENGINE_SUFFIXES = (".engine", ".plan", ".trt")

_MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}
_HEADER = struct.Struct("<4sIQQ")  # magic, zero, header format, bytes of the whole engine
_KNOWN_HEADER_FORMAT = 2


def build(variant: VariantConfig) -> Runtime:
    """Load one copy of a variant of the kind ``tensorrt`` or ``tensorrt_rtx``.

    An ONNX file is built (or found in the cache) first, on machines without a GPU as well, so that
    a build there is not lost.

    Raises:
        ArtifactError: the file is no engine and no ONNX, or cannot be served; see ``build_engine``.
        NoDeviceError: there is no driver, no such GPU, or one the library does not support.
        MissingExtraError: the library is not installed.
    """
    if variant.runtime.kind not in _MAGIC:
        message = f"the kind {variant.runtime.kind} is not TensorRT"
        raise SidecarError(message)
    settings = cast("TensorRTSettings", variant.runtime)
    index = device_index(settings.device)
    suffix = settings.path.suffix.lower()
    if suffix == ".onnx":
        engine = build_engine(settings.path, settings)
        path, done = engine.path, f"engine built and cached at {engine.path}, but "
    elif suffix in ENGINE_SUFFIXES:
        check_engine_file(settings.path, settings.kind)
        path, done = settings.path, ""
    else:
        message = (
            f"{settings.path}: TensorRT takes .onnx, or an engine ({', '.join(ENGINE_SUFFIXES)})"
        )
        raise ArtifactError(message)
    library = load_library(settings.kind)
    found = probe()
    device = found.device(index)
    if device is None:
        message = (
            f"{done}{settings.path.name} cannot be executed on cuda:{index}: "
            f"{found.why_not(index)}. {library.title} needs an NVIDIA GPU and its driver (in a "
            "container, the NVIDIA container runtime); without one use the kind onnxruntime"
        )
        raise NoDeviceError(message)
    try:
        return _load(library, path, device, settings)
    except (NoDeviceError, DriverError, OSError) as error:
        message = f"{done}{settings.path.name} cannot be executed on {device}: {error}"
        raise NoDeviceError(message) from error


def check_engine_file(path: Path, kind: str) -> None:
    """Find out without a GPU what can be found out about an engine file.

    Raises:
        ArtifactError: it is missing, empty, cut off, or no engine of this library.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
        size = path.stat().st_size
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise ArtifactError(message) from None
    if not head:
        message = f"{path} is empty; build the engine again"
        raise ArtifactError(message)
    for other, magic in _MAGIC.items():
        if other != kind and head.startswith(magic):
            message = f"{path} was built by the other TensorRT: set the runtime's kind to {other}"
            raise ArtifactError(message)
    if not head.startswith(_MAGIC[kind]):
        found = sniff(path)
        # TensorRT for RTX is held to its mark: it checks this very one. TensorRT wraps some of its
        # engines (version-compatible ones), and says itself what it does not take.
        if kind == "tensorrt_rtx" or found not in {"unknown", "tensorrt_engine"}:
            what = DESCRIPTIONS[found][0]
            message = f"{path} is not an engine but {what}; an ONNX file must end in .onnx"
            raise ArtifactError(message)
    if kind != "tensorrt_rtx":
        return
    whole = _HEADER.unpack(head) if len(head) == _HEADER.size else None
    if whole is None or (whole[2] == _KNOWN_HEADER_FORMAT and whole[3] > size):
        expected = "more" if whole is None else str(whole[3])
        message = (
            f"{path} was cut off: it has {size} bytes, the engine has {expected}; copy it again"
        )
        raise ArtifactError(message)


def _load(
    library: Library, path: Path, device: GpuDevice, settings: TensorRTSettings
) -> TensorRTRuntime:
    cuda = Cuda(device.index)
    try:
        cuda.activate()  # TensorRT puts the engine where the thread's current context is
        engine, runtime = _deserialize(library, path, device)
        tensors = describe_engine(library, engine, str(path))
        slots = create_slots(library, cuda, engine, tensors, settings.contexts)
        batched = slots[0].outputs_follow_batch()
        try:
            signature = _signature(path, tensors, settings, batched=batched)
        except ArtifactError:
            for slot in slots:
                slot.close()
            raise
        placement = _placement(library, engine, path, device, settings)
        keep = (engine, runtime)
        return TensorRTRuntime(cuda, slots, keep, tensors.guard, signature, placement)
    except BaseException:
        cuda.close()
        raise


def _deserialize(library: Library, path: Path, device: GpuDevice) -> tuple[Any, Any]:
    """Return the engine, and the runtime that must outlive it."""
    with library.sink.capture() as messages:
        library.register_plugins()
        try:
            runtime = library.module.Runtime(library.logger)
        except (TypeError, RuntimeError) as error:  # pybind11: the library gave no object
            raise NoDeviceError(messages.text(str(error))) from error
        if messages.errors:
            # The object may be a null pointer in disguise; touching it could end the process.
            raise NoDeviceError(messages.text())
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = runtime.deserialize_cuda_engine(data)
            if engine is not None:
                return engine, runtime
            reasons = _invalidity(library, runtime, data)
    reason = messages.text()
    message = f"{path} does not load on {device}: {', '.join([*sorted(reasons), reason])}"
    if reasons & {"MALFORMED_ENGINE", "VERSION_MISMATCH"} or "Serialization" in reason:
        message += f". Engines load only in the version that built them (here {library.version}); "
        raise ArtifactError(message + "build it again, or serve the ONNX file")
    raise NoDeviceError(message)


def _invalidity(library: Library, runtime: Any, data: mmap.mmap) -> set[str]:
    """Why the library finds an engine unfit, where it can tell (by flags in its header)."""
    if not hasattr(runtime, "get_engine_validity"):
        return set()
    _, flags = runtime.get_engine_validity(data[: runtime.engine_header_size])
    members = library.module.EngineInvalidityDiagnostics.__members__
    return {name for name, member in members.items() if int(flags) & int(member.value)}


def _signature(
    path: Path, tensors: EngineTensors, settings: TensorRTSettings, *, batched: bool
) -> Signature:
    inputs, outputs, limit = tensors.inputs, tensors.outputs, tensors.guard.batch_max()
    wanted = settings.max_batch_size
    batch = batch_limit(path.name, inputs, outputs, wanted, limit=limit) if batched else 0
    return Signature(
        inputs=tensors.inputs,
        outputs=tensors.outputs,
        max_batch_size=batch,
        platform="tensorrt_plan",
        backend="tensorrt",
    )


def _placement(
    library: Library, engine: Any, path: Path, device: GpuDevice, settings: TensorRTSettings
) -> Placement:
    # The file is mostly weights, which go to the device as they are; each context adds workspace.
    workspace = int(getattr(engine, "device_memory_size_v2", 0))
    return Placement(
        device=f"cuda:{device.index}",
        memory_bytes=path.stat().st_size + settings.contexts * workspace,
        details={
            "gpu": device.name,
            "library": f"{library.title} {library.version}",
            "contexts": str(settings.contexts),
            "profiles": str(engine.num_optimization_profiles),
        },
    )


__all__ = [
    "ENGINE_SUFFIXES", "BuildProgress", "EngineFile", "NoDeviceError", "Progress", "build",
    "build_engine", "check_engine_file", "probe",
]  # fmt: skip
