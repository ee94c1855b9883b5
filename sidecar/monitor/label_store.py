"""The store's part for labels: what waits, so that a restart loses none of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa

from sidecar.monitor import store_tables as tables

#: Kind, request id, wall clock, and the rest as JSON values.
Row = tuple[str, str, int, Any]


class LabelTables:
    """Reads and writes them; raises ``StoreError`` as the store does."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[sa.Select[Any]], list[sa.RowMapping]],
    ) -> None:
        self._writing = writing
        self._read = read

    def load(self, model: str) -> list[Row]:
        """All that waits of a model, the oldest first."""
        columns = tables.LABELS.c
        statement = (
            sa.select(tables.LABELS)
            .where(columns.model == model)
            .order_by(columns.wall_ns, columns.request_id)
        )
        return [
            (row["kind"], row["request_id"], row["wall_ns"], row["plain"])
            for row in self._read(statement)
        ]

    def put(self, model: str, rows: Sequence[Row], gone: Iterable[tuple[str, str]]) -> None:
        """Write what waits, and delete by kind and identity what does not: all, or nothing."""
        values = [
            {"model": model, "kind": kind, "request_id": name, "wall_ns": wall_ns, "plain": plain}
            for kind, name, wall_ns, plain in rows
        ]
        deleted = [{"gone_kind": kind, "gone_id": name} for kind, name in gone]
        with self._writing() as connection:
            if deleted:
                columns = tables.LABELS.c
                statement = sa.delete(tables.LABELS).where(
                    columns.model == model,
                    columns.kind == sa.bindparam("gone_kind"),
                    columns.request_id == sa.bindparam("gone_id"),
                )
                connection.execute(statement, deleted)
            tables.upsert(connection, tables.LABELS, values)
