"""PyTorch: what each format carries, what the config must say, settings, and messages."""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.errors import ArtifactError, ExecutionError, InvalidRequestError, SidecarError
from sidecar.protocol.datatypes import BY_NAME
from sidecar.runtimes import pytorch
from sidecar.runtimes.base import Runtime, TensorSpec
from tests.support import models
from tests.support.models import tensor, variant

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.timeout(400)  # an AOTInductor package takes g++ a while, once a session

DECLARED = {"inputs": models.MLP_INPUTS, "outputs": models.MLP_OUTPUTS}


def build(path: Path, **settings: Any) -> Runtime:
    return pytorch.build(variant("pytorch", path, **settings))


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        build(path, **settings)
    return str(caught.value)


def x32(rows: int = 2) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(rows, 32)).astype(np.float32)


# --- exported programs ----------------------------------------------------------------------------


def test_names_come_from_the_program_and_its_author(tmp_path: Path):
    signature = build(models.torch_exported_many(tmp_path)).signature
    assert [spec.name for spec in signature.inputs] == ["a", "b"]
    names = ["sum", "again", "same", "weight", "nested.0", "nested.1"]
    assert [spec.name for spec in signature.outputs] == names
    assert (signature.platform, signature.backend) == ("pytorch_exported", "pytorch")


def test_outputs_without_names_are_numbered_and_may_be_renamed(tmp_path: Path):
    path = models.torch_exported_mlp(tmp_path)
    assert [spec.name for spec in build(path).signature.outputs] == ["output_0"]
    runtime = build(path, outputs=[tensor("logits", "FP32", [-1, 10])])
    assert runtime.signature.outputs == (TensorSpec("logits", "FP32", (-1, 10)),)
    (y,) = runtime.infer({"x": x32()}, ["logits"])
    np.testing.assert_allclose(y, models.mlp_expected(x32()), atol=1e-5)


def test_the_batch_is_bounded_by_what_was_exported(tmp_path: Path):
    path = models.torch_exported_mlp(tmp_path, limit=16)
    assert build(path).signature.max_batch_size == 16
    assert build(path, max_batch_size=4).signature.max_batch_size == 4
    assert "max_batch_size is 32, but it was exported for at most 16" in refused(
        path, max_batch_size=32
    )
    with pytest.raises(ExecutionError):
        build(path).infer({"x": x32(17)})


def test_different_dimensions_are_not_joined(tmp_path: Path):
    class Pair(torch.nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a * 2, b * 2

    dim = torch.export.Dim
    path = models.torch_export(
        tmp_path, "pair.pt2", Pair(), (torch.zeros(2, 3), torch.zeros(4, 3)),
        dynamic={"a": {0: dim("rows")}, "b": {0: dim("others")}},
    )  # fmt: skip
    assert build(path).signature.max_batch_size == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": [tensor("x", "FP16", [-1, 32])]}, "'x' is FP32 in the artifact, FP16 in the"),
        ({"inputs": [tensor("x", "FP32", [-1, 31])]}, "[-1, 32] in the artifact, [-1, 31] in the"),
        ({"inputs": [tensor("y", "FP32", [-1, 32])]}, "has no input 'y', which the config"),
        (
            {"outputs": [tensor("y", "INT64", [-1, 10])]},
            "'output_0' is FP32 in the artifact, INT64",
        ),
        ({"outputs": models.MLP_OUTPUTS * 2}, "has 1 outputs, but the config declares 2"),
        ({"format": "torchscript"}, "format: torchscript, but it is a PyTorch exported program"),
        ({"precision": "fp16"}, "precision: fp16 casts TorchScript and state_dict modules only"),
    ],
)
def test_a_config_that_contradicts_the_program_is_refused(
    tmp_path: Path, settings: dict, message: str
):
    assert message in refused(models.torch_exported_mlp(tmp_path), **settings)


def test_a_number_as_input_is_refused(tmp_path: Path):
    class Scale(torch.nn.Module):
        def forward(self, x: Any, factor: int) -> Any:
            return x * factor

    path = models.torch_export(
        tmp_path, "scale.pt2", Scale(), (torch.zeros(2), 3),
        dynamic={"x": None, "factor": torch.export.Dim.DYNAMIC},
    )  # fmt: skip
    assert "input 'factor' is a number of any value, not a tensor" in refused(path)


