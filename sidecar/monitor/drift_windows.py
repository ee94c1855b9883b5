"""Rows of one model's traffic to windows, windows to a state of drift; survives a restart.

It knows nothing of exchanges, files or threads: whoever calls it decodes, keeps and tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from validators.drift.calibrate import CORRELATION, KERNEL, Calibration, UnitScore
from validators.drift.columns import Rows
from validators.drift.reference import Reference, Window
from validators.drift.state import DriftState, Transition


@dataclass(frozen=True, slots=True)
class Judged:
    """A closed window. ``scores``: None, it had too few rows; ``changed``: units' new states."""

    rows: int
    scores: tuple[UnitScore, ...] | None
    changed: tuple[Transition, ...]


class DriftWindows:
    """One open window beside a reference, and the state that the closed ones led to.

    Args:
        window_max_s: a window closes at this age, however few rows it has: without traffic
            nothing is known, and the state says so.
        now_s: of a monotonic clock, seconds; no change of the date can close a window.
    """

    def __init__(
        self, reference: Reference, calibration: Calibration, *, window_max_s: float, now_s: float
    ) -> None:
        names = [column.name for column in reference.columns]
        units = [*names, CORRELATION, KERNEL] if len(names) > 1 else names
        self.reference, self.calibration = reference, calibration
        self.window = reference.window()
        self.state = DriftState.start(units, calibration.threshold, calibration.clear)
        self._max_s = window_max_s
        self._opened_s = now_s
        self._identity = _identity(reference, calibration)

    def add(self, rows: Rows, now_s: float) -> list[Judged]:
        """Count rows; return the windows that this closed, in order.

        A batch that goes over the end of a window is split, so that every full window has the
        number of rows that its thresholds were made for. ValueError for other columns.
        """
        size = len(rows[self.reference.columns[0].name])
        closed, begin = [], 0
        while begin < size:
            end = min(size, begin + self.calibration.window_rows - self.window.rows)
            part = {c.name: rows[c.name][begin:end] for c in self.reference.columns}
            self.reference.add(self.window, part)
            begin = end
            if self.window.rows >= self.calibration.window_rows:
                closed.append(self._close(now_s))
        return closed

    def tick(self, now_s: float) -> Judged | None:
        """Close the window if it is too old."""
        return self._close(now_s) if now_s - self._opened_s >= self._max_s else None

    def _close(self, now_s: float) -> Judged:
        scores = self.calibration.judge(self.reference, self.window)
        self.state, changed = self.state.next(scores)
        judged = Judged(self.window.rows, scores, changed)
        self.window, self._opened_s = self.reference.window(), now_s
        return judged

    def to_plain(self, now_s: float) -> dict[str, Any]:
        """JSON values; the window in the form that windows of replicas are merged from."""
        return {
            "reference": self._identity,
            "age_s": now_s - self._opened_s,
            "state": self.state.to_plain(),
            "window": self.window.to_plain(),
        }

    def restore(self, plain: Mapping[str, Any], now_s: float) -> None:
        """Go on where `to_plain` was. ValueError, with nothing changed: of another reference."""
        try:
            identity, age_s = plain["reference"], float(plain["age_s"])
            state, window = plain["state"], plain["window"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a stored state of drift: {error!r}") from error
        if identity != self._identity:
            raise ValueError("the stored state of drift was made with another reference")
        restored = DriftState.from_plain(state), Window.from_plain(window)
        if set(restored[0].units) != set(self.state.units):
            raise ValueError("the stored state of drift is of other columns")
        self.state, self.window = restored
        self._opened_s = now_s - max(0.0, age_s)


def _identity(reference: Reference, calibration: Calibration) -> str:
    """Of what decides where a row is counted and how a window is judged."""
    digest = hashlib.sha256(repr([column.name for column in reference.columns]).encode())
    for array in (reference.counted.counts, reference.positions):
        digest.update(array.tobytes())
    digest.update(repr(calibration.to_plain()).encode())
    return digest.hexdigest()
