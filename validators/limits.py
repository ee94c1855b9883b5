"""Limits over metrics: what counts as disagreement.

A comparator measures; limits judge, afterwards. So a stored run can be judged again under other
limits, and `limits_hash` keeps evidence gathered under different limits apart.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import override

if TYPE_CHECKING:
    from validators.comparators.base import MetricSpec

Array = npt.NDArray[Any]
Operator = Literal["<=", ">="]

PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16", "int8")

_LIMIT = re.compile(r"\s*(<=|>=)?\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """A metric agrees while it is on this side of `value`; on it is within."""

    metric: str
    op: Operator
    value: float
    source: str = "default"  # "default", "config", "calibrated", …: where the number came from

    def violated(self, values: npt.ArrayLike) -> Array:
        """bool, as `values`: beyond the limit. NaN is "does not apply"; ±inf is judged."""
        measured = np.asarray(values, dtype=np.float64)
        # A comparison with NaN is False, which is the meaning wanted here: never `not (x <= v)`.
        return measured > self.value if self.op == "<=" else measured < self.value

    @override
    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.value:g}"


def parse_limit(metric: str, text: str | float, spec: MetricSpec, source: str = "config") -> Limit:
    """``">= 40"``, ``"<= 1e-3"``, or a bare number, which takes the metric's own direction.

    Raises ValueError on anything else, and on a direction that the metric does not have (a limit
    of ``<= 40`` on a signal-to-noise ratio would call every good answer a disagreement).
    """
    own: Operator = "<=" if spec.worse == "higher" else ">="
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"limit of {metric!r}: {text!r} is neither a number nor text")
    if isinstance(text, str):
        match = _LIMIT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"limit of {metric!r}: {text!r} is not a limit; write a number, or {own} and one"
            )
        if match[1] is not None and match[1] != own:
            raise ValueError(
                f"limit of {metric!r}: {text!r} points the wrong way; {spec.worse} is worse, so "
                f"write {own} {match[2]}"
            )
        value = float(match[2])
    else:
        value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"limit of {metric!r}: {text!r} is not finite, and would judge nothing")
    return Limit(metric, own, value, source)


def default_limits(kind: str, precision: str) -> tuple[Limit, ...]:
    """The limits of validation.md for a kind of output computed in `precision`.

    Each comparator brings its own table (`Comparator.defaults`). Raises ValueError on an unknown
    kind or precision.
    """
    from validators.comparators import comparator_class  # they import Limit from here

    if precision not in PRECISIONS:
        raise ValueError(f"no precision {precision!r}; known: {', '.join(PRECISIONS)}")
    chosen = comparator_class(kind)
    specs = {spec.name: spec for spec in chosen.metrics}
    limits = []
    for metric, text in chosen.defaults.items():
        value = text if isinstance(text, str | int | float) else text[precision]
        limits.append(parse_limit(metric, value, specs[metric], source="default"))
    return tuple(limits)


def limits_hash(limits: Iterable[Limit]) -> str:
    """12 hex digits that change with any metric, direction or value; their order is no matter."""
    plain = sorted([limit.metric, limit.op, repr(float(limit.value))] for limit in limits)
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]