def test_complex_numbers_are_refused(tmp_path: Path):
    class Fft(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.fft.fft(x)

    path = models.torch_export(tmp_path, "fft.pt2", Fft(), (torch.zeros(4),))
    assert "output 'output_0' is torch.complex64, which the protocol cannot carry" in refused(path)


def test_a_reading_program_is_lent_its_input_and_a_writing_one_gets_a_copy(tmp_path: Path):
    lent = build(models.torch_exported_mlp(tmp_path))._program
    copied = build(models.torch_exported_writer(tmp_path))._program
    assert (lent.reads_only, copied.reads_only) == (True, False)


def test_bfloat16_keeps_its_bits(tmp_path: Path):
    runtime = build(models.torch_exported_identity(tmp_path, "BF16"))
    bits = np.arange(0, 65536, dtype=np.uint16)  # every value there is, NaN payloads included
    x = np.resize(bits, (21846, 3)).view(BY_NAME["BF16"].numpy)
    models.assert_same(runtime.infer({"x": x})[0], x)


def test_no_warning_about_read_only_memory(tmp_path: Path):
    runtime = build(models.torch_exported_mlp(tmp_path))
    x = np.frombuffer(x32().tobytes(), np.float32).reshape(2, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.infer({"x": x})


# --- AOTInductor ----------------------------------------------------------------------------------


def test_an_undeclared_package_says_what_to_add(aoti_mlp: Path):
    text = refused(aoti_mlp)
    assert "does not carry its inputs; add them to the variant" in text
    assert "- {name: input_0, datatype: FP32, shape: [-1, 32]}" in text  # read from its source
    text = refused(aoti_mlp, inputs=models.MLP_INPUTS)
    assert "does not carry its outputs" in text
    assert "- {name: output_0, datatype: FP32, shape: [-1, 10]}" in text


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([tensor("x", "FP64", [-1, 32])], "as FP32 of shape [-1, 32], but is declared as FP64"),
        ([tensor("x", "FP32", [-1, -1])], "is declared as FP32 of shape [-1, -1]"),
        ([tensor("x", "FP32", [-1, 16])], "is declared as FP32 of shape [-1, 16]"),
        ([tensor("x", "FP32", [32])], "is declared as FP32 of shape [32]"),
        (models.MLP_INPUTS * 2, "takes 1 inputs, 2 are declared"),
    ],
)  # fmt: skip
def test_a_package_is_not_run_with_inputs_it_was_not_compiled_for(
    aoti_mlp: Path, inputs: list, message: str
):
    assert message in refused(aoti_mlp, inputs=inputs, outputs=models.MLP_OUTPUTS)


def test_a_package_with_other_outputs_is_refused(aoti_mlp: Path):
    text = refused(aoti_mlp, inputs=models.MLP_INPUTS, outputs=models.MLP_OUTPUTS * 2)
    assert "gives 1 outputs (output_0), 2 are declared" in text


def test_compiled_code_never_sees_another_shape(aoti_mlp: Path):
    """It would read beyond the end of a smaller one."""
    runtime = build(aoti_mlp, **DECLARED)
    for wrong in (np.zeros((2, 3), np.float32), np.zeros((2, 32)), np.zeros(32, np.float32)):
        with pytest.raises(
            InvalidRequestError, match=r"input 'x' must be FP32 of shape \[-1, 32\]"
        ):
            runtime.infer({"x": wrong})


def test_an_output_declared_wrongly_is_an_execution_error(aoti_mlp: Path):
    for outputs, message in [
        ([tensor("y", "FP16", [-1, 10])], "is torch.float32, but the model's signature says FP16"),
        ([tensor("y", "FP32", [-1, 9])], r"has shape \[2, 10\], but the model's signature says"),
    ]:
        runtime = build(aoti_mlp, inputs=models.MLP_INPUTS, outputs=outputs)
        with pytest.raises(ExecutionError, match=message):
            runtime.infer({"x": x32()})


