"""One exchange as the watch for drift takes it, and joining those that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidecar.runtimes.base import Array


@dataclass(frozen=True, slots=True)
class Seen:
    """Tensors as the model has them.

    Attributes:
        outputs: as they were served; ``None``: not known (asked for as labels, …).
        batched: the first axis counts rows; ``None``: nobody has said.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array] | None
    batched: bool | None


def can_join(one: Seen, other: Seen) -> bool:
    """Whether both have the same tensors, but for the number of rows."""
    if one.batched is not other.batched or (one.outputs is None) is not (other.outputs is None):
        return False
    shapes = _shapes(one)
    return shapes is not None and shapes == _shapes(other)


def _shapes(seen: Seen) -> dict[tuple[str, str], Any] | None:
    """(side, tensor) → dtype and the shape of a row; ``None``: rows are not the first axis."""
    found: dict[tuple[str, str], Any] = {}
    lengths = set()
    for side, tensors in (("inputs", seen.inputs), ("outputs", seen.outputs or {})):
        for name, array in tensors.items():
            if array.ndim == 0:
                return None
            lengths.add(len(array))
            found[side, name] = (array.dtype, array.shape[1:])
    return found if len(lengths) == 1 else None


def join(group: Sequence[Seen]) -> Seen:
    """The rows of all that ``can_join``, in their order."""
    first = group[0]
    if len(group) == 1:
        return first
    inputs = {name: np.concatenate([one.inputs[name] for one in group]) for name in first.inputs}
    outputs = None
    if first.outputs is not None:
        parts = [one.outputs for one in group if one.outputs is not None]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in first.outputs}
    return Seen(inputs, outputs, first.batched)
