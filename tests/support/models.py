"""Makers of small real models: each writes an artifact into a folder and returns its path.

The same 32→64→10 network comes in every format, from the same weights, so that a test may compare
any two of them.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sidecar.config import VariantConfig
from sidecar.protocol.datatypes import BY_NAME

#: The protocol's datatypes → ONNX element types.
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}

Tensors = list[tuple[str, str, Any]]


def variant(
    kind: str, path: Path, *, inputs: Any = None, outputs: Any = None, **runtime: Any
) -> VariantConfig:
    """A variant of one artifact, checked as a config file's would be."""
    tree = {
        "name": "v",
        "version": "1",
        "roles": ["serving"],
        "runtime": {"kind": kind, "path": str(path), **runtime},
    }
    if inputs is not None:
        tree["inputs"] = inputs
    if outputs is not None:
        tree["outputs"] = outputs
    return VariantConfig.model_validate(tree)


def tensor(name: str, datatype: str, shape: list[int]) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape}


def example(datatype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values that exercise a datatype: its extremes, NaN, infinities, empty and non-ASCII text."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    dtype = BY_NAME[datatype].numpy
    if datatype == "BYTES":
        pool = [b"", b"a", "Grüße".encode(), b"nul\0inside", b"x" * 1000, "🚀".encode()]
        values = np.empty(count, dtype=object)
        values[:] = [pool[(seed + i) % len(pool)] for i in range(count)]
    elif datatype == "BOOL":
        values = rng.integers(0, 2, count).astype(bool)
    elif dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, count, dtype=dtype, endpoint=True)
        values[:2] = (info.min, info.max)[:count]
    else:
        values = rng.normal(size=count).astype(np.float32).astype(dtype)
        special = [np.nan, np.inf, -np.inf, -0.0]
        values[: len(special)] = np.array(special, np.float32).astype(dtype)[:count]
    return values.reshape(shape)


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal in dtype, shape and every bit (NaN payloads and the sign of zero included)."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if expected.dtype == object:
        assert got.tolist() == expected.tolist()
        assert all(type(element) is bytes for element in got.ravel())
    else:
        assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(expected).tobytes()


# --- ONNX -----------------------------------------------------------------------------------------


def onnx_model(
    nodes: list, inputs: Tensors, outputs: Tensors, initializers: Any = (), *, opset: int = 18
) -> onnx.ModelProto:
    """``inputs`` and ``outputs``: (name, protocol datatype, shape or None)."""

    def infos(tensors: Tensors):
        return [helper.make_tensor_value_info(n, ONNX_TYPES[t], s) for n, t, s in tensors]

    weights = [numpy_helper.from_array(np.asarray(v), n) for n, v in initializers]
    graph = helper.make_graph(nodes, "test", infos(inputs), infos(outputs), weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def save(folder: Path, name: str, model: onnx.ModelProto) -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def onnx_identity(folder: Path, datatype: str, shape: Any = ("batch", 3)) -> Path:
    """x → y = x, of one datatype."""
    node = helper.make_node("Identity", ["x"], ["y"])
    model = onnx_model([node], [("x", datatype, shape)], [("y", datatype, shape)])
    return save(folder, f"identity-{datatype}.onnx", model)


def mlp_weights() -> dict[str, np.ndarray]:
    """``a`` (64×32) and ``b`` (10×64) with biases, as torch's Linear lays them out."""
    rng = np.random.default_rng(7)
    shapes = {"a.weight": (64, 32), "a.bias": (64,), "b.weight": (10, 64), "b.bias": (10,)}
    return {n: rng.normal(size=s, scale=0.2).astype(np.float32) for n, s in shapes.items()}


def mlp_expected(x: np.ndarray) -> np.ndarray:
    """The network in float64: what every format must give, to rounding."""
    w = {name: value.astype(np.float64) for name, value in mlp_weights().items()}
    hidden = np.maximum(x.astype(np.float64) @ w["a.weight"].T + w["a.bias"], 0)
    return (hidden @ w["b.weight"].T + w["b.bias"]).astype(np.float32)


def onnx_mlp(
    folder: Path, *, batch: str | int = "batch", external: bool = False, name: str = "mlp.onnx"
) -> Path:
    """The 32→64→10 network; ``batch``: a name (dynamic) or a size (fixed)."""
    w = mlp_weights()
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b.weight", "b.bias"], ["y"], transB=1),
    ]
    io = [("x", "FP32", [batch, 32])], [("y", "FP32", [batch, 10])]
    model = onnx_model(nodes, *io, list(w.items()))
    if external:
        onnx.save(
            model, folder / name, save_as_external_data=True, location=f"{name}.data",
            size_threshold=0,
        )  # fmt: skip
        return folder / name
    return save(folder, name, model)


def onnx_lookup(folder: Path) -> Path:
    """Fails at run time on some inputs: index → row of a table with 4 rows."""
    node = helper.make_node("Gather", ["table", "i"], ["row"], name="/embedding/Gather")
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    io = [("i", "INT64", ["batch"])], [("row", "FP32", ["batch", 2])]
    return save(folder, "lookup.onnx", onnx_model([node], *io, [("table", table)]))


