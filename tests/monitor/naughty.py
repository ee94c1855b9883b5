"""Models that misbehave on magic inputs, and small helpers around the mirror child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from sidecar.clock import SystemClock
from sidecar.monitor.mirror import MirrorProcess
from tests.support import models

#: What the first element of ``x`` makes the model do.
RAISE, CRASH = 1e6, 2e6

_FACTORY = f"""
import ctypes

import torch


class Naughty(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        magic = float(x.flatten()[0])
        if magic == {RAISE}:
            raise ValueError("I do not like this one")
        if magic == {CRASH}:
            ctypes.string_at(0)
        return x * self.w


def make():
    return Naughty()
"""


def naughty(folder: Path) -> Any:
    """A PyTorch variant, x [-1, 4] → y = x, that raises or crashes when it is told to."""
    import torch

    (folder / "naughty_factory.py").write_text(_FACTORY)
    torch.save({"w": torch.ones(1)}, folder / "naughty.pth")
    return models.variant(
        "pytorch",
        folder / "naughty.pth",
        inputs=[models.tensor("x", "FP32", [-1, 4])],
        outputs=[models.tensor("y", "FP32", [-1, 4])],
        factory="naughty_factory:make",
        factory_path=str(folder),
    )


def identity(folder: Path) -> Any:
    """The same as it should be, on ONNX Runtime."""
    return models.variant("onnxruntime", models.onnx_identity(folder, "FP32", ("batch", 4)))


def endless(folder: Path) -> Any:
    """An ONNX model that counts to ``n``: a loop that takes as long as it is told."""
    name = "endless.onnx"
    info = helper.make_tensor_value_info
    types = models.ONNX_TYPES
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [
            info("i", types["INT64"], []), info("go", types["BOOL"], []),
            info("sum", types["INT64"], [1]),
        ],
        [info("go_on", types["BOOL"], []), info("next", types["INT64"], [1])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Squeeze", ["n", "axis"], ["trips"]),
        helper.make_node("Loop", ["trips", "yes", "zero"], ["y"], body=body),
    ]
    weights = [
        ("axis", np.array([0])), ("yes", np.array(True)), ("zero", np.array([0])),
        ("one", np.array([1])),
    ]  # fmt: skip
    io = [("n", "INT64", [1])], [("y", "INT64", [1])]
    return models.variant(
        "onnxruntime", models.save(folder, name, models.onnx_model(nodes, *io, weights))
    )


def mirror(variants: dict[str, Any], *, timeout_s: float = 60, **settings: Any) -> MirrorProcess:
    """A mirror over variants by key, not started."""
    trees = {key: variant.model_dump(mode="json") for key, variant in variants.items()}
    settings = {"memory_max_bytes": None, "keep": variants, **settings}
    return MirrorProcess(trees, timeout_s=timeout_s, clock=SystemClock(), **settings)


def rows(first: float, count: int = 1) -> np.ndarray:
    """[count, 4] whose first element is ``first``."""
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    x[0, 0] = first
    return x