def test_more_threads_than_runners_do_not_deadlock(aoti_mlp: Path):
    """Inside torch 2.13 a thread that waits for a runner keeps Python's lock from the others."""
    runtime = build(aoti_mlp, **DECLARED)
    expected = runtime.infer({"x": x32()})[0]
    many = 4 * (os.cpu_count() or 1)
    start = threading.Barrier(many)

    def work() -> None:
        start.wait(timeout=30)
        for _ in range(50):
            models.assert_same(runtime.infer({"x": x32()})[0], expected)

    with ThreadPoolExecutor(many) as pool:
        for future in [pool.submit(work) for _ in range(many)]:
            future.result(timeout=60)


def test_a_package_for_another_device_is_refused(aoti_mlp: Path, tmp_path: Path):
    path = _edited(aoti_mlp, tmp_path, b'"AOTI_DEVICE_KEY": "cpu"', b'"AOTI_DEVICE_KEY": "cuda"')
    text = refused(path, **DECLARED)
    assert "was compiled for cuda, the config says device: cpu" in text


def test_a_package_may_carry_its_signature(aoti_mlp: Path, tmp_path: Path):
    entry = b'"sidecar.signature": %s, "AOTI_DEVICE_KEY": "cpu"'
    carried = json.dumps({"inputs": models.MLP_INPUTS, "outputs": models.MLP_OUTPUTS})
    plain = b'"AOTI_DEVICE_KEY": "cpu"'
    runtime = build(_edited(aoti_mlp, tmp_path, plain, entry % json.dumps(carried).encode()))
    assert runtime.signature.inputs == (TensorSpec("x", "FP32", (-1, 32)),)
    assert runtime.signature.outputs == (TensorSpec("y", "FP32", (-1, 10)),)
    assert runtime.signature.max_batch_size == 1024
    np.testing.assert_allclose(
        runtime.infer({"x": x32()})[0], models.mlp_expected(x32()), atol=1e-5
    )
    broken = _edited(aoti_mlp, tmp_path, plain, entry % b'"{}"')
    assert "its metadata entry sidecar.signature is not a signature" in refused(broken)


def test_a_package_compiled_for_channels_last_is_refused(aoti_mlp: Path, tmp_path: Path):
    old = b'"expected: 32, " << "but got: " << arg4_1_stride[0]'
    path = _edited(aoti_mlp, tmp_path, old, old.replace(b"32", b"64"), ".cpp")
    assert "compiled for another memory layout" in refused(path, **DECLARED)


def test_a_package_of_broken_code_is_refused(aoti_mlp: Path, tmp_path: Path):
    path = _edited(aoti_mlp, tmp_path, b"\x7fELF", b"\x7fALF", ".so")
    assert "torch cannot load the AOTInductor package" in refused(path, **DECLARED)


def _edited(source: Path, folder: Path, old: bytes, new: bytes, suffix: str = ".json") -> Path:
    """A copy of an archive, valid as such, with bytes of some entries replaced."""
    path = folder / "edited.pt2"
    changed = 0
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w") as edited:
        for info in archive.infolist():
            data = archive.read(info)
            if info.filename.endswith(suffix):
                changed += data.count(old)
                data = data.replace(old, new, 1)
            edited.writestr(info, data)
    assert changed
    return path


# --- TorchScript and state_dict -------------------------------------------------------------------


def test_a_missing_declaration_says_what_to_write(tmp_path: Path):
    path = models.torchscript(tmp_path, "mlp.ts", models.torch_mlp())
    text = refused(path)
    assert "is a TorchScript archive, which does not carry its inputs and outputs" in text
    assert "    inputs:\n      - {name: x, datatype: FP32, shape: [-1, 3, 224, 224]}" in text
    assert "    outputs:\n      - {name: y, datatype: FP32, shape: [-1, 1000]}" in text
    text = refused(path, inputs=models.MLP_INPUTS)
    assert "    inputs:" not in text
    assert "    outputs:" in text
    text = refused(path, inputs=[tensor("x", "BYTES", [-1])], outputs=models.MLP_OUTPUTS)
    assert "'x' is declared as BYTES, which torch tensors cannot hold" in text


