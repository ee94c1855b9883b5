"""A failing input, made as small as it can be while it still fails.

Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002)
over three things in turn: rows of the batch, positions along axes of variable length, and values,
which are not removed but made neutral (0, False, empty text). What is left is often one row with a
handful of values in it, and then says more than any number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array

#: Whether inputs still fail. Must not write into them.
Predicate = Callable[[dict[str, "Array"]], bool]
#: Axes of one length: they are shortened together. ``(("tokens", 1), ("mask", 1))``.
AxisGroup = Sequence[tuple[str, int]]


@dataclass(slots=True)
class Shrunk:
    """What was left.

    Attributes:
        inputs: fail, as the last run on them said.
        rows: which rows of the original are left; ``None`` where there is no batch dimension.
        values_left: how many values are not neutral; values_before: how many were not.
        runs: of the predicate, at most the budget.
        exhausted: the budget ended the search: it may be smaller still.
        steps: what was done, a sentence each.
    """

    inputs: dict[str, Array]
    rows: list[int] | None
    values_left: int
    values_before: int
    runs: int
    exhausted: bool = False
    steps: list[str] = field(default_factory=list)


def shrink(
    inputs: Mapping[str, Array],
    predicate: Predicate,
    budget: int = 200,
    *,
    batched: bool = True,
    axes: Sequence[AxisGroup] = (),
) -> Shrunk:
    """Shrink inputs while ``predicate`` holds.

    Args:
        inputs: name → array; never written into.
        predicate: is run on copies; ``True``: it still fails. What it raises comes out.
        budget: how often it may be run, the first run included.
        batched: the first axis of every input counts rows, which may be left out.
        axes: groups of further axes of variable length.

    Returns:
        The smallest failing inputs found.

    Raises:
        ValueError: the budget is below 1, the inputs do not fail to begin with, or the axes named
            are not of one length.
    """
    if budget < 1:
        message = f"a budget of {budget} runs allows none"
        raise ValueError(message)
    current = {name: np.array(array) for name, array in inputs.items()}
    search = _Search(current, predicate, budget)
    if not search.fails(current):
        message = "these inputs do not fail to begin with: there is nothing to shrink"
        raise ValueError(message)
    before = _count(current)
    rows: list[int] | None = None
    if batched and current:
        lengths = {array.shape[0] if array.ndim else 0 for array in current.values()}
        if len(lengths) > 1 or not all(array.ndim for array in current.values()):
            message = "batched inputs have one number of rows, and these differ: "
            message += ", ".join(f"{name} {list(array.shape)}" for name, array in current.items())
            raise ValueError(message)
        rows = search.positions([(name, 0) for name in current], "rows").tolist()
    for group in axes:
        if group:
            search.positions(group, " and ".join(f"{name} axis {axis}" for name, axis in group))
    for name in search.inputs:
        search.neutralize(name)
    return Shrunk(
        inputs=search.inputs,
        rows=rows,
        values_left=_count(search.inputs),
        values_before=before,
        runs=search.runs,
        exhausted=search.runs >= budget,
        steps=search.steps,
    )


class _Search:
    def __init__(self, inputs: dict[str, Array], predicate: Predicate, budget: int) -> None:
        self.inputs = inputs
        self.runs = 0
        self.steps: list[str] = []
        self._predicate, self._budget = predicate, budget

    def fails(self, inputs: dict[str, Array]) -> bool:
        """Run once more; once the budget is spent everything counts as passing."""
        if self.runs >= self._budget:
            return False
        self.runs += 1
        return bool(self._predicate({name: array.copy() for name, array in inputs.items()}))

    def more(self) -> bool:
        """Whether the budget allows another run."""
        return self.runs < self._budget

    def positions(self, group: AxisGroup, what: str) -> Array:
        """Leave out positions along axes that belong together; gives those kept."""
        lengths = {self.inputs[name].shape[axis] for name, axis in group}
        if len(lengths) != 1:
            message = f"{what}: these axes are not of one length ({sorted(lengths)})"
            raise ValueError(message)
        (length,) = lengths

        def cut(kept: Array) -> dict[str, Array]:
            made = dict(self.inputs)
            for name, axis in group:
                made[name] = np.take(made[name], kept, axis=axis)
            return made

        # One position at least: most models refuse an empty axis, which would be another failure.
        kept = minimize(
            np.arange(length), lambda items: self.fails(cut(items)), least=1, more=self.more
        )
        if kept.size < length:
            self.inputs = cut(kept)
            self.steps.append(f"{what}: {kept.size} of {length} left")
        return kept

    def neutralize(self, name: str) -> None:
        """Make values of one input neutral."""
        original = self.inputs[name]
        neutral = _neutral(original)
        flat = original.ravel()
        present = np.flatnonzero(flat != neutral)

        def only(kept: Array) -> dict[str, Array]:
            made = np.full(flat.shape, neutral, flat.dtype)
            made[kept] = flat[kept]
            return {**self.inputs, name: made.reshape(original.shape)}

        if not present.size:
            return
        kept = minimize(present, lambda items: self.fails(only(items)), least=0, more=self.more)
        if kept.size < present.size:
            self.inputs = only(kept)
            self.steps.append(f"{name}: {kept.size} of {present.size} values left, others neutral")


def minimize(
    items: Array, holds: Callable[[Array], bool], *, least: int, more: Callable[[], bool]
) -> Array:
    """The classical ``ddmin``: parts alone, then all but one part, then smaller parts.

    Args:
        items: for which ``holds`` is true, in an order in which neighbours belong together.
        holds: whether a subset, in that order, still does.
        least: the smallest size that is tried.
        more: whether the search may go on.

    Returns:
        A subset that holds, from which no single item can be left out (unless ``more`` ended it).
    """
    if not least and holds(items[:0]):
        return items[:0]
    parts = 2
    while items.size > max(least, 1) and more():
        chunks = np.array_split(items, min(parts, items.size))
        smaller = next((chunk for chunk in chunks if holds(chunk)), None)
        if smaller is not None:
            items, parts = smaller, 2
            continue
        rest = None
        if len(chunks) > 2:  # of two, leaving out one is the other alone
            without = (items[~np.isin(items, chunk)] for chunk in chunks)
            rest = next((each for each in without if holds(each)), None)
        if rest is not None:
            items, parts = rest, max(parts - 1, 2)
        elif parts >= items.size:
            break
        else:
            parts = min(2 * parts, items.size)
    return items


def _neutral(array: Array) -> object:
    if array.dtype == object:
        return b"" if array.size and isinstance(array.flat[0], bytes) else ""
    return array.dtype.type(0)


def _count(inputs: Mapping[str, Array]) -> int:
    return sum(int(np.count_nonzero(array != _neutral(array))) for array in inputs.values())
