"""Digits as traffic: real ones, rotated ones, and a small model that reads them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from onnx import helper
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from tests.support import models


@cache
def images() -> np.ndarray:
    """All of scikit-learn's digits, FP32 [1797, 1, 8, 8] in 0 to 16, in a random order."""
    found = load_digits().images.astype(np.float32)[:, None]
    return found[np.random.default_rng(5).permutation(len(found))]


@cache
def labels() -> np.ndarray:
    found = load_digits().target
    return found[np.random.default_rng(5).permutation(len(found))]


def traffic(count: int, seed: object, *, degrees: float = 0.0, noise: float = 0.0) -> np.ndarray:
    """Digits drawn at random, rotated by ``degrees``, with noise of that standard deviation."""
    rng = np.random.default_rng(seed)
    drawn = images()[rng.integers(0, len(images()), count)]
    if degrees:
        drawn = rotate(drawn, degrees, axes=(2, 3), reshape=False, order=1)
    return (drawn + rng.normal(scale=noise, size=drawn.shape)).astype(np.float32)


def model(folder: Path) -> Path:
    """``image`` FP32 [batch, 1, 8, 8] → ``probabilities`` FP32 [batch, 10]: least squares."""
    pixels = images().reshape(len(images()), -1).astype(np.float64) / 16
    wanted = np.eye(10)[labels()]
    weights = np.linalg.solve(pixels.T @ pixels + np.eye(64), pixels.T @ wanted) / 16 * 8
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["probabilities"], axis=1),
    ]
    tensors = (
        [("image", "FP32", ["batch", 1, 8, 8])], [("probabilities", "FP32", ["batch", 10])],
    )  # fmt: skip
    made = models.onnx_model(nodes, *tensors, [("weights", weights.astype(np.float32))])
    return models.save(folder, "digits.onnx", made)


class Reader:
    """The model, called in this process."""

    def __init__(self, folder: Path) -> None:
        from onnxruntime import InferenceSession

        self._session = InferenceSession(model(folder), providers=["CPUExecutionProvider"])

    def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"probabilities": self._session.run(None, {"image": rows})[0]}
