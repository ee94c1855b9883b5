"""The store's part for rolling back: how pairs stand, decisions, freezes.

What belongs together is written in one transaction: a decision, the alerts that tell of it, and the
state that the pair comes to by it. A decision is changed by compare-and-swap on its owner's number
(``fence``) and on how far its action was: whoever goes on with one that somebody else has taken
over meanwhile is told so, and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import sqlalchemy as sa

from exporters.alerts.alert import Alert
from sidecar.errors import ConflictError
from sidecar.monitor import store_tables as tables
from sidecar.monitor.rollback.decisions import OPEN, Decision, PairId
from sidecar.monitor.rollback.states import Standing
from sidecar.monitor.view_rollback import Delivery

#: Decisions that are kept; open ones and those that stand are always.
DECISIONS_KEPT = 1000
#: The freeze of all models.
ALL = ""


class TakenError(ConflictError):
    """Somebody else has gone on with a decision meanwhile."""


class AlertSink(Protocol):
    """Where alerts are put, within the transaction of what they tell of."""

    def put(self, connection: sa.Connection, alerts: Sequence[Alert]) -> None:
        """Have them told; one that is there already is brought up to date."""
        ...

    def resolve(self, connection: sa.Connection, alert: Alert) -> None:
        """Have it told that one is over; one that nobody was told of is forgotten."""
        ...

    def wake(self) -> None:
        """After the transaction: there is something to send."""
        ...

    def deliveries(self, alert_ids: Sequence[str]) -> list[Delivery]:
        """What became of them, by channel."""
        ...


@dataclass(frozen=True, slots=True)
class Freeze:
    """Nobody but an operator acts."""

    by: str
    reason: str
    wall_ns: int


@dataclass(slots=True)
class Change:
    """What is to be written in one transaction.

    Attributes:
        standings: how pairs stand from then on.
        decided: new decisions, each with the alerts that tell of it; one that is there already
            (another monitor came to it as well) stays as it is, and nobody is told again.
        moved: decisions before and after.
        firing, resolved: further alerts.
    """

    standings: Mapping[PairId, Standing] = field(default_factory=dict)
    decided: Sequence[tuple[Decision, Sequence[Alert]]] = ()
    moved: Sequence[tuple[Decision, Decision]] = ()
    firing: Sequence[Alert] = ()
    resolved: Sequence[Alert] = ()


class RollbackTables:
    """Reads and writes them; raises ``StoreError`` as the store does."""

    def __init__(
        self,
        owner: str,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[sa.Select[Any]], list[sa.RowMapping]],
    ) -> None:
        self.owner = owner
        self._writing = writing
        self._read = read

    # --- reading ----------------------------------------------------------------------------------

    def standings(self) -> dict[PairId, Standing]:
        """How every pair stands that was ever looked at; what cannot be read is left out."""
        found = {}
        for row in self._read(sa.select(tables.ROLLBACK_PAIRS)):
            pair = PairId(row["model"], row["new"], row["previous"], row["identity"])
            try:
                found[pair] = Standing.from_plain(row["plain"] or {})
            except ValueError:
                continue
        return found

    def freezes(self) -> dict[str, Freeze]:
        """Model (or ``ALL``) → its freeze. One that cannot be read is one: better safe."""
        found = {}
        for row in self._read(sa.select(tables.ROLLBACK_FREEZES)):
            plain = row["plain"] if isinstance(row["plain"], dict) else {}
            found[row["model"]] = Freeze(
                str(plain.get("by", "?")), str(plain.get("reason", "")),
                int(plain.get("wall_ns", 0)),
            )  # fmt: skip
        return found

    def decisions(self, model: str | None = None, limit: int = DECISIONS_KEPT) -> list[Decision]:
        """The newest first; what cannot be read is left out."""
        of = tables.DECISIONS.c
        statement = sa.select(tables.DECISIONS).order_by(of.wall_ns.desc(), of.id).limit(limit)
        if model is not None:
            statement = statement.where(of.model == model)
        found = []
        for row in self._read(statement):
            try:
                found.append(_decision(row))
            except ValueError:
                continue
        return found

    # --- writing ----------------------------------------------------------------------------------

    def write(self, change: Change, sink: AlertSink) -> list[Decision]:
        """All of it, or nothing.

        Returns:
            The decisions as they are now: decided (or found), then moved.

        Raises:
            TakenError: somebody else has gone on with one.
            StoreError: the store cannot be written.
        """
        done: list[Decision] = []
        alerts = list(change.firing)
        with self._writing() as connection:
            for decision, told in change.decided:
                made, is_new = self._insert(connection, decision)
                done.append(made)
                alerts += told if is_new else ()
            done += [self._move(connection, before, after) for before, after in change.moved]
            rows = [
                {
                    "model": pair.model, "new": pair.new, "previous": pair.previous,
                    "identity": pair.identity, "plain": standing.to_plain(),
                }
                for pair, standing in change.standings.items()
            ]  # fmt: skip
            tables.upsert(connection, tables.ROLLBACK_PAIRS, rows)
            if alerts:
                sink.put(connection, alerts)
            for alert in change.resolved:
                sink.resolve(connection, alert)
            if change.decided:
                self._forget(connection)
        if alerts or change.resolved:
            sink.wake()
        return done

    def _insert(self, connection: sa.Connection, decision: Decision) -> tuple[Decision, bool]:
        """A new decision; the one that is there where somebody was sooner."""
        table = tables.DECISIONS
        there = connection.execute(sa.select(table).where(table.c.id == decision.id)).mappings()
        for row in there:
            return _decision(row), False
        made = replace(decision, owner=self.owner, fence=1)
        connection.execute(sa.insert(table), [_row(made)])
        return made, True

    def _move(self, connection: sa.Connection, before: Decision, after: Decision) -> Decision:
        is_mine = before.owner == self.owner
        made = replace(after, owner=self.owner, fence=before.fence + (0 if is_mine else 1))
        of = tables.DECISIONS.c
        statement = (
            sa.update(tables.DECISIONS)
            .where(
                of.id == before.id,
                of.owner == before.owner,
                of.fence == before.fence,
                of.action_state == before.action_state,
            )
            .values(_row(made))
        )
        if connection.execute(statement).rowcount != 1:
            message = f"somebody else has gone on with the decision {before.id}: look again"
            raise TakenError(message)
        return made

    @staticmethod
    def _forget(connection: sa.Connection) -> None:
        """The oldest go, but none that the monitor goes on with."""
        of = tables.DECISIONS.c
        oldest = sa.select(of.id).order_by(of.wall_ns.desc()).offset(DECISIONS_KEPT).limit(1000)
        ids = [row.id for row in connection.execute(oldest)]
        if ids:
            closed = of.action_state.not_in([str(state) for state in OPEN])
            connection.execute(sa.delete(tables.DECISIONS).where(of.id.in_(ids), closed))

    def restore(self, standings: Mapping[PairId, Standing], decisions: Sequence[Decision]) -> None:
        """Put all that is known again: the store was begun afresh while open."""
        with self._writing() as connection:
            tables.upsert(connection, tables.DECISIONS, [_row(one) for one in decisions])
            rows = [
                {
                    "model": pair.model, "new": pair.new, "previous": pair.previous,
                    "identity": pair.identity, "plain": standing.to_plain(),
                }
                for pair, standing in standings.items()
            ]  # fmt: skip
            tables.upsert(connection, tables.ROLLBACK_PAIRS, rows)

    def freeze(self, model: str, freeze: Freeze | None) -> None:
        """Begin a freeze, or (``None``) end it."""
        table = tables.ROLLBACK_FREEZES
        with self._writing() as connection:
            connection.execute(sa.delete(table).where(table.c.model == model))
            if freeze is not None:
                plain = {"by": freeze.by, "reason": freeze.reason, "wall_ns": freeze.wall_ns}
                connection.execute(sa.insert(table), [{"model": model, "plain": plain}])


def _row(decision: Decision) -> dict[str, Any]:
    return {
        "id": decision.id, "model": decision.pair.model, "wall_ns": decision.wall_ns,
        "action_state": decision.action_state, "owner": decision.owner, "fence": decision.fence,
        "plain": decision.to_plain(),
    }  # fmt: skip


def _decision(row: sa.RowMapping) -> Decision:
    made = Decision.from_plain(row["plain"] or {})
    return replace(
        made, owner=row["owner"], fence=row["fence"], action_state=row["action_state"]
    )  # fmt: skip
