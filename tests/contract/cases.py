"""One small object per kind of runtime and artifact: what the contract suite runs over.

A new runtime adds a ``Case`` to ``CASES`` and, for each kind of file it loads, an ``Artifact`` to
``ARTIFACTS``; ``test_runtimes.py`` holds them against ``BUILTIN``.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.config import VariantConfig
from sidecar.runtimes.base import TensorSpec
from tests.support import models
from tests.support.models import variant

Make = Callable[[pytest.FixtureRequest, Path], VariantConfig]


def always() -> str:
    return ""


@dataclass(frozen=True)
class Case:
    """One loadable model.

    Attributes:
        id, kind: its name in the report, and the runtime's kind.
        make: (pytest's request, an empty folder) → the variant to build. The request gives
            session fixtures, for artifacts that are slow to make and for servers.
        inputs, outputs: the signature it must have.
        max_batch_size: of the signature.
        expected: inputs → the right outputs by name, or ``None`` where only consistency is tested.
        rtol: for ``expected``; 0 means bit for bit.
        low, high: bounds of random inputs.
        failing: inputs that fit the signature and on which the model fails.
        unavailable: why this machine cannot run it, or "".
    """

    id: str
    kind: str
    make: Make
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    expected: Callable[[dict], dict] | None = None
    rtol: float = 0.0
    low: int = 0
    high: int = 4
    failing: dict | None = None
    unavailable: Callable[[], str] = always

    def example(self, seed: int, batch: int = 2) -> dict[str, np.ndarray]:
        """Valid inputs; another seed gives other values, another batch other rows."""
        arrays = {}
        for index, spec in enumerate(self.inputs):
            shape = [batch if i == 0 and s == -1 else abs(s) for i, s in enumerate(spec.shape)]
            if spec.datatype in {"INT64", "INT32"} and self.failing is not None:
                rng = np.random.default_rng(seed + index)
                arrays[spec.name] = rng.integers(self.low, self.high, shape).astype(
                    models.BY_NAME[spec.datatype].numpy
                )
            else:
                arrays[spec.name] = models.example(spec.datatype, tuple(shape), seed + index)
                if self.rtol:  # results are compared by value: NaN and infinities would hide them
                    rng = np.random.default_rng(seed + index)
                    arrays[spec.name] = rng.normal(size=shape).astype(arrays[spec.name].dtype)
        return arrays


@dataclass(frozen=True)
class Artifact:
    """One kind of file that a runtime loads: damaged in many ways by the suite.

    Attributes:
        make: (request, empty folder) → (its path, the variant's other settings).
        kind: the runtime's kind.
        id: its name in the report.
    """

    id: str
    kind: str
    make: Callable[[pytest.FixtureRequest, Path], tuple[Path, dict]]
    unavailable: Callable[[], str] = always


# --- ONNX Runtime ---------------------------------------------------------------------------------


def _identity_case(datatype: str, runtime: str) -> Case:
    spec = TensorSpec("x", datatype, (-1, 3))
    if runtime == "onnxruntime":
        name, suffix = "y", "onnx"
    else:
        name, suffix = "output_0", "exported"

    def make(_request: pytest.FixtureRequest, folder: Path):
        maker = models.onnx_identity if runtime == "onnxruntime" else models.torch_exported_identity
        return variant(runtime, maker(folder, datatype))

    return Case(
        id=f"{suffix}-identity-{datatype}",
        kind=runtime,
        make=make,
        inputs=(spec,),
        outputs=(TensorSpec(name, datatype, (-1, 3)),),
        max_batch_size=1024,
        expected=lambda inputs: {name: inputs["x"]},
    )


_MLP_IN = (TensorSpec("x", "FP32", (-1, 32)),)
_MLP_OUT = (TensorSpec("y", "FP32", (-1, 10)),)
_MLP_DECLARED = {"inputs": models.MLP_INPUTS, "outputs": models.MLP_OUTPUTS}


def _mlp_case(id: str, kind: str, make: Make, **changes: Any) -> Case:  # noqa: A002
    values = {
        "inputs": _MLP_IN, "outputs": _MLP_OUT, "max_batch_size": 1024, "rtol": 1e-5,
        "expected": lambda inputs: {"y": models.mlp_expected(inputs["x"])},
    }  # fmt: skip
    return Case(id, kind, make, **{**values, **changes})


def _many(inputs: dict) -> dict:
    return {
        "sum": inputs["a"] + inputs["b"],
        "same": inputs["a"],
        "weight": np.array([1, 2, 3], np.float32),
    }


_PAIR = (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2)))
_LOOKUP_IN = (TensorSpec("i", "INT64", (-1,)),)
_TABLE = np.arange(8, dtype=np.float32).reshape(4, 2)

ONNX_CASES = [
    *(_identity_case(datatype, "onnxruntime") for datatype in models.ONNX_TYPES),
    _mlp_case("onnx-mlp", "onnxruntime", lambda _, f: variant("onnxruntime", models.onnx_mlp(f))),
    _mlp_case(
        "onnx-mlp-external-data",
        "onnxruntime",
        lambda _, f: variant("onnxruntime", models.onnx_mlp(f, external=True)),
    ),
    _mlp_case(
        "onnx-mlp-fixed-batch",
        "onnxruntime",
        lambda _, f: variant("onnxruntime", models.onnx_mlp(f, batch=3)),
        inputs=(TensorSpec("x", "FP32", (3, 32)),),
        outputs=(TensorSpec("y", "FP32", (3, 10)),),
        max_batch_size=0,
    ),
    Case(
        "onnx-many",
        "onnxruntime",
        lambda _, f: variant("onnxruntime", models.onnx_many(f)),
        inputs=_PAIR,
        outputs=(
            TensorSpec("sum", "FP32", (-1, 2)),
            TensorSpec("same", "FP32", (-1, 2)),
            TensorSpec("weight", "FP32", (3,)),
            TensorSpec("total", "FP32", ()),
        ),
        max_batch_size=0,
        expected=_many,
    ),
    Case(
        "onnx-lookup",
        "onnxruntime",
        lambda _, f: variant("onnxruntime", models.onnx_lookup(f)),
        inputs=_LOOKUP_IN,
        outputs=(TensorSpec("row", "FP32", (-1, 2)),),
        max_batch_size=1024,
        expected=lambda inputs: {"row": _TABLE[inputs["i"]]},
        failing={"i": np.array([0, 99])},
    ),
]

# --- PyTorch --------------------------------------------------------------------------------------


def no_torch() -> str:
    return "" if importlib.util.find_spec("torch") else "torch is not installed"


def _state_dict(folder: Path, **settings: Any) -> VariantConfig:
    path = models.torch_state_dict(folder)
    return variant(
        "pytorch", path, factory="mlp_factory:make", factory_path=str(folder),
        **_MLP_DECLARED, **settings,
    )  # fmt: skip


def _torchscript_lookup(_request: pytest.FixtureRequest, folder: Path) -> VariantConfig:
    path = models.torchscript(folder, "lookup.ts", models.torch_lookup())
    return variant(
        "pytorch", path,
        inputs=[models.tensor("i", "INT64", [-1])],
        outputs=[models.tensor("row", "FP32", [-1, 2])],
    )  # fmt: skip


def _aoti(request: pytest.FixtureRequest, _folder: Path) -> VariantConfig:
    return variant("pytorch", request.getfixturevalue("aoti_mlp"), **_MLP_DECLARED)


_TORCH_MANY_OUT = (
    TensorSpec("sum", "FP32", (-1, 2)),
    TensorSpec("again", "FP32", (-1, 2)),
    TensorSpec("same", "FP32", (-1, 2)),
    TensorSpec("weight", "FP32", (3,)),
    TensorSpec("nested.0", "FP32", (2,)),
    TensorSpec("nested.1", "FP32", ()),
)


def _lookup(id: str, make: Make) -> Case:  # noqa: A002
    return Case(
        id, "pytorch", make,
        inputs=_LOOKUP_IN,
        outputs=(TensorSpec("output_0" if "exported" in id else "row", "FP32", (-1, 2)),),
        max_batch_size=1024,
        expected=lambda inputs: {
            "output_0" if "exported" in id else "row": _TABLE[inputs["i"]]
        },
        failing={"i": np.array([0, 99])},
        unavailable=no_torch,
    )  # fmt: skip


TORCH_CASES = [
    *(_identity_case(t, "pytorch") for t in models.ONNX_TYPES if t != "BYTES"),
    _mlp_case(
        "exported-mlp",
        "pytorch",
        lambda _, f: variant(
            "pytorch", models.torch_exported_mlp(f, limit=64), outputs=models.MLP_OUTPUTS
        ),
        max_batch_size=64,
        unavailable=no_torch,
    ),
    Case(
        "exported-many",
        "pytorch",
        lambda _, f: variant("pytorch", models.torch_exported_many(f)),
        inputs=_PAIR,
        outputs=_TORCH_MANY_OUT,
        max_batch_size=0,
        expected=lambda inputs: {
            **_many(inputs), "again": inputs["a"] + inputs["b"],
            "nested.0": np.array([4, 5], np.float32),
        },
        unavailable=no_torch,
    ),
    Case(
        "exported-writes-its-input",
        "pytorch",
        lambda _, f: variant("pytorch", models.torch_exported_writer(f)),
        inputs=(TensorSpec("x", "FP32", (2, 3)),),
        outputs=(TensorSpec("output_0", "FP32", (2, 3)),),
        max_batch_size=0,
        expected=lambda inputs: {"output_0": (inputs["x"] + np.float32(1)) * np.float32(2)},
        unavailable=no_torch,
    ),
    _lookup(
        "exported-lookup", lambda _, f: variant("pytorch", models.torch_exported_lookup(f))
    ),
    _mlp_case("aoti-mlp", "pytorch", _aoti, unavailable=no_torch),
    _mlp_case(
        "torchscript-mlp",
        "pytorch",
        lambda _, f: variant(
            "pytorch", models.torchscript(f, "mlp.ts", models.torch_mlp()), **_MLP_DECLARED
        ),
        unavailable=no_torch,
    ),
    _lookup("torchscript-lookup", _torchscript_lookup),
    _mlp_case("state_dict-mlp", "pytorch", lambda _, f: _state_dict(f), unavailable=no_torch),
    _mlp_case(
        "state_dict-mlp-bf16",
        "pytorch",
        lambda _, f: _state_dict(f, precision="bf16"),
        rtol=0.05,
        unavailable=no_torch,
    ),
]  # fmt: skip

# --- TensorRT -------------------------------------------------------------------------------------


def _no_tensorrt(kind: str) -> Callable[[], str]:
    def reason() -> str:
        from sidecar.runtimes.trt_probe import probe

        if importlib.util.find_spec(kind) is None:
            return f"{kind} is not installed"
        return probe().why_not(0) if probe().device(0) is None else ""

    return reason


TENSORRT_CASES = [
    _mlp_case(
        f"{kind}-mlp",
        kind,
        lambda _, f, kind=kind: variant(kind, models.onnx_mlp(f), max_batch_size=8),
        max_batch_size=8,
        rtol=1e-3,
        unavailable=_no_tensorrt(kind),
    )
    for kind in ("tensorrt", "tensorrt_rtx")
]

#: Those that need no server; ``remote_cases.py`` has the others.
CASES: list[Case] = [*ONNX_CASES, *TORCH_CASES, *TENSORRT_CASES]

# --- files to damage ------------------------------------------------------------------------------

_FACTORY = {"factory": "mlp_factory:make", **_MLP_DECLARED}

ARTIFACTS = [
    Artifact("onnx", "onnxruntime", lambda _, f: (models.onnx_mlp(f), {})),
    Artifact(
        "exported", "pytorch", lambda _, f: (models.torch_exported_mlp(f), {}), no_torch
    ),
    Artifact(
        "aoti", "pytorch", lambda r, _: (r.getfixturevalue("aoti_mlp"), _MLP_DECLARED), no_torch
    ),
    Artifact(
        "torchscript", "pytorch",
        lambda _, f: (models.torchscript(f, "mlp.ts", models.torch_mlp()), _MLP_DECLARED),
        no_torch,
    ),
    Artifact(
        "state_dict", "pytorch",
        lambda _, f: (models.torch_state_dict(f), {**_FACTORY, "factory_path": str(f)}), no_torch,
    ),
    Artifact(
        "state_dict-legacy", "pytorch",
        lambda _, f: (
            models.torch_state_dict(f, legacy=True), {**_FACTORY, "factory_path": str(f)}
        ),
        no_torch,
    ),
]  # fmt: skip


def wrong_files() -> dict[str, bytes]:
    """Files that are no model at all, by name."""
    return {
        "empty": b"",
        "one-byte": b"\x08",
        "zeros": bytes(4096),
        "text": b"this is not a model\n" * 50,
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "gzip": b"\x1f\x8b\x08\x00" + bytes(64),
        "engine": b"ftrt" + bytes(64),
        "random": np.random.default_rng(3).bytes(5000),
        "zip-without-a-table": b"PK\x03\x04" + bytes(300),
        "endless-varint": b"\x08" + b"\xff" * 64,
        "pickle-that-runs-code": b"\x80\x04cposix\nsystem\n(S'exit 3'\ntR.",
    }


def cuts(size: int) -> list[int]:
    """Where to cut a file of ``size`` bytes: around its ends and through its middle."""
    places = itertools.chain((1, 7, 100), (size * k // 8 for k in range(1, 8)), (size - 1,))
    return sorted({place for place in places if 0 < place < size})
