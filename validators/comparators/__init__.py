"""The kinds of output that can be compared, and policies that join a kind with its limits.

A comparator is one file and one line of `BUILTIN`; its module is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, cast

from validators.comparators.base import Comparator, MetricSpec
from validators.limits import Limit, default_limits, parse_limit
from validators.policy import OutputPolicy

__all__ = [
    "BUILTIN",
    "OutputPolicy",
    "build",
    "check_policy",
    "comparator_class",
    "make_policy",
    "metric_specs",
]

#: Kind of output → "module:class".
BUILTIN: Mapping[str, str] = MappingProxyType(
    {
        "tensor": "validators.comparators.tensor:TensorComparator",
        "class_scores": "validators.comparators.class_scores:ClassScoresComparator",
        "embedding": "validators.comparators.embedding:EmbeddingComparator",
        "boxes": "validators.comparators.boxes:BoxesComparator",
        "masks": "validators.comparators.masks:MasksComparator",
        "token_ids": "validators.comparators.token_ids:TokenIdsComparator",
        "regression": "validators.comparators.regression:RegressionComparator",
        "exact": "validators.comparators.exact:ExactComparator",
    }
)


@cache
def comparator_class(kind: str) -> type[Comparator]:
    """Raises ValueError for an unknown kind, listing the known ones."""
    if kind not in BUILTIN:
        raise ValueError(f"no kind of output {kind!r}; known: {', '.join(BUILTIN)}")
    module, name = BUILTIN[kind].split(":")
    return cast("type[Comparator]", getattr(import_module(module), name))


def build(kind: str, options: Mapping[str, Any] = MappingProxyType({})) -> Comparator:
    """Raises ValueError for an unknown kind or a bad option."""
    return comparator_class(kind)(options)


def metric_specs(kind: str) -> dict[str, MetricSpec]:
    """Metric name → what it is."""
    return {spec.name: spec for spec in comparator_class(kind).metrics}


def make_policy(
    kind: str,
    precision: str,
    limits: Mapping[str, str | float] | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    inferred: str = "",
) -> OutputPolicy:
    """Join a kind with limits; None takes the defaults of `precision`.

    Raises ValueError for an unknown kind, metric, option or precision, and for no limits at all.
    """
    build(kind, options)
    if limits is None:
        return OutputPolicy(kind, default_limits(kind, precision), dict(options), inferred)
    return OutputPolicy(kind, _parse(kind, limits), dict(options), inferred)


def check_policy(
    output_name: str,
    kind: str | None,
    limits: Mapping[str, str | float] | None,
    options: Mapping[str, Any] | None,
) -> None:
    """Raise ValueError when an output's settings make no sense; used by the config.

    Without a kind (it is inferred when the model is known) a metric or an option must belong to
    some kind at least.
    """
    try:
        if kind is not None:
            build(kind, options or {})
            if limits is not None:
                _parse(kind, limits)
        else:
            _fits_some_kind(limits, options or {})
    except ValueError as error:
        raise ValueError(f"output {output_name!r}: {error}") from None


def _parse(kind: str, limits: Mapping[str, str | float]) -> tuple[Limit, ...]:
    specs = metric_specs(kind)
    if not limits:
        raise ValueError("limits are empty, so nothing would be judged; leave them out instead")
    for metric in limits:
        if metric not in specs:
            raise ValueError(f"{kind} has no metric {metric!r}; known: {', '.join(specs)}")
    return tuple(parse_limit(metric, text, specs[metric]) for metric, text in limits.items())


def _fits_some_kind(limits: Mapping[str, str | float] | None, options: Mapping[str, Any]) -> None:
    problems = []
    for kind in BUILTIN:
        try:
            build(kind, options)
            if limits is not None:
                _parse(kind, limits)
        except ValueError as error:
            problems.append(str(error))
        else:
            return
    raise ValueError(f"fits no kind of output: {'; '.join(problems)}. Name its `kind`")
