"""The shared store's part for labels: those that came to a replica without the answer they are of.

They are offered in a table; the replica that has the answer takes its own out, in one statement, so
that each counts once. In PostgreSQL alone: a SQLite file is of one monitor, who offers nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa

from sidecar.monitor.label_waiting import Early

_OFFER = sa.text("""
    INSERT INTO labels_offered (model, request_id, wall_ns, written, plain)
    SELECT :model, id, wall_ns, pg_current_xact_id()::text::bigint, plain
    FROM unnest(CAST(:ids AS text[]), CAST(:walls AS bigint[]), CAST(:plains AS text[]))
        AS offered(id, wall_ns, plain)
    ON CONFLICT DO NOTHING
""")
# One statement, hence one snapshot: a transaction that has not ended when it is taken is at or
# above `upto`, so that what it writes is read the next time.
_SINCE = sa.text("""
    SELECT upto, model, request_id
    FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS upto) AS now
    LEFT JOIN labels_offered ON written >= :since
""")
_TAKE = sa.text("""
    DELETE FROM labels_offered WHERE model = :model AND request_id = ANY(CAST(:ids AS text[]))
    RETURNING request_id, wall_ns, plain
""")
_EXPIRE = sa.text("DELETE FROM labels_offered WHERE model = :model AND wall_ns < :before")
_SHRINK = sa.text("""
    DELETE FROM labels_offered WHERE model = :model AND request_id IN (
        SELECT request_id FROM labels_offered WHERE model = :model
        ORDER BY wall_ns DESC, request_id OFFSET :most
    )
""")

_COUNTED = {"preserve_rowcount": True}
#: Request id, and the label.
Offer = tuple[str, Early]


class OfferTables:
    """Reads and writes them; raises ``StoreError`` as the store does."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[Any], list[sa.RowMapping]],
    ) -> None:
        self._writing = writing
        self._read = read

    def offer(self, model: str, offers: Sequence[Offer]) -> int:
        """Enter labels, all or none; returns of how many there is one already, which stands."""
        values = {
            "model": model,
            "ids": [request_id for request_id, _ in offers],
            "walls": [label.wall_ns for _, label in offers],
            "plains": [json.dumps(list(label.values)) for _, label in offers],
        }
        with self._writing() as connection:
            done = connection.execute(_OFFER, values, execution_options=_COUNTED)
            return len(offers) - done.rowcount

    def since(self, written: int) -> tuple[list[tuple[str, str]], int]:
        """What was offered, by model and request id, since a number that this gave (at first 0),
        and the next such number. Some may be given twice."""
        rows = self._read(_SINCE.bindparams(since=written))
        found = [(row["model"], row["request_id"]) for row in rows if row["model"] is not None]
        return found, rows[0]["upto"]

    def take(self, model: str, ids: Iterable[str]) -> list[Offer]:
        """Take labels out; nobody else is given them."""
        with self._writing() as connection:
            # In one order, else two replicas may wait for each other.
            rows = connection.execute(_TAKE, {"model": model, "ids": sorted(ids)}).mappings().all()
        offers = []
        for row in rows:
            values = json.loads(row["plain"])
            offers.append((row["request_id"], Early(row["wall_ns"], tuple(values))))
        return offers

    def prune(self, model: str, before_ns: int, most: int) -> tuple[int, int]:
        """Delete what is older, and the oldest beyond ``most``; returns how many of each."""
        with self._writing() as connection:
            old = {"model": model, "before": before_ns}
            expired = connection.execute(_EXPIRE, old, execution_options=_COUNTED)
            many = {"model": model, "most": most}
            full = connection.execute(_SHRINK, many, execution_options=_COUNTED)
            return expired.rowcount, full.rowcount