class Affine(torch.nn.Module):
    """Takes ``scale`` and ``shift`` in this order; gives a dict."""

    def forward(
        self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {"y": x * scale + shift, "x": x}


def affine(folder: Path, names: list[str], outputs: list[str]) -> Runtime:
    path = models.torchscript(folder, "affine.ts", Affine())
    return build(
        path,
        inputs=[tensor(name, "FP32", [-1]) for name in names],
        outputs=[tensor(name, "FP32", [-1]) for name in outputs],
    )


@pytest.mark.parametrize("names", [["x", "scale", "shift"], ["shift", "x", "scale"]])
def test_inputs_are_bound_by_name(tmp_path: Path, names: list[str]):
    runtime = affine(tmp_path, names, ["y"])
    values = {"x": 3.0, "scale": 10.0, "shift": 1.0}
    inputs = {name: np.array([values[name]], np.float32) for name in names}
    assert runtime.infer(inputs)[0].tolist() == [31.0]


def test_other_names_for_all_are_bound_in_order(tmp_path: Path):
    runtime = affine(tmp_path, ["image", "gain", "offset"], ["y"])
    inputs = {"image": [3.0], "gain": [10.0], "offset": [1.0]}
    arrays = {name: np.array(value, np.float32) for name, value in inputs.items()}
    assert runtime.infer(arrays)[0].tolist() == [31.0]


def test_a_typing_mistake_in_a_name_is_refused(tmp_path: Path):
    with pytest.raises(
        ArtifactError, match=r"forward takes \(x, scale, shift\), .* \(x, scael, sh"
    ):
        affine(tmp_path, ["x", "scael", "shift"], ["y"])
    with pytest.raises(ArtifactError, match=r"forward takes \(x, scale, shift\), .* 2 inputs"):
        affine(tmp_path, ["a", "b"], ["y"])


def test_outputs_of_a_dict_are_taken_by_key(tmp_path: Path):
    runtime = affine(tmp_path, ["x", "scale", "shift"], ["x", "y"])
    ones = {name: np.array([2], np.float32) for name in ("x", "scale", "shift")}
    assert [array.tolist() for array in runtime.infer(ones)] == [[2.0], [6.0]]
    assert [array.tolist() for array in runtime.infer(ones, ["y"])] == [[6.0]]
    with pytest.raises(ExecutionError, match="gives no output 'z'; it gives: y, x"):
        affine(tmp_path, ["x", "scale", "shift"], ["z"]).infer(ones)


def test_a_torchscript_failure_says_what_and_shows_no_code(tmp_path: Path):
    runtime = build(models.torchscript(tmp_path, "mlp.ts", models.torch_mlp()), **DECLARED)
    with pytest.raises(ExecutionError) as caught:
        runtime.infer({"x": np.zeros((2, 31), np.float32)})
    assert str(caught.value) == (
        "the model failed on this input: mat1 and mat2 shapes cannot be multiplied (2x31 and 32x64)"
    )


def state_dict(folder: Path, **settings: Any) -> dict:
    return {"factory": "mlp_factory:make", "factory_path": str(folder), **DECLARED, **settings}


def test_a_state_dict_needs_its_factory(tmp_path: Path):
    path = models.torch_state_dict(tmp_path)
    assert "holds weights without a model; add to the variant's runtime: `factory:" in refused(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": "no_such_package:make"}, "there is no module 'no_such_package'"),
        ({"factory": "mlp_factory:absent"}, "the module has no 'absent'"),
        ({"factory": "mlp_factory:not_a_module"}, "returned a int, not an nn.Module"),
        ({"factory_args": {"hidden": "x"}}, "factory mlp_factory:make failed: TypeError"),
        ({"factory_args": {"hidden": 63}}, "does not fit the module .* size mismatch for a.weight"),
    ],
)
def test_a_wrong_factory_is_explained(tmp_path: Path, settings: dict, message: str):
    path = models.torch_state_dict(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        build(path, **{**state_dict(tmp_path), **settings})


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path):
    models.torch_state_dict(tmp_path)
    marker = tmp_path / "it-ran"

    class Payload:
        def __reduce__(self) -> tuple:
            return Path.touch, (marker,)

    for name, zipped in (("new.pth", True), ("old.pth", False)):
        torch.save({"w": Payload()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        text = refused(tmp_path / name, **state_dict(tmp_path))
        assert "contains pickled code" in text
        assert "torch.save(model.state_dict(), path)" in text
        assert "weights_only" not in text  # torch's own advice would be to run it
    assert not marker.exists()


def test_a_checkpoint_with_more_than_weights_is_explained(tmp_path: Path):
    models.torch_state_dict(tmp_path)
    torch.save({"epoch": 3, "state_dict": {"w": torch.zeros(1)}}, tmp_path / "c.pth")
    text = refused(tmp_path / "c.pth", **state_dict(tmp_path))
    assert "epoch, state_dict in it are no tensors; save the state_dict alone" in text


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_precision_casts_weights_not_the_contract(tmp_path: Path, precision: str):
    runtime = build(models.torch_state_dict(tmp_path), **state_dict(tmp_path, precision=precision))
    (y,) = runtime.infer({"x": x32()})
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, models.mlp_expected(x32()), atol=0.05)
    weights = sum(array.size for array in models.mlp_weights().values())
    assert runtime.placement.memory_bytes == weights * (4 if precision == "fp32" else 2)


def test_integers_are_not_cast(tmp_path: Path):
    class Ints(torch.nn.Module):
        def forward(self, i: torch.Tensor) -> torch.Tensor:
            return i + 1

    path = models.torchscript(tmp_path, "ints.ts", Ints())
    runtime = build(
        path, precision="fp16",
        inputs=[tensor("i", "INT64", [-1])], outputs=[tensor("j", "INT64", [-1])],
    )  # fmt: skip
    big = np.array([2**53 + 1], np.int64)
    assert runtime.infer({"i": big})[0].tolist() == [2**53 + 2]


# --- settings -------------------------------------------------------------------------------------


def test_threads_and_determinism_are_set(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = models.torch_exported_mlp(tmp_path)
    try:
        runtime = build(path, intra_op_threads=2, deterministic=True)
        assert torch.get_num_threads() == 2
        assert runtime.placement.details["threads"] == "2"
        assert torch.are_deterministic_algorithms_enabled()
        build(path, intra_op_threads=1)
        assert "torch keeps intra_op_threads per process: 1 replaces 2" in caplog.text
        assert "torch keeps deterministic per process: False replaces True" in caplog.text
    finally:
        build(path)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built with CUDA")
def test_cuda_without_a_cuda_build_says_so(tmp_path: Path):
    with pytest.raises(SidecarError, match=r"device cuda:0: the installed torch .* without CUDA"):
        build(models.torch_exported_mlp(tmp_path), device="cuda:0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
@pytest.mark.parametrize("format_", ["exported", "torchscript", "state_dict"])
def test_cuda_gives_the_same(tmp_path: Path, format_: str):
    if format_ == "exported":
        path, settings = models.torch_exported_mlp(tmp_path), {"outputs": models.MLP_OUTPUTS}
    elif format_ == "torchscript":
        path, settings = models.torchscript(tmp_path, "m.ts", models.torch_mlp()), DECLARED
    else:
        path, settings = models.torch_state_dict(tmp_path), state_dict(tmp_path)
    runtime = build(path, device="cuda:0", **settings)
    np.testing.assert_allclose(
        runtime.infer({"x": x32()})[0], models.mlp_expected(x32()), atol=1e-4
    )
    assert runtime.placement.device == "cuda:0"
    assert runtime.waits is True


def test_an_artifact_may_be_moved_once_loaded(tmp_path: Path):
    """As when a volume is swapped under a running pod: nothing is read from it lazily."""
    path = models.torch_exported_mlp(tmp_path)
    runtime = build(path)
    shutil.move(path, tmp_path / "moved.pt2")
    assert runtime.infer({"x": x32()})[0].shape == (2, 10)
