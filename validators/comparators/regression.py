"""A quantity with a unit: a price, a temperature, an angle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.comparators.base import Comparator, Comparison, MetricSpec
from validators.moments import moments, wide

Array = npt.NDArray[Any]

#: The unit, as a share of the range, when the user gives none.
_SHARE = 1e-3


class RegressionComparator(Comparator):
    """d = candidate − reference; judged in units, the smallest difference that matters.

    The unit is the option `unit`; or 0.1 % of the option `range` (how far the values can lie
    apart); or else 0.1 % of the range of the reference's answers in the same request, zero
    included: for a single answer that is 0.1 % of its size. Where values lie far from zero
    (temperatures in kelvin) that last guess is too lenient, so give one of the options.
    """

    kind: ClassVar[str] = "regression"
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec("delta_units", "units", "higher", "max|d| / unit"),
        MetricSpec("abs_delta", "output's own", "higher", "max|d|"),
        MetricSpec("bias", "output's own", "higher", "|mean(d)|"),
        MetricSpec("rmse", "output's own", "higher", "rms(d)"),
    )
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({"unit": None, "range": None})
    looks_for_nonfinite: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]] = MappingProxyType(
        {"delta_units": 1}
    )

    @override
    def check_options(self) -> None:
        given = {name: value for name, value in self.settings.items() if value is not None}
        if len(given) > 1:
            raise ValueError("regression takes `unit` or `range`, not both")
        for name, value in given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise ValueError(f"regression: `{name}` must be a number over 0, not {value!r}")

    def _unit(self, reference: Array) -> float:
        if self.settings["unit"] is not None:
            return float(self.settings["unit"])
        if self.settings["range"] is not None:
            return _SHARE * float(self.settings["range"])
        values = wide(reference).astype(np.float64)
        values = values[np.isfinite(values)]
        return _SHARE * float(values.max(initial=0)) - _SHARE * float(values.min(initial=0))

    @override
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        found, sketches = moments(reference, candidate)
        unit = self._unit(reference)
        with np.errstate(all="ignore"):
            units = np.where(found.max_d == 0, 0.0, found.max_d / unit)
            metrics = {
                "delta_units": units,
                "abs_delta": found.max_d,
                "bias": np.abs(found.total_d) / found.count,
                "rmse": found.norm_d / np.sqrt(found.count),
            }
        kept = {"abs_error": sketches["abs_error"]}
        return Comparison(reference.shape[0], metrics, kept, found.all_finite)

    @override
    @classmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        reference = rng.uniform(50, 100, (16, 1)).astype(np.float32)
        return reference, reference * np.float32(1 + 1e-6), reference * np.float32(1.01)
