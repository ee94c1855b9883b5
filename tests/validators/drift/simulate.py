"""Traffic with and without drift: 20 columns, rows independent or correlated in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from validators.drift.calibrate import Calibration, calibrate
from validators.drift.columns import Column, ColumnType, Rows
from validators.drift.reference import Reference
from validators.drift.state import DriftState, State

COLUMNS = tuple(Column(f"c{index}", ColumnType.NUMERIC) for index in range(20))


@dataclass
class Traffic:
    """Standard normal columns; the first two correlated by ``correlation``; c7 shifted.

    ``block``: rows in a request; they share half of their variance (1: independent).
    """

    rng: np.random.Generator
    block: int = 1
    correlation: float = 0.8
    shift: float = 0.0

    def rows(self, count: int) -> Rows:
        found = self.rng.normal(size=(count, len(COLUMNS)))
        if self.block > 1:
            requests = -(-count // self.block)
            common = self.rng.normal(size=(requests, len(COLUMNS))).repeat(self.block, axis=0)
            found = np.sqrt(0.5) * (found + common[:count])
        own = np.sqrt(1 - self.correlation**2)
        found[:, 1] = self.correlation * found[:, 0] + own * found[:, 1]
        found[:, 7] += self.shift
        return {column.name: found[:, at] for at, column in enumerate(COLUMNS)}


@dataclass
class Watch:
    """A registered reference with its thresholds."""

    reference: Reference
    calibration: Calibration

    @classmethod
    def over(cls, rows: Rows, columns: tuple[Column, ...] = COLUMNS, **settings: object) -> Watch:
        reference = Reference.of(rows, columns, seed=3)
        return cls(reference, calibrate(reference, reference.codes(rows), **settings))

    def start(self) -> DriftState:
        units = self.calibration.units(self.reference)
        return DriftState.start(units, self.calibration.threshold, self.calibration.clear)

    def states(self, windows: Iterable[Rows]) -> Iterator[DriftState]:
        state = self.start()
        for rows in windows:
            window = self.reference.window()
            self.reference.add(window, rows)
            state, _ = state.next(self.calibration.judge(self.reference, window))
            yield state


def alarms(watch: Watch, windows: Iterable[Rows]) -> int:
    """How many alarms began."""
    before, count = State.OK, 0
    for state in watch.states(windows):
        count += state.state is State.ALARM and before is not State.ALARM
        before = state.state
    return count


def delay(watch: Watch, windows: Iterable[Rows], unit: str) -> float:
    """Windows until ``unit`` alarms; infinite: not in these."""
    for number, state in enumerate(watch.states(windows), 1):
        if unit in state.alarms:
            return number
    return float("inf")
