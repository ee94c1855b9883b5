"""Segmentation masks: do the same pixels belong to it?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.comparators.base import Comparator, Comparison, MetricSpec
from validators.dtypes import dtype_class
from validators.sketches import LogHistogram

Array = npt.NDArray[Any]


class MasksComparator(Comparator):
    """[rows, ...] of floats, integers or booleans; all pixels of a row count together.

    A pixel is in the mask when it is over `threshold` (0.5; for logits 0). With `labels` the
    values are class indices instead, each class has a mask of its own, and a row is as good as its
    worst class. Two empty masks agree.
    """

    kind: ClassVar[str] = "masks"
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec("iou", "1", "lower", "intersection over union of the two masks"),
        MetricSpec("pixel_flips", "share", "higher", "pixels in one mask only, or of other class"),
    )
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({"threshold": 0.5, "labels": False})
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]] = MappingProxyType(
        {"iou": 0.99}
    )
    accepts: ClassVar[frozenset[str]] = frozenset({"float", "int", "bool"})

    @override
    def check_options(self) -> None:
        threshold, labels = self.settings["threshold"], self.settings["labels"]
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or not math.isfinite(threshold):
            raise ValueError(f"masks: `threshold` is a number, not {threshold!r}")
        if not isinstance(labels, bool):
            raise ValueError(f"masks: `labels` is true or false, not {labels!r}")

    @override
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        rows = reference.shape[0]
        left, right = reference.reshape(rows, -1), candidate.reshape(rows, -1)
        classes = dtype_class(left.dtype), dtype_class(right.dtype)
        if self.settings["labels"]:
            if "float" in classes:
                raise ValueError("masks: with `labels` values are class indices, and no floats")
            iou = [_labels_iou(*pair) for pair in zip(left, right, strict=True)]
            flips = (left != right).mean(axis=1)
            return Comparison(rows, {"iou": np.array(iou), "pixel_flips": flips})
        iou_rows, flip_rows, margins = np.empty(rows), np.empty(rows), LogHistogram()
        for row in range(rows):  # one by one: masks are large, and rows few
            masks = self._mask(left[row]), self._mask(right[row])
            differs = masks[0] ^ masks[1]
            union = int(np.count_nonzero(masks[0] | masks[1]))
            flipped = int(np.count_nonzero(differs))
            iou_rows[row] = 1 - flipped / union if union else 1.0
            flip_rows[row] = flipped / differs.size
            if "float" in classes and flipped:
                margin = left[row][differs].astype(np.float64) - self.settings["threshold"]
                margins.add(margin[np.isfinite(margin)])
        sketches = {"flip_margin": margins.trim()} if "float" in classes else {}
        return Comparison(rows, {"iou": iou_rows, "pixel_flips": flip_rows}, sketches)

    def _mask(self, values: Array) -> Array:
        if dtype_class(values.dtype) == "bool":
            return values
        # As float32, a float16 or bfloat16 keeps its value; NaN is over no threshold.
        wide = values.astype(np.float32) if values.dtype.itemsize < 4 else values
        return np.asarray(wide > self.settings["threshold"])

    @override
    @classmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        reference = np.zeros((8, 40, 40), np.float32)
        reference[:, 8:24, 10:30] = 1
        reference += rng.uniform(-0.2, 0.2, reference.shape).astype(np.float32)
        rounding = rng.uniform(-1e-6, 1e-6, reference.shape).astype(np.float32)
        return reference, reference + rounding, np.roll(reference, 1, axis=1)


def _labels_iou(left: Array, right: Array) -> float:
    """The least IoU of the classes in either [pixels]."""
    same = left == right
    found, at = np.unique(np.concatenate([left, right]), return_inverse=True)
    sizes = np.bincount(at, minlength=len(found))
    common = np.bincount(at[: len(left)][same], minlength=len(found))
    return float((common / (sizes - common)).min())
