"""What a variant computes in, told by its artifact."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from sidecar.config import VariantConfig
from sidecar.errors import ArtifactError
from sidecar.validation.precision import coarser, infer_precision
from tests.support import models


def onnx_with(folder, dtype):
    """x·w in one element type, cast at both ends, as converters with fp32 inputs make it."""
    to = {"float16": "FP16", "float64": "FP64", "float32": "FP32"}[dtype]
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=models.ONNX_TYPES[to]),
        helper.make_node("MatMul", ["c", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=models.ONNX_TYPES["FP32"]),
    ]
    weight = np.eye(3).astype(dtype)
    io = [("x", "FP32", ["b", 3])], [("y", "FP32", ["b", 3])]
    return models.save(folder, f"{dtype}.onnx", models.onnx_model(nodes, *io, [("w", weight)]))


def onnx_quantized_inside_if(folder):
    """The quantizing node stands in a subgraph, where only a walk into attributes finds it."""

    def branch(name):
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale"], [f"q{name}"]),
            helper.make_node("DequantizeLinear", [f"q{name}", "scale"], [name]),
        ]
        out = helper.make_tensor_value_info(name, models.ONNX_TYPES["FP32"], ["b", 3])
        return helper.make_graph(nodes, name, [], [out])

    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch("t"), else_branch=branch("e"))
    scale = [("scale", np.float32(0.1)), ("yes", np.array(True))]
    io = [("x", "FP32", ["b", 3])], [("y", "FP32", ["b", 3])]
    return models.save(folder, "quantized.onnx", models.onnx_model([node], *io, scale))


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float16", "fp16"), ("float32", "fp32"), ("float64", "fp64")]
)
def test_the_weights_of_an_onnx_file_tell(tmp_path, dtype, precision):
    variant = models.variant("onnxruntime", onnx_with(tmp_path, dtype))
    found, sentence = infer_precision(variant)
    assert found == precision
    assert sentence.startswith(f"{precision}: {dtype}.onnx has")


def test_quantizing_nodes_are_found_in_subgraphs(tmp_path):
    variant = models.variant("onnxruntime", onnx_quantized_inside_if(tmp_path))
    found, sentence = infer_precision(variant)
    assert found == "int8"
    assert "2 " in sentence
    assert "quantized.onnx" in sentence


def test_what_is_declared_wins(tmp_path):
    variant = models.variant("onnxruntime", onnx_with(tmp_path, "float32"))
    variant = variant.model_copy(update={"precision": "int8"})
    assert infer_precision(variant) == ("int8", "int8: declared in the configuration")


def test_a_damaged_file_is_said(tmp_path):
    path = onnx_with(tmp_path, "float32")
    variant = models.variant("onnxruntime", path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"float32\.onnx"):
        infer_precision(variant)


def test_another_server_is_taken_as_fp32_and_said():
    tree = {"kind": "remote", "address": "127.0.0.1:1", "model_name": "m"}
    variant = VariantConfig.model_validate(
        {"name": "v", "version": "1", "roles": ["mirror"], "runtime": tree}
    )
    found, sentence = infer_precision(variant)
    assert found == "fp32"
    assert "does not say" in sentence


def test_a_pytorch_setting_and_a_pickle_tell(tmp_path):
    import torch

    path = models.torch_state_dict(tmp_path)
    setting = {"factory": "mlp_factory:make", "factory_path": str(tmp_path)}
    assert infer_precision(models.variant("pytorch", path, **setting))[0] == "fp32"
    cast = models.variant("pytorch", path, precision="bf16", **setting)
    assert infer_precision(cast)[0] == "bf16"
    torch.save({"w": torch.zeros(2, dtype=torch.float16)}, path)
    assert infer_precision(models.variant("pytorch", path, **setting))[0] == "fp16"


def test_an_exported_program_tells(tmp_path):
    import torch

    class Half(torch.nn.Module):
        def forward(self, x):
            return x * 2

    half = models.torch_export(tmp_path, "half.pt2", Half(), (torch.zeros(2, 3).half(),))
    assert infer_precision(models.variant("pytorch", half))[0] == "fp16"
    single = models.torch_export(tmp_path, "single.pt2", Half(), (torch.zeros(2, 3),))
    assert infer_precision(models.variant("pytorch", single))[0] == "fp32"


def test_the_coarser_of_two():
    assert coarser("fp32", "int8") == "int8"
    assert coarser("bf16", "fp64") == "bf16"
