"""Between a model's drift and the store: what changed since it was last written, and back.

Rows that are collected for a live reference are written as they come, so that a restart does not
begin anew; with the finished reference they go.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidecar.monitor import drift_reference
from sidecar.monitor.drift_collect import Collector
from sidecar.monitor.drift_columns import Columns
from sidecar.monitor.drift_model import ModelDrift
from sidecar.monitor.drift_reference import RegisteredReference
from sidecar.monitor.drift_store import Change, DriftTables, Kept
from validators.drift.columns import Rows

logger = logging.getLogger("sidecar.monitor.drift")


class ModelKeeper:
    """Keeps one model in the store. ``load`` and ``flush`` are for one thread at a time."""

    def __init__(self, model: ModelDrift) -> None:
        self._drift = model
        self._written = -1  # of `changes`
        self._parts = self._rows = 0  # of the collector
        self._collector: Collector | None = None
        self._reference: RegisteredReference | None = None
        self._past = 0
        self._anew = False

    def forget(self) -> None:
        """The store was begun afresh: everything is to be written again."""
        self._written = -1
        self._parts = self._rows = self._past = 0
        self._collector = self._reference = None

    # --- writing ------------------------------------------------------------------------------

    def flush(self, tables: DriftTables) -> None:
        """Write what has changed.

        Raises:
            StoreError: it cannot be written; the next time everything is tried again.
        """
        drift = self._drift
        with drift.lock:
            at = drift.changes
            if at == self._written or drift.phase in {"starting", "failed"}:
                return
            change = Change(drift.model.name, anew=self._anew)
            collector, registered = drift.collector, drift.registered
            parts, rows = self._parts, self._rows
            if drift.windows is not None:
                self._watching(change)
            elif collector is not None:
                parts, rows = self._collecting(change, collector)
        tables.put(change)
        self._written, self._parts, self._rows, self._anew = at, parts, rows, False
        self._collector, self._reference = collector, registered
        self._past = change.past[-1].seq if change.past else self._past

    def _watching(self, change: Change) -> None:
        drift = self._drift
        registered = drift.registered
        assert registered is not None
        change.rows = None
        if registered.source == "live" and registered is not self._reference:
            change.reference = registered.to_plain()
        change.window = drift.to_plain()
        change.past = [past for past in drift.history if past.seq > self._past]

    def _collecting(self, change: Change, collector: Collector) -> tuple[int, int]:
        """Returns how many of the collector's parts, and rows, are then written."""
        parts, rows = self._parts, self._rows
        if collector is not self._collector:
            parts = rows = 0
            change.anew = True
        new = collector.parts(parts)
        if not new:
            return parts, rows
        assert change.rows is not None
        if rows == 0:
            settings = drift_reference.live_settings(self._drift.model)
            change.rows[0] = {"columns": collector.columns.to_plain(), "settings": settings}
        # Numbered by the rows before it, so that numbers rise over restarts as well.
        change.rows[rows + 1] = _to_plain(new)
        return parts + len(new), rows + sum(len(next(iter(part.values()))) for part in new)

    # --- reading ------------------------------------------------------------------------------

    def load(self, tables: DriftTables) -> None:
        """Go on where an earlier life stopped, as far as that still means anything.

        A store that came late finds a model that has begun: then what it holds is replaced.

        Raises:
            StoreError: it cannot be read.
        """
        drift = self._drift
        kept = tables.load(drift.model.name)
        with drift.lock:
            if drift.has_begun:
                self._anew = True
                return
            try:
                if drift.phase == "collecting":
                    self._load_reference(kept)
                if drift.phase == "collecting":
                    self._load_rows(kept.rows)
                if drift.phase == "watching" and kept.window is not None:
                    drift.restore(kept.window, kept.past)
                    self._past = drift.next_seq - 1
            except ValueError as error:
                logger.warning(
                    "%s: what was kept of its drift is left: %s", drift.model.name, error
                )
                self._anew = True

    def _load_reference(self, kept: Kept) -> None:
        if kept.reference is None:
            return
        registered = RegisteredReference.from_plain(kept.reference)
        if wrong := drift_reference.misfit(registered, self._drift.model, "the live reference"):
            raise ValueError(wrong.partition(": make it")[0])
        self._drift.use(registered)
        self._reference = registered

    def _load_rows(self, stored: Sequence[Mapping[str, Any]]) -> None:
        if not stored:
            return
        head, *parts = stored
        drift = self._drift
        settings = json.loads(json.dumps(drift_reference.live_settings(drift.model)))
        if head.get("settings") != settings:
            raise ValueError("its rows were collected with other settings")
        collector = Collector(Columns.from_plain(head["columns"]), drift.model.drift.reference_rows)
        rows = [_from_plain(part) for part in parts]
        collector.restore(rows)
        drift.resume(collector)
        self._collector, self._parts, self._rows = collector, len(rows), collector.rows
        logger.info(
            "%s: %d rows of its drift reference are there from before", drift.model.name,
            collector.rows,
        )  # fmt: skip


def _to_plain(parts: Sequence[Rows]) -> dict[str, Any]:
    """As JSON values that tell numbers from categories; NaN is ``None``, infinities are texts."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {
        name: ["n" if column.dtype == np.float64 else "c", _values(column)]
        for name, column in joined.items()
    }


def _values(column: Any) -> list[Any]:
    if column.dtype != np.float64 or np.isfinite(column).all():
        return list(column.tolist())
    return [v if np.isfinite(v) else repr(v) for v in column.tolist()]


def _from_plain(plain: Mapping[str, Any]) -> Rows:
    rows: Rows = {}
    for name, (kind, values) in plain.items():
        numbers = [float(value) for value in values] if kind == "n" else values
        rows[name] = np.array(numbers, dtype=np.float64 if kind == "n" else None)
    return rows
