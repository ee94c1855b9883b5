"""Warm-up executes as configured, and a model that fails on zeros is served all the same."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from sidecar.config_runtime import WarmUpConfig
from sidecar.runtimes import build
from sidecar.runtimes.base import Placement, Runtime, Signature, TensorSpec
from sidecar.runtimes.warmup import warm_up
from tests.support import models
from tests.support.models import variant


class Recorder(Runtime):
    """A runtime of its own, which remembers the batches it was given."""

    def __init__(self, max_batch_size: int, shape: tuple[int, ...] = (-1, 2)) -> None:
        spec = TensorSpec("x", "FP32", shape)
        super().__init__(Signature((spec,), (spec,), max_batch_size, "test", "test"),
                         Placement("cpu", 0))  # fmt: skip
        self.batches: list[int] = []

    def infer_impl(self, inputs, outputs):
        self.batches.append(inputs["x"].shape[0])
        return [inputs["x"]]


@pytest.mark.parametrize(
    ("config", "limit", "largest", "expected"),
    [
        ({}, 8, 1, [1]),
        ({}, 8, 4, [1, 4]),
        ({}, 8, 32, [1, 8]),
        ({}, 0, 32, [1]),
        ({"runs": 2}, 8, 3, [1, 1, 3, 3]),
        ({"runs": 0}, 8, 3, []),
        ({"batch_sizes": (2, 5)}, 8, 3, [2, 5]),
        ({"batch_sizes": (1, 9)}, 8, 1, [1]),
    ],
)
def test_which_batches(config: dict, limit: int, largest: int, expected: list[int]):
    runtime = Recorder(limit)
    done = warm_up(runtime, WarmUpConfig(**config), label="1/v", largest_batch=largest)
    assert runtime.batches == expected
    assert done == len(expected)


def test_a_fixed_batch_is_warmed_up_as_it_is():
    runtime = Recorder(0, shape=(3, 2))
    warm_up(runtime, WarmUpConfig(), label="1/v", largest_batch=8)
    assert runtime.batches == [3]


def test_a_batch_beyond_the_limit_is_logged(caplog: pytest.LogCaptureFixture):
    warm_up(Recorder(8), WarmUpConfig(batch_sizes=(9,)), label="1/v")
    assert "1/v: not warmed up with batch 9, its limit is 8" in caplog.text


def test_a_model_that_fails_on_zeros_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    nodes = [
        helper.make_node("Sub", ["i", "one"], ["j"]),
        helper.make_node("Sub", ["j", "four"], ["k"]),
        helper.make_node("Gather", ["table", "k"], ["row"]),
    ]
    weights = [("one", np.int64(1)), ("four", np.int64(4)), ("table", np.arange(4, dtype="f4"))]
    model = models.onnx_model(nodes, [("i", "INT64", ["n"])], [("row", "FP32", ["n"])], weights)
    path = models.save(tmp_path, "offset.onnx", model)
    with caplog.at_level(logging.WARNING):
        runtime = build(variant("onnxruntime", path))
    assert "1/v: warm-up with batch 1 failed: the model failed on this input" in caplog.text
    assert runtime.infer({"i": np.array([5])})[0].tolist() == [0.0]
