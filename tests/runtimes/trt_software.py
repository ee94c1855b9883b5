"""A stand-in for the GPU, so that the code around it runs on any machine.

The driver is a C library over ordinary memory (``software_driver.c``), called through the real
ctypes binding; the engine is numpy over the addresses it is given, held to the order and the
answers that TensorRT's interface prescribes. What the GPU and TensorRT themselves do, only the
tests marked ``gpu`` show.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorrt_rtx as trt

from tests.runtimes.trt_models import WEIGHTS

_SOURCE = Path(__file__).with_name("software_driver.c")


def compile_driver(folder: Path, **defines: int) -> str:
    """Compile the software driver and return its path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the driver's stand-in cannot be built")
    name = "-".join(["driver", *(f"{key}{value}" for key, value in defines.items())])
    target = folder / f"{name}.so"
    options = [f"-D{key}={value}" for key, value in defines.items()]
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", *options, _SOURCE, "-o", target],
        check=True,
    )
    return str(target)


def _at(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (ctypes.c_char * count).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)


class SoftwareEngine:
    """``y = relu(x @ WEIGHTS)``, and ``p``: the positive elements of y, as many as there are.

    Two profiles: batches of 1 to 4, and of 4 to 64.
    """

    profiles = (((1, 4), (2, 4), (4, 4)), ((4, 4), (16, 4), (64, 4)))
    num_optimization_profiles = 2
    tensors: ClassVar[dict[str, Any]] = {
        "x": (trt.TensorIOMode.INPUT, trt.DataType.FLOAT, (-1, 4)),
        "y": (trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT, (-1, 3)),
        "p": (trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT, (-1,)),
    }
    num_io_tensors = len(tensors)

    def __init__(self) -> None:
        self.contexts: list[SoftwareContext] = []
        self.before_execution = lambda: True

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> Any:
        return trt.Dims(self.tensors[name][2])

    def get_tensor_location(self, _name: str) -> Any:
        return trt.TensorLocation.DEVICE

    def get_tensor_format(self, _name: str) -> Any:
        return trt.TensorFormat.LINEAR

    def get_tensor_format_desc(self, _name: str) -> str:
        return "row major"

    def is_shape_inference_io(self, _name: str) -> bool:
        return False

    def get_tensor_profile_shape(self, _name: str, profile: int) -> list[Any]:
        return [trt.Dims(shape) for shape in self.profiles[profile]]

    def create_execution_context(self) -> SoftwareContext:
        self.contexts.append(SoftwareContext(self))
        return self.contexts[-1]


class SoftwareContext:
    """Executes at once, in the calling thread."""

    def __init__(self, engine: SoftwareEngine) -> None:
        self._engine = engine
        self._profile = 0
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        self.allocator: Any = None
        self.switches = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile, self._shape = profile, None
        self.switches += 1
        return stream != 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.profiles[self._profile]
        self._shape = tuple(shape)
        inside = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        return name == "x" and inside

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocator = allocator
        return name == "p" and isinstance(allocator, trt.IOutputAllocator)

    def infer_shapes(self) -> list[str]:
        return [] if self._shape is not None and "x" in self._addresses else ["x"]

    def get_tensor_shape(self, name: str) -> Any:
        assert self._shape is not None
        shapes = {"x": self._shape, "y": (self._shape[0], 3), "p": (-1,)}
        return trt.Dims(shapes[name])

    def execute_async_v3(self, stream: int) -> bool:
        assert self._shape is not None
        assert stream
        if not self._engine.before_execution():
            return False
        x = _at(self._addresses["x"], self._shape, np.float32)
        y = np.maximum(x @ WEIGHTS, 0)
        _at(self._addresses["y"], y.shape, np.float32)[:] = y
        positive = y[y > 0]
        memory = self.allocator.reallocate_output_async("p", 0, positive.nbytes, 256, stream)
        if not memory:
            return False
        _at(memory, positive.shape, np.float32)[:] = positive
        self.allocator.notify_shape("p", trt.Dims(positive.shape))
        return True
