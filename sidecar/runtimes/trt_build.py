"""From an ONNX file to an engine, cached. Needs no GPU with TensorRT for RTX.

TensorRT 11 is strongly typed, and TensorRT 10 is used the same way: tensors have the precision the
ONNX file gives them. There are no FP16 or INT8 builder flags; a faster precision is made where the
model is exported, and is then the same on every runtime.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.clock import SystemClock
from sidecar.errors import ArtifactError, SidecarError
from sidecar.runtimes.base import TensorSpec
from sidecar.runtimes.signature import batch_limit
from sidecar.runtimes.trt_cache import EngineFile, EngineStore
from sidecar.runtimes.trt_cuda import Cuda
from sidecar.runtimes.trt_library import Library, Messages, TensorRTSettings, load_library
from sidecar.runtimes.trt_onnx import OnnxModel, read_model
from sidecar.runtimes.trt_probe import DriverError, NoDeviceError, Probe, probe
from sidecar.runtimes.trt_profiles import Profile, ShapeGuard, resolve_profiles

log = logging.getLogger(__name__)

#: Bumped when this module builds a different engine from the same settings.
_RECIPE = 1


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """One step of a build: TensorRT's own phases, nested (``"Building engine"`` is the outermost).

    Attributes:
        phase: its name.
        parent: the phase it belongs to; empty for the outermost.
        step: steps done.
        steps: steps it has.
    """

    phase: str
    parent: str
    step: int
    steps: int


#: Called from TensorRT's threads; raising cancels the build and comes out of ``build_engine``.
Progress = Callable[[BuildProgress], None]


def device_index(device: str) -> int:
    """The N of ``cuda:N`` (``cuda`` is ``cuda:0``).

    Raises:
        SidecarError: the device is ``cpu``.
    """
    if device == "cpu":
        message = "TensorRT executes on NVIDIA GPUs only: set device to cuda:0 (or another index), "
        message += "or choose the runtime kind onnxruntime for the CPU"
        raise SidecarError(message)
    _, _, index = device.partition(":")
    return int(index or 0)


def build_engine(
    onnx_path: Path, settings: TensorRTSettings, progress: Progress | None = None
) -> EngineFile:
    """Return the engine of an ONNX file, from the cache or built now.

    Two processes that ask for the same engine build it once: the second waits for the first.

    Args:
        onnx_path: the model; ``settings.path`` is not looked at.
        settings: the runtime's; its kind says which library builds.
        progress: told of each step, if something is built.

    Raises:
        ArtifactError: the file is no ONNX, uses operators TensorRT lacks (each is named), or has
            dynamic shapes without fitting profiles.
        NoDeviceError: the kind ``tensorrt`` builds on the GPU it will run on, and there is none.
        MissingExtraError: the library is not installed.
        SidecarError: TensorRT could not build it, or the cache cannot be written.
    """
    index = device_index(settings.device)
    library = load_library(settings.kind)
    found = probe()
    target = build_target(library, found, index)
    model = read_model(onnx_path)
    store = EngineStore(
        settings.cache_dir or onnx_path.parent,
        onnx_path.stem,
        cache_key(model, settings, library, target),
    )
    # Looked up before the lock as well: a cache that came with the image is often read-only.
    entry = store.find()
    if entry is not None:
        return entry
    with store.lock():
        entry = store.find()
        if entry is not None:
            return entry
        with ExitStack() as stack:
            if not library.builds_without_gpu:
                stack.enter_context(_on_device(index))  # it times kernels on the current device
            return _build(library, model, settings, target, store, progress)


def build_target(library: Library, found: Probe, index: int) -> str:
    """Which GPUs an engine built here runs on: part of the cache key.

    TensorRT tunes for the GPU at hand. TensorRT for RTX builds one engine for compute capability
    8.0 and above and finishes it on the user's GPU; only Turing (7.5) must be asked for by name.

    Raises:
        NoDeviceError: the library must build on a GPU, and there is none.
    """
    device = found.device(index)
    if library.builds_without_gpu:
        return "sm_75" if device is not None and device.capability == (7, 5) else "portable"
    if device is None:
        message = (
            f"TensorRT builds engines on the GPU they will run on, and cuda:{index} cannot be "
            f"used: {found.why_not(index)}. Build where the GPU is, or use the kind tensorrt_rtx, "
            "which builds without one"
        )
        raise NoDeviceError(message)
    major, minor = device.capability
    return f"{device.name} sm_{major}{minor}"


def cache_key(model: OnnxModel, settings: TensorRTSettings, library: Library, target: str) -> str:
    """A sha256 over everything an engine depends on, and nothing else.

    Contexts, warm-up and the device's index are not in it: they change no byte of the engine.
    """
    profiles = [
        {name: [list(r.min), list(r.opt), list(r.max)] for name, r in sorted(profile.items())}
        for profile in settings.profiles
    ]
    tree = {
        "recipe": _RECIPE,
        "onnx": model.sha256,
        "kind": library.kind,
        "version": library.version,
        "target": target,
        "profiles": profiles,
        "max_batch_size": None if profiles else settings.max_batch_size,
        "workspace_bytes": settings.workspace_bytes,
        "optimization_level": settings.optimization_level,
        "tf32": settings.tf32,
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _on_device(index: int) -> Cuda:
    try:
        cuda = Cuda(index)
        cuda.activate()
    except (DriverError, OSError) as error:
        message = f"cuda:{index} cannot be used: {error}"
        raise NoDeviceError(message) from error
    return cuda


def _build(
    library: Library,
    model: OnnxModel,
    settings: TensorRTSettings,
    target: str,
    store: EngineStore,
    progress: Progress | None,
) -> EngineFile:
    clock = SystemClock()
    started_ns = clock.monotonic_ns()
    log.info("building %s for %s with %s", store.engine, target, library.title)
    with library.sink.capture() as messages:
        library.register_plugins()
        builder = _builder(library, messages)
        # Kept until the engine is serialized: a parser owns the weights of the network it fills.
        network, parser = _parse(library, builder, model)
        inputs, outputs = _describe(library, network, model.path)
        profiles = resolve_profiles(
            inputs, settings.profiles, settings.max_batch_size, str(model.path)
        )
        # Said here already: the machine that builds may never execute.
        limit = ShapeGuard(profiles).batch_max() if profiles else None
        batch_limit(model.path.name, inputs, outputs, settings.max_batch_size, limit=limit)
        config = _configure(library, builder, settings, target, profiles, messages)
        monitor = _monitor(library, progress)
        if monitor is not None:
            config.progress_monitor = monitor
        serialized = builder.build_serialized_network(network, config)
        if monitor is not None and monitor.error is not None:
            raise monitor.error
        if serialized is None:
            message = f"{library.title} could not build an engine of {model.path}: "
            raise SidecarError(message + messages.text())
        model.check_unchanged()
        entry = EngineFile(
            path=store.engine, key=store.key, onnx_sha256=model.sha256, engine_sha256="",
            kind=library.kind, version=library.version, target=target,
            inputs=inputs, outputs=outputs,
            profiles=tuple({n: [list(s) for s in r] for n, r in p.items()} for p in profiles),
            build_ms=(clock.monotonic_ns() - started_ns) / 1e6, built=True,
        )  # fmt: skip
        entry = store.put(memoryview(serialized), entry)
        del serialized, config, parser, network, builder
    log.info("built %s in %.1f s", store.engine, entry.build_ms / 1e3)
    return entry


def _builder(library: Library, messages: Messages) -> Any:
    try:
        return library.module.Builder(library.logger)
    except (TypeError, RuntimeError) as error:  # pybind11's words for "the library gave no object"
        message = f"{library.title} cannot build on this machine: {messages.text(str(error))}"
        raise SidecarError(message) from error


# --- parsing -------------------------------------------------------------------------------------


def _parse(library: Library, builder: Any, model: OnnxModel) -> tuple[Any, Any]:
    trt = library.module
    # TensorRT 11 is always strongly typed and ignores the flag; 10 needs to be told.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(model.path)):
        raise ArtifactError(_parse_message(library, parser, model))
    if network.num_outputs == 0:
        message = f"{model.path} has no outputs: it is not a whole ONNX model; export it again"
        raise ArtifactError(message)
    return network, parser


def _parse_message(library: Library, parser: Any, model: OnnxModel) -> str:
    problems: list[str] = []
    named: set[tuple[str, str]] = set()
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator, name = error.node_operator(), error.node_name()
        named.add((operator, name))
        problems.append(f"{_subject(error, operator, name)}: {_reason(error.desc())}")
    # The parser stops at the first node that fails while it is imported; whoever mends a model
    # wants to know the others too. Custom domains may be plugins, which only the parser can tell.
    for node in model.nodes:
        standard = node.domain in {"", "ai.onnx"}
        if standard and (node.operator, node.name) not in named:
            named.add((node.operator, node.name))
            if not parser.supports_operator(node.operator):
                what = f"operator {node.operator} (node {node.name or 'without a name'!r})"
                problems.append(f"{what}: not supported")
    lines = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
    return f"{library.title} {library.version} cannot use {model.path}\n{lines}"


def _subject(error: Any, operator: str, name: str) -> str:
    if operator:
        return f"operator {operator} (node {name or error.node()!r})"
    # Errors about a graph's input carry its name where others carry the source file.
    if error.func() == "importInput":
        return f"input {error.file()!r}"
    return "the model"


def _reason(text: str) -> str:
    """The readable part of ``Assertion failed: condition && "reason"``."""
    quoted = re.search(r'"([^"]+)"\s*$', text.strip())
    if quoted:
        return quoted.group(1)
    text = text.removeprefix("Assertion failed: ").strip()
    return "not supported" if text in {"", "false"} else text


def _describe(
    library: Library, network: Any, path: Path
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for tensor in inputs:
        if tensor.is_shape_tensor:
            message = (
                f"{path}: the values of the input {tensor.name!r} decide shapes inside the model "
                "(a TensorRT shape input), which is not served; make it a constant at export"
            )
            raise ArtifactError(message)
    outputs = [network.get_output(index) for index in range(network.num_outputs)]

    def specs(tensors: Sequence[Any], side: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                tensor.name,
                library.datatype(tensor.dtype, f"the {side} {tensor.name!r}", str(path)),
                tuple(int(size) for size in tensor.shape),
            )
            for tensor in tensors
        )

    return specs(inputs, "input"), specs(outputs, "output")


# --- configuration -------------------------------------------------------------------------------


def _configure(
    library: Library,
    builder: Any,
    settings: TensorRTSettings,
    target: str,
    profiles: Sequence[Profile],
    messages: Messages,
) -> Any:
    trt = library.module
    config = builder.create_builder_config()
    # Each is set either way: TensorRT's own defaults differ between versions (TF32 is on).
    (config.set_flag if settings.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if target == "sm_75":
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    for index, ranges in enumerate(profiles):
        profile = builder.create_optimization_profile()
        for name, (low, middle, high) in ranges.items():
            profile.set_shape(name, low, middle, high)
        if config.add_optimization_profile(profile) < 0:
            message = f"{library.title} refuses profiles[{index}]: {messages.text()}"
            raise ArtifactError(message)
    return config


def _monitor(library: Library, progress: Progress | None) -> Any:
    if progress is None:
        return None

    base: Any = library.module.IProgressMonitor
    tell: Progress = progress  # mypy forgets the check above inside the class

    class Monitor(base):  # type: ignore[misc] # the base is untyped
        """Tells ``progress``; what that raises is kept, since C++ cannot carry it."""

        def __init__(self) -> None:
            base.__init__(self)
            self.error: BaseException | None = None
            self._phases: dict[str, tuple[str, int]] = {}

        def _tell(self, phase: str, step: int) -> bool:
            parent, steps = self._phases.get(phase, ("", 0))
            if self.error is None:
                try:
                    tell(BuildProgress(phase, parent, step, steps))
                except BaseException as error:  # noqa: BLE001 - raised again by _build
                    self.error = error
            return self.error is None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (parent_phase or "", num_steps)
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()