def onnx_many(folder: Path) -> Path:
    """Two inputs, four outputs: a sum, an input itself, a weight itself, a scalar."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Identity", ["a"], ["same"]),
        helper.make_node("Identity", ["w"], ["weight"]),
        helper.make_node("ReduceSum", ["b"], ["total"], keepdims=0),
    ]
    shape = ["batch", 2]
    io = (
        [("a", "FP32", shape), ("b", "FP32", shape)],
        [("sum", "FP32", shape), ("same", "FP32", shape), ("weight", "FP32", [3]),
         ("total", "FP32", [])],
    )  # fmt: skip
    weight = np.array([1, 2, 3], np.float32)
    return save(folder, "many.onnx", onnx_model(nodes, *io, [("w", weight)]))


# --- PyTorch --------------------------------------------------------------------------------------

MLP_INPUTS = [tensor("x", "FP32", [-1, 32])]
MLP_OUTPUTS = [tensor("y", "FP32", [-1, 10])]

#: The module that ``torch_state_dict``'s factory makes, as a user's file would hold it.
FACTORY_SOURCE = """
import torch


class Mlp(torch.nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.a = torch.nn.Linear(32, hidden)
        self.b = torch.nn.Linear(hidden, 10)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def make(hidden=64):
    return Mlp(hidden)


def not_a_module():
    return 3
"""


def torch_mlp():
    import torch

    class Mlp(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(32, 64)
            self.b = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor):
            return self.b(torch.relu(self.a(x)))

    module = Mlp().eval()
    module.load_state_dict({n: torch.from_numpy(v) for n, v in mlp_weights().items()})
    return module


def torch_export(
    folder: Path, name: str, module: Any, args: tuple, *, dynamic: Any = None, kwargs: Any = None
) -> Path:
    """``torch.export`` a module into a ``.pt2``."""
    import torch

    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
    path = folder / name
    torch.export.save(program, path)
    return path


def batch_dim(limit: int | None = None):
    import torch

    return torch.export.Dim("batch") if limit is None else torch.export.Dim("batch", max=limit)


def torch_exported_mlp(folder: Path, *, limit: int | None = None, name: str = "mlp.pt2") -> Path:
    import torch

    dynamic = {"x": {0: batch_dim(limit)}}
    return torch_export(folder, name, torch_mlp(), (torch.zeros(2, 32),), dynamic=dynamic)


def torch_exported_identity(folder: Path, datatype: str) -> Path:
    """x → its own input, not even copied by the graph: aliasing must be undone by the runtime."""
    import torch

    from sidecar.runtimes.torch_program import DTYPES

    class Identity(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            return x

    sample = torch.zeros(2, 3).to(DTYPES[datatype])
    dynamic = {"x": {0: batch_dim()}}
    name = f"identity-{datatype}.pt2"
    return torch_export(folder, name, Identity(), (sample,), dynamic=dynamic)


def torch_exported_many(folder: Path, name: str = "many.pt2") -> Path:
    """Like ``onnx_many``, with names from a dict, a keyword input, a None, and twice one tensor."""
    import torch

    class Many(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
            self.constant = torch.tensor([4.0, 5.0])

        def forward(self, a: Any, scale: int = 1, *, b: Any):
            total = a + b * scale
            return {
                "sum": total, "again": total, "nothing": None, "same": a, "weight": self.w,
                "nested": [self.constant, b.sum()],
            }  # fmt: skip

    dim = batch_dim()
    return torch_export(
        folder, name, Many(), (torch.zeros(2, 2), 1), kwargs={"b": torch.ones(2, 2)},
        dynamic={"a": {0: dim}, "scale": None, "b": {0: dim}},
    )  # fmt: skip


def torch_exported_writer(folder: Path) -> Path:
    """Adds one to its own input, in place."""
    import torch

    class Writer(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            return x.add_(1) * 2

    return torch_export(folder, "writer.pt2", Writer(), (torch.zeros(2, 3),))


def torch_lookup():
    import torch

    class Lookup(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torch.arange(8, dtype=torch.float32).reshape(4, 2)
            self.register_buffer("table", table)

        def forward(self, i: torch.Tensor):
            return torch.index_select(self.table, 0, i)

    return Lookup().eval()


def torch_exported_lookup(folder: Path) -> Path:
    import torch

    dynamic = {"i": {0: batch_dim()}}
    args = (torch.zeros(2, dtype=torch.int64),)
    return torch_export(folder, "lookup.pt2", torch_lookup(), args, dynamic=dynamic)


def torchscript(folder: Path, name: str, module: Any) -> Path:
    import torch

    path = folder / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, and used
        torch.jit.save(torch.jit.script(module), path)
    return path


def torch_state_dict(folder: Path, *, legacy: bool = False) -> Path:
    """Weights, and beside them ``mlp_factory.py``."""
    import torch

    (folder / "mlp_factory.py").write_text(FACTORY_SOURCE)
    path = folder / "mlp.pth"
    state = torch_mlp().state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def torch_aoti_mlp(
    folder: Path, *, signature: dict | None = None, name: str = "mlp-aoti.pt2"
) -> Path:
    """Compile the network (g++, some 20 s); ``signature`` goes into the package's metadata."""
    import torch

    from sidecar.runtimes.torch_exported import SIGNATURE_KEY

    dynamic = {"x": {0: batch_dim()}}
    program = torch.export.export(torch_mlp(), (torch.zeros(2, 32),), dynamic_shapes=dynamic)
    metadata = {} if signature is None else {SIGNATURE_KEY: json.dumps(signature)}
    path = folder / name
    with warnings.catch_warnings():
        # Inductor copies tree specs, and imports TorchScript, in ways that torch deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"aot_inductor.metadata": metadata}
        )
    return path
