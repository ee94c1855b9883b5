"""Scores of windows to states: ok, suspect, alarm; or not enough data to say.

A pure machine: the same scores in the same order give the same states, here and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

from validators.drift.calibrate import UnitScore

#: Windows in a row over the threshold that make an alarm; under the clearing level, that end it.
RUN = 2


class State(StrEnum):
    """Of one unit (a column, or the columns together), or of all."""

    OK = "ok"
    SUSPECT = "suspect"
    ALARM = "alarm"
    INSUFFICIENT_DATA = "insufficient_data"


#: What a summary of several shows; of no unit nothing is known.
_WORST = (State.ALARM, State.SUSPECT, State.INSUFFICIENT_DATA, State.OK)


@dataclass(frozen=True, slots=True)
class UnitState:
    """``over``: windows in a row over the threshold; ``under``: under the clearing level."""

    state: State = State.INSUFFICIENT_DATA
    over: int = 0
    under: int = 0
    score: float = 0.0

    def next(self, score: float | None, threshold: float, clear: float) -> UnitState:
        """After one more window; None: it had too few rows.

        Such a window neither clears nor makes an alarm, and is not ok; runs go on across it. An
        alarm holds until ``RUN`` windows in a row are under ``clear`` (≤ threshold).
        """
        if score is None:
            held = self.state if self.state is State.ALARM else State.INSUFFICIENT_DATA
            return replace(self, state=held)
        over = self.over + 1 if score > threshold else 0
        under = self.under + 1 if score < clear else 0
        if over >= RUN or (self.state is State.ALARM and under < RUN):
            state = State.ALARM
        else:
            state = State.SUSPECT if over else State.OK
        return UnitState(state, over, under, score)


@dataclass(frozen=True, slots=True)
class Transition:
    """A unit that changed its state in a window."""

    unit: str
    before: State
    after: State


@dataclass(frozen=True, slots=True)
class DriftState:
    """All units of one reference. ``windows``: judged so far; ``threshold``, ``clear``: levels."""

    units: Mapping[str, UnitState]
    threshold: float
    clear: float
    windows: int = 0

    @classmethod
    def start(cls, units: Iterable[str], threshold: float, clear: float) -> Self:
        """Before the first window: nothing is known."""
        if not clear <= threshold:
            raise ValueError(f"an alarm cannot clear at {clear}, above its threshold {threshold}")
        return cls({unit: UnitState() for unit in units}, threshold, clear)

    @property
    def state(self) -> State:
        """The worst of the units; an alarm of one is an alarm."""
        found = {unit.state for unit in self.units.values()}
        return next((state for state in _WORST if state in found), State.INSUFFICIENT_DATA)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Units in alarm, the highest score first."""
        found = [name for name, unit in self.units.items() if unit.state is State.ALARM]
        return tuple(sorted(found, key=lambda name: -self.units[name].score))

    def next(self, scores: Iterable[UnitScore] | None) -> tuple[DriftState, tuple[Transition, ...]]:
        """After one more window (`Calibration.judge`), with what changed.

        ValueError when its units are not those of this state.
        """
        if scores is None:
            units = {
                name: unit.next(None, self.threshold, self.clear)
                for name, unit in self.units.items()
            }
            windows = self.windows
        else:
            found = {item.unit: item.score for item in scores}
            if set(found) != set(self.units):
                raise ValueError(f"scores of {sorted(found)}, states of {sorted(self.units)}")
            units = {
                name: unit.next(found[name], self.threshold, self.clear)
                for name, unit in self.units.items()
            }
            windows = self.windows + 1
        changed = tuple(
            Transition(name, self.units[name].state, unit.state)
            for name, unit in units.items()
            if unit.state is not self.units[name].state
        )
        return replace(self, units=units, windows=windows), changed

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "threshold": self.threshold,
            "clear": self.clear,
            "windows": self.windows,
            "units": {
                name: {"state": str(u.state), "over": u.over, "under": u.under, "score": u.score}
                for name, u in self.units.items()
            },
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when `plain` is not what `to_plain` wrote."""
        try:
            units = {
                str(name): UnitState(
                    State(unit["state"]),
                    int(unit["over"]),
                    int(unit["under"]),
                    float(unit["score"]),
                )
                for name, unit in plain["units"].items()
            }
            levels = float(plain["threshold"]), float(plain["clear"])
            return cls(units, *levels, int(plain["windows"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a stored state of drift: {error!r}") from error
