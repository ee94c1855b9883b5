"""Any tensor of numbers: signal-to-noise ratio, largest error, direction and size.

Not elementwise tolerances: for float32 matrix products the share of elements within
`assert_close` falls from 1.00 to 0.87 between K = 64 and K = 16,384, while max|d|/rms(reference)
stays near 1.4e-6. Not the cosine alone: a candidate ten times the reference has cosine 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.comparators.base import Comparator, Comparison, MetricSpec
from validators.moments import moments

Array = npt.NDArray[Any]


class TensorComparator(Comparator):
    """d = candidate − reference, over the values of a row."""

    kind: ClassVar[str] = "tensor"
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec(
            "sqnr_db", "dB", "lower",
            "20·log10(rms(reference) / rms(d)); inf when nothing differs",
        ),
        MetricSpec("max_rel_rms", "1", "higher", "max|d| / rms(reference)"),
        MetricSpec("max_abs", "output's own", "higher", "max|d|"),
        MetricSpec("rmse", "output's own", "higher", "rms(d)"),
        MetricSpec("bias", "output's own", "higher", "|mean(d)|"),
        MetricSpec("cosine", "1", "lower", "of the angle between reference and candidate"),
        MetricSpec(
            "norm_error", "1", "higher", "| |candidate| / |reference| − 1 |, Euclidean norms"
        ),
    )  # fmt: skip
    looks_for_nonfinite: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]] = MappingProxyType({
        # fp64 as fp32: a float64 candidate is judged against a reference that mostly is float32.
        "sqnr_db": {
            "fp64": 100, "fp32": 100, "tf32": 60, "fp16": 50, "bf16": 35, "int8": 20,
        },
        "max_rel_rms": {
            "fp64": 1e-4, "fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 1e-1, "int8": 0.5,
        },
    })  # fmt: skip

    @override
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        found, sketches = moments(reference, candidate)
        with np.errstate(all="ignore"):
            size = np.where(
                found.norm_candidate == found.norm_reference,
                0.0,
                np.abs(found.norm_candidate / found.norm_reference - 1),
            )
            metrics = {
                "sqnr_db": 20 * np.log10(found.ratio),
                "max_rel_rms": found.max_over_rms,
                "max_abs": found.max_d,
                "rmse": found.norm_d / np.sqrt(found.count),
                "bias": np.abs(found.total_d) / found.count,
                "cosine": found.cosine,
                "norm_error": np.where(found.count == 0, np.nan, size),
            }
        return Comparison(reference.shape[0], metrics, sketches, found.all_finite)

    @override
    @classmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        reference = rng.standard_normal((16, 24)).astype(np.float32)
        rounding = 1 + rng.uniform(-1e-6, 1e-6, reference.shape).astype(np.float32)
        return reference, reference * rounding, reference * np.float32(10)
