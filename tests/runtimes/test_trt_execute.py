"""Probing, device memory and execution; on a software GPU, and on a real one where there is one."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

from sidecar.config import VariantConfig
from sidecar.config_runtime import WarmUpConfig
from sidecar.errors import ArtifactError, ExecutionError, InvalidRequestError
from sidecar.runtimes import build
from sidecar.runtimes.base import Placement, Signature, TensorSpec
from sidecar.runtimes.trt_cuda import Buffer, Cuda, DeviceMemoryError
from sidecar.runtimes.trt_execute import TensorRTRuntime, create_slots, describe_engine
from sidecar.runtimes.trt_library import load_library
from sidecar.runtimes.trt_probe import DriverError, probe
from sidecar.runtimes.trt_profiles import ShapeGuard
from sidecar.runtimes.warmup import warm_up
from tests.runtimes.trt_models import WEIGHTS, linear, why_not_executable
from tests.runtimes.trt_software import SoftwareEngine, compile_driver

# --- the probe -----------------------------------------------------------------------------------


def test_the_probe_says_why_there_is_no_gpu(tmp_path: Path):
    garbage = tmp_path / "libcuda.so.1"
    garbage.write_bytes(b"\x7fELF and then nothing")
    cases = {
        "libnosuchdriver.so.1": "no NVIDIA driver: libnosuchdriver.so.1: cannot open",
        str(garbage): "no NVIDIA driver: ",
        "libm.so.6": "libm.so.6 is not an NVIDIA driver: ",
        compile_driver(tmp_path, INIT_STATUS=100): "cuInit answered CUDA_ERROR_NO_DEVICE: no CUDA-"
        "capable device is detected (status 100)",
        compile_driver(tmp_path, INIT_STATUS=999): "cuInit answered an unknown status (status 999)",
        compile_driver(tmp_path, DEVICES=0): "it offers no GPU",
    }
    for library, reason in cases.items():
        found = probe(library)
        assert found.devices == ()
        assert reason in found.reason
        assert found.device(0) is None
        assert found.why_not(0) == found.reason


def test_the_probe_lists_the_gpus(tmp_path: Path):
    found = probe(compile_driver(tmp_path))

    assert found.reason == ""
    assert found.cuda_version == "13.1"
    assert [str(device) for device in found.devices] == [
        "cuda:0 (Software GPU, compute capability 8.9)",
        "cuda:1 (Software GPU, second, compute capability 8.9)",
    ]
    assert found.devices[0].memory_bytes == 24 << 30
    assert found.device(1) is found.devices[1]
    assert found.device(2) is None
    assert "there is no cuda:2; the driver offers cuda:0 (Software GPU" in found.why_not(2)


# --- device memory -------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> str:
    return compile_driver(tmp_path)


def _live(library: str) -> tuple[int, int]:
    driver = ctypes.CDLL(library)
    return driver.live_allocations(), driver.retained_contexts()


def test_bytes_survive_the_way_there_and_back(library: str):
    data = np.arange(1000, dtype=np.uint8)
    with Cuda(1, library) as cuda:
        stream = cuda.create_stream()
        there, back = Buffer(cuda), Buffer(cuda)
        device = there.reserve_device(data.nbytes)
        ctypes.memmove(there.reserve_host(data.nbytes), data.ctypes.data, data.nbytes)
        cuda.upload(device, there.host, data.nbytes, stream)
        cuda.download(back.reserve_host(data.nbytes), device, data.nbytes, stream)
        cuda.synchronize(stream)
        assert ctypes.string_at(back.host, data.nbytes) == data.tobytes()

        assert there.reserve_device(10) == device  # large enough already
        assert there.size == 1000
        assert back.reserve_device(0)  # an empty tensor has an address too
        with pytest.raises(DeviceMemoryError, match="no room for 33554432 bytes"):
            there.reserve_device(1 << 25)
        assert (there.device, there.size) == (0, 0)
        for buffer in (there, back):
            buffer.close()
        cuda.destroy_stream(stream)
    assert _live(library) == (0, 0)


def test_a_thread_without_the_context_gets_an_error(library: str):
    with Cuda(0, library) as cuda:
        answers: queue.Queue[Any] = queue.Queue()

        def other() -> None:
            try:
                cuda.allocate_device(1)
            except DriverError as error:
                answers.put(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert answers.get_nowait() == (
            "cuMemAlloc_v2 answered CUDA_ERROR_INVALID_CONTEXT (status 201)"
        )


# --- execution on the software GPU ---------------------------------------------------------------


@pytest.fixture
def engine() -> SoftwareEngine:
    return SoftwareEngine()


@pytest.fixture
def runtime(library: str, engine: SoftwareEngine) -> Iterator[TensorRTRuntime]:
    trt = load_library("tensorrt_rtx")
    cuda = Cuda(0, library)
    cuda.activate()
    tensors = describe_engine(trt, engine, "m.engine")
    signature = Signature(tensors.inputs, tensors.outputs, 64, "tensorrt_plan", "tensorrt")
    slots = create_slots(trt, cuda, engine, tensors, 2)
    place = Placement("cuda:0", 0)
    runtime = TensorRTRuntime(cuda, slots, (engine,), tensors.guard, signature, place)
    yield runtime
    runtime.close()
    runtime.close()
    assert _live(library) == (0, 0)


def _expected(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = np.maximum(x @ WEIGHTS, 0)
    return y, y[y > 0]


def test_tensors_come_from_the_engine(engine: SoftwareEngine):
    tensors = describe_engine(load_library("tensorrt_rtx"), engine, "m.engine")
    assert tensors.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert tensors.outputs == (TensorSpec("y", "FP32", (-1, 3)), TensorSpec("p", "FP32", (-1,)))
    assert tensors.guard.batch_max() == 64


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("is_shape_inference_io", True, "carries shapes"),
        ("get_tensor_format", None, "memory format row major"),
    ],
)
def test_tensors_that_cannot_be_served_are_refused(method: str, answer: Any, message: str):
    odd = type("Odd", (SoftwareEngine,), {method: lambda _self, _name: answer})()
    with pytest.raises(ArtifactError, match=message):
        describe_engine(load_library("tensorrt_rtx"), odd, "m.engine")


def test_outputs_of_every_size(runtime: TensorRTRuntime, engine: SoftwareEngine):
    generator = np.random.default_rng(1)
    for batch in (1, 4, 3, 64, 5, 2):
        x = generator.standard_normal((batch, 4)).astype(np.float32)
        x.flags.writeable = False
        y, positive = runtime.infer({"x": x})
        np.testing.assert_array_equal(y, _expected(x)[0])
        np.testing.assert_array_equal(positive, _expected(x)[1])
    # One context did it all (last in, first out), and switched only 3 → 64 and 5 → 2.
    assert sorted(context.switches for context in engine.contexts) == [0, 2]

    (only,) = runtime.infer({"x": np.zeros((1, 4), np.float32)}, ["p"])
    assert only.shape == (0,)
    positive, y, again = runtime.infer({"x": x}, ["p", "y", "p"])
    np.testing.assert_array_equal(y, _expected(x)[0])
    np.testing.assert_array_equal(positive, again)


def test_warm_up_gets_shapes_that_some_profile_takes(runtime: TensorRTRuntime):
    assert {batch: runtime.example_inputs(batch)["x"].shape for batch in (1, 4, 40, 99)} == {
        1: (1, 4), 4: (4, 4), 40: (40, 4), 99: (2, 4),
    }  # fmt: skip
    assert warm_up(runtime, WarmUpConfig(runs=2), label="m", largest_batch=64) == 4


def test_images_are_warmed_up_in_their_optimal_size():
    image = ((1, 3, 64, 64), (4, 3, 128, 128), (8, 3, 256, 256))
    guard = ShapeGuard(({"x": image, "scale": ((1,), (1,), (1,))},))
    assert guard.example(2) == {"x": (2, 3, 128, 128), "scale": (1,)}


def test_outputs_whose_rows_are_not_the_batch_forbid_joining(library: str, engine: SoftwareEngine):
    trt = load_library("tensorrt_rtx")
    alike = type("Alike", (SoftwareEngine,), {"tensors": {**engine.tensors}})()
    del alike.tensors["p"]
    alike.num_io_tensors = 2
    with Cuda(0, library) as cuda:
        for made, expected in ((engine, False), (alike, True)):
            (slot,) = create_slots(trt, cuda, made, describe_engine(trt, made, "m"), 1)
            assert slot.outputs_follow_batch() is expected
            slot.close()
    assert _live(library) == (0, 0)


def test_results_belong_to_the_caller(runtime: TensorRTRuntime):
    first = np.ones((2, 4), np.float32)
    y, _ = runtime.infer({"x": first})
    before = y.copy()
    runtime.infer({"x": -first})
    np.testing.assert_array_equal(y, before)
    y += 1  # writable


def test_a_shape_outside_every_profile_names_what_is_allowed(runtime: TensorRTRuntime):
    with pytest.raises(InvalidRequestError) as caught:
        runtime.infer({"x": np.zeros((65, 4), np.float32)})
    assert str(caught.value) == (
        "input 'x' has the shape [65, 4]; allowed is [1..4, 4] or [4..64, 4]"
    )
    assert runtime.infer({"x": np.zeros((64, 4), np.float32)})[0].shape == (64, 3)


def test_shapes_that_fit_no_profile_together():
    profiles = tuple({"a": ((n,), (n,), (n,)), "b": ((n, 1), (n, 1), (n, 9))} for n in (1, 2))
    guard = ShapeGuard(profiles)
    assert guard.choose({"a": (2,), "b": (2, 9)}) == 1
    with pytest.raises(InvalidRequestError, match=r"'a' \[1\], 'b' \[2, 3\] do not go together"):
        guard.choose({"a": (1,), "b": (2, 3)})
    with pytest.raises(InvalidRequestError, match=r"input 'b' has the shape \[1, 10\]"):
        guard.choose({"a": (1,), "b": (1, 10)})


def test_a_failed_execution_harms_no_later_one(
    runtime: TensorRTRuntime, engine: SoftwareEngine, caplog: pytest.LogCaptureFixture
):
    x = np.ones((1, 4), np.float32)
    trt = load_library("tensorrt_rtx")

    def refuse() -> bool:
        trt.logger.log(trt.module.ILogger.ERROR, "the kernel\nhas a fault")
        return False

    engine.before_execution = refuse
    with pytest.raises(ExecutionError) as caught:
        runtime.infer({"x": x})
    assert (
        str(caught.value)
        == "the model failed on this input: TensorRT's reason is in the server's log"
    )
    assert "execute_async_v3; the kernel has a fault" in caplog.text

    engine.before_execution = lambda: True
    np.testing.assert_array_equal(runtime.infer({"x": x})[0], _expected(x)[0])


def test_an_output_the_gpu_has_no_room_for(runtime: TensorRTRuntime, engine: SoftwareEngine):
    x = np.ones((1, 4), np.float32)

    def ask_for_too_much() -> bool:
        (used,) = [context for context in engine.contexts if context.allocator is not None]
        assert used.allocator.reallocate_output_async("p", 0, 1 << 25, 256, 1) == 0
        return False

    engine.before_execution = ask_for_too_much
    with pytest.raises(ExecutionError, match="the GPU has no memory left"):
        runtime.infer({"x": x})
    engine.before_execution = lambda: True
    np.testing.assert_array_equal(runtime.infer({"x": x})[1], _expected(x)[1])


def test_as_many_run_at_once_as_there_are_contexts(
    runtime: TensorRTRuntime, engine: SoftwareEngine
):
    lock = threading.Lock()
    together = threading.Semaphore(0)
    leave = threading.Event()
    running = 0
    most = 0
    results: queue.Queue[Any] = queue.Queue()

    def hold() -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.release()
        left = leave.wait(timeout=30)
        with lock:
            running -= 1
        return left

    engine.before_execution = hold
    inputs = [np.full((batch, 4), batch, np.float32) for batch in (1, 2, 3, 4)]
    threads = [
        threading.Thread(target=lambda x=x: results.put((x, runtime.infer({"x": x})[0])))
        for x in inputs
    ]
    for thread in threads:
        thread.start()
    assert together.acquire(timeout=30)
    assert together.acquire(timeout=30)  # two are inside at once
    leave.set()
    for thread in threads:
        thread.join(timeout=30)
    for _ in inputs:
        x, y = results.get_nowait()
        np.testing.assert_array_equal(y, _expected(x)[0])
    assert most == 2


# --- execution on a real GPU ---------------------------------------------------------------------


def _load(tmp_path: Path, **values: Any) -> Any:
    reason = why_not_executable()
    if reason:
        pytest.skip(f"nothing executes here: {reason}")
    path = linear(tmp_path / "m.onnx")
    tree = {"kind": "tensorrt_rtx", "path": str(path), "max_batch_size": 16, **values}
    variant = {"name": "v", "version": "1", "roles": ["serving"], "runtime": tree}
    return build(VariantConfig.model_validate(variant))


@pytest.mark.gpu
def test_a_real_gpu_gives_the_right_answers(tmp_path: Path):
    runtime = _load(tmp_path)
    try:
        assert runtime.signature.max_batch_size == 16
        generator = np.random.default_rng(1)
        for batch in (1, 16, 3):
            x = generator.standard_normal((batch, 4)).astype(np.float32)
            (y,) = runtime.infer({"x": x})
            np.testing.assert_allclose(y, _expected(x)[0], rtol=1e-4, atol=1e-5)
        with pytest.raises(InvalidRequestError, match=r"allowed is \[1\.\.16, 4\]"):
            runtime.infer({"x": np.zeros((17, 4), np.float32)})
    finally:
        runtime.close()


@pytest.mark.gpu
def test_a_real_gpu_serves_several_threads(tmp_path: Path):
    runtime = _load(tmp_path, contexts=3)
    failures: queue.Queue[Any] = queue.Queue()

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            for _ in range(50):
                x = generator.standard_normal((seed + 1, 4)).astype(np.float32)
                (y,) = runtime.infer({"x": x})
                np.testing.assert_allclose(y, _expected(x)[0], rtol=1e-4, atol=1e-5)
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            failures.put(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert failures.empty(), failures.get()
    finally:
        runtime.close()
