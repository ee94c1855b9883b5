"""The store's part for drift: live references, collected rows, open windows, and past ones.

A window is kept under the life of the process that counted it, so that those of replicas can be
told apart and merged (``Window.merge``). A monitor that takes over its own window from an earlier
life removes that one's row in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from sidecar.clock import Clock
from sidecar.monitor import store_tables as tables
from sidecar.monitor.drift_past import HISTORY, Past


@dataclass(slots=True)
class Kept:
    """What was kept of one model.

    Attributes:
        reference: a live one, with the settings it was made with.
        rows: collected for one, in order; the first says how (``drift_keep``).
        window: the open one, and the state.
        past: closed windows, the oldest first.
    """

    reference: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    window: dict[str, Any] | None = None
    past: list[Past] = field(default_factory=list)


@dataclass(slots=True)
class Change:
    """What is to be written of one model, in one transaction.

    Attributes:
        reference: the live one that is finished; ``None``: as it is.
        rows: number → rows; ``None``: all that were collected are to go.
        anew: what is there of the model goes first.
    """

    model: str
    reference: dict[str, Any] | None = None
    rows: dict[int, dict[str, Any]] | None = field(default_factory=dict)
    window: dict[str, Any] | None = None
    past: Sequence[Past] = ()
    anew: bool = False


class DriftTables:
    """Reads and writes them; raises ``StoreError`` as the store does."""

    def __init__(
        self,
        incarnation: str,
        clock: Clock,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[sa.Select[Any]], list[sa.RowMapping]],
    ) -> None:
        self._incarnation = incarnation
        self._clock = clock
        self._writing = writing
        self._read = read

    def load(self, model: str) -> Kept:
        """All that is kept of a model; what cannot be read is left out."""
        kept = Kept()
        for row in self._of(tables.DRIFT_REFERENCES, model):
            kept.reference = row["plain"]
        numbered = tables.DRIFT_ROWS.c.seq, tables.DRIFT_HISTORY.c.seq
        kept.rows = [row["plain"] for row in self._of(tables.DRIFT_ROWS, model, numbered[0])]
        newest = tables.DRIFT_WINDOWS.c.updated_ns
        for row in self._of(tables.DRIFT_WINDOWS, model, newest):
            kept.window = row["plain"]
        for row in self._of(tables.DRIFT_HISTORY, model, numbered[1]):
            try:
                kept.past.append(Past.from_plain(row["plain"]))
            except ValueError:
                continue
        return kept

    def _of(
        self, table: sa.Table, model: str, order: sa.ColumnElement[Any] | None = None
    ) -> list[sa.RowMapping]:
        statement = sa.select(table).where(table.c.model == model)
        rows = self._read(statement if order is None else statement.order_by(order))
        return [row for row in rows if isinstance(row["plain"], dict)]

    def put(self, change: Change) -> None:
        """Write it: all, or nothing."""
        model = change.model
        with self._writing() as connection:
            if change.anew:
                for table in (
                    tables.DRIFT_REFERENCES, tables.DRIFT_ROWS, tables.DRIFT_WINDOWS,
                    tables.DRIFT_HISTORY,
                ):  # fmt: skip
                    connection.execute(sa.delete(table).where(table.c.model == model))
            if change.reference is not None:
                row = {"model": model, "plain": change.reference}
                tables.upsert(connection, tables.DRIFT_REFERENCES, [row])
            if change.rows is None:
                rows = tables.DRIFT_ROWS
                connection.execute(sa.delete(rows).where(rows.c.model == model))
            else:
                numbered = [
                    {"model": model, "seq": seq, "plain": plain}
                    for seq, plain in change.rows.items()
                ]
                tables.upsert(connection, tables.DRIFT_ROWS, numbered)
            if change.window is not None:
                self._put_window(connection, model, change.window)
            if change.past:
                self._put_past(connection, model, change.past)

    def _put_window(self, connection: sa.Connection, model: str, plain: dict[str, Any]) -> None:
        windows = tables.DRIFT_WINDOWS
        taken_over = (windows.c.model == model) & (windows.c.incarnation != self._incarnation)
        connection.execute(sa.delete(windows).where(taken_over))
        row = {
            "model": model, "incarnation": self._incarnation, "plain": plain,
            "updated_ns": self._clock.now_ns(),
        }  # fmt: skip
        tables.upsert(connection, windows, [row])

    @staticmethod
    def _put_past(connection: sa.Connection, model: str, past: Sequence[Past]) -> None:
        history = tables.DRIFT_HISTORY
        rows = [{"model": model, "seq": one.seq, "plain": one.to_plain()} for one in past]
        tables.upsert(connection, history, rows)
        gone = (history.c.model == model) & (history.c.seq <= past[-1].seq - HISTORY)
        connection.execute(sa.delete(history).where(gone))
