"""The store's part for rolling back: how pairs stand, decisions, freezes.

What belongs together is written in one transaction: a decision, the alerts that tell of it, and the
state that the pair comes to by it. The leader's is guarded: it is written only if it still leads.
Decisions and standings are changed by compare-and-swap on the write that they were read from
(``revisions.py``): whoever goes on with one that somebody else has changed meanwhile (a later
leader, an operator at another replica) is told so, and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import sqlalchemy as sa

from exporters.alerts.alert import Alert
from sidecar.errors import ConflictError
from sidecar.monitor import store_tables as tables
from sidecar.monitor.leader import Leadership
from sidecar.monitor.rollback import revisions
from sidecar.monitor.rollback.decisions import OPEN, ActionState, Decision, PairId
from sidecar.monitor.rollback.states import Standing
from sidecar.monitor.view_rollback import Delivery

#: Decisions that are kept; open ones and those that stand are always.
DECISIONS_KEPT = 1000
#: The freeze of all models.
ALL = ""


class TakenError(ConflictError):
    """Somebody else has gone on with a decision, or with how a pair stands, meanwhile."""


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
            (an earlier leader came to it as well) stays as it is, and nobody is told again.
        moved: decisions before and after.
        firing, resolved: further alerts.
    """

    standings: Mapping[PairId, Standing] = field(default_factory=dict)
    decided: Sequence[tuple[Decision, Sequence[Alert]]] = ()
    moved: Sequence[tuple[Decision, Decision]] = ()
    firing: Sequence[Alert] = ()
    resolved: Sequence[Alert] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept as of a revision; after a write or a later look, what is new of it.

    Attributes:
        freezes: model (or ``ALL``) → its freeze, of all; ``None``: they were not looked at.
    """

    revision: int
    standings: Mapping[PairId, Standing]
    decisions: Sequence[Decision]
    freezes: Mapping[str, Freeze] | None = None


class RollbackTables:
    """Reads and writes them; raises ``StoreError`` as the store does.

    Args:
        leadership: of this monitor.
    """

    def __init__(
        self,
        leadership: Leadership,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[sa.Select[Any]], list[sa.RowMapping]],
    ) -> None:
        self.owner = leadership.owner
        self._leadership = leadership
        self._writing = writing
        self._read = read

    # --- reading ----------------------------------------------------------------------------------

    def since(self, revision: int) -> Kept | None:
        """What was written after a revision (-1: everything); ``None``: nothing."""
        [latest] = [row["revision"] for row in self._read(revisions.latest())] or [0]
        if latest == revision:
            return None
        return Kept(latest, self.standings(revision), self.decisions(revision), self.freezes())

    def standings(self, after: int = -1) -> dict[PairId, Standing]:
        """How every pair stands that was ever looked at; what cannot be read begins anew."""
        found = {}
        of = tables.ROLLBACK_PAIRS
        for row in self._read(sa.select(of).where(of.c.revision > after)):
            pair = PairId(row["model"], row["new"], row["previous"], row["identity"])
            try:
                standing = Standing.from_plain(row["plain"] or {})
            except ValueError:
                standing = Standing()
            found[pair] = replace(standing, revision=row["revision"])
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

    def decisions(self, after: int = -1, limit: int = DECISIONS_KEPT) -> list[Decision]:
        """The newest first; what cannot be read is left out."""
        of = tables.DECISIONS.c
        statement = sa.select(tables.DECISIONS).where(of.revision > after)
        found = []
        for row in self._read(statement.order_by(of.wall_ns.desc(), of.id).limit(limit)):
            try:
                found.append(_decision(row))
            except ValueError:
                continue
        return found

    # --- writing ----------------------------------------------------------------------------------

    def write(self, change: Change, sink: AlertSink, fence: int | None) -> Kept:
        """All of it, or nothing.

        Args:
            fence: the leader's, of the term in which this was decided; ``None``: it is an
                operator's, at any replica.

        Returns:
            The decisions as they are now (decided, or found; then moved), and the standings.

        Raises:
            NotLeaderError: another monitor leads by now.
            TakenError: somebody else has gone on with a decision or a pair.
            StoreError: the store cannot be written.
        """
        done: list[Decision] = []
        alerts = list(change.firing)
        with self._writing() as connection:
            if fence is not None:
                self._leadership.guard(connection, fence)
            revision = revisions.take(connection)
            for decision, told in change.decided:
                mine = replace(decision, owner=self.owner, fence=fence or 0, revision=revision)
                made, is_new = self._insert(connection, mine)
                done.append(made)
                alerts += told if is_new else ()
            for before, after in change.moved:
                if fence is None:  # whose it is stays so: the leader goes on with it
                    made = replace(after, owner=before.owner, fence=before.fence)
                else:
                    made = replace(after, owner=self.owner, fence=fence)
                done.append(self._move(connection, before, replace(made, revision=revision)))
            for pair, standing in change.standings.items():
                self._stand(connection, pair, standing, revision)
            if alerts:
                sink.put(connection, alerts)
            for alert in change.resolved:
                sink.resolve(connection, alert)
            if change.decided:
                self._forget(connection)
        if alerts or change.resolved:
            sink.wake()
        standings = {
            pair: replace(standing, revision=revision)
            for pair, standing in change.standings.items()
        }
        return Kept(revision, standings, done)

    def _insert(self, connection: sa.Connection, decision: Decision) -> tuple[Decision, bool]:
        """A new decision; the one that is there where somebody was sooner."""
        table = tables.DECISIONS
        there = connection.execute(sa.select(table).where(table.c.id == decision.id)).mappings()
        for row in there:
            return _decision(row), False
        connection.execute(sa.insert(table), [_row(decision)])
        return decision, True

    def _move(self, connection: sa.Connection, before: Decision, after: Decision) -> Decision:
        begins = ActionState.ACTING == after.action_state != before.action_state
        if begins and not after.approved_by:
            # A freeze that returned, at any replica, is one: no action begins after it.
            of = tables.ROLLBACK_FREEZES.c.model
            frozen = sa.select(of).where(of.in_([ALL, after.pair.model]))
            if connection.execute(frozen).first() is not None:
                message = f"{before.pair.model} was frozen just now: {before.id} waits"
                raise TakenError(message)
        of_all = tables.DECISIONS.c
        statement = (
            sa.update(tables.DECISIONS)
            .where(of_all.id == before.id, of_all.revision == before.revision)
            .values(_row(after))
        )
        if connection.execute(statement).rowcount != 1:
            message = f"somebody else has gone on with the decision {before.id}: look again"
            raise TakenError(message)
        return after

    @staticmethod
    def _stand(connection: sa.Connection, pair: PairId, standing: Standing, revision: int) -> None:
        table = tables.ROLLBACK_PAIRS
        row = _pair_row(pair, standing, revision)
        key = [table.c[part] == row[part] for part in ("model", "new", "previous", "identity")]
        as_read = table.c.revision == standing.revision
        change = sa.update(table).where(*key, as_read).values(row)
        made = connection.execute(change).rowcount
        if not made and standing.revision == 0:
            once = tables.insert_once(connection.dialect, table)
            made = connection.execute(once, row).rowcount
        if made != 1:
            message = f"somebody else has changed how {pair.new} stands: look again"
            raise TakenError(message)

    @staticmethod
    def _forget(connection: sa.Connection) -> None:
        """The oldest go, but none that the monitor goes on with."""
        of = tables.DECISIONS.c
        oldest = sa.select(of.id).order_by(of.wall_ns.desc()).offset(DECISIONS_KEPT).limit(1000)
        ids = [row.id for row in connection.execute(oldest)]
        if ids:
            closed = of.action_state.not_in([str(state) for state in OPEN])
            connection.execute(sa.delete(tables.DECISIONS).where(of.id.in_(ids), closed))

    def restore(
        self, standings: Mapping[PairId, Standing], decisions: Sequence[Decision],
        freezes: Mapping[str, Freeze],
    ) -> None:  # fmt: skip
        """Put all that is known again, as it was: the store was begun afresh while open."""
        rows = [_pair_row(pair, one, one.revision) for pair, one in standings.items()]
        known = [row["revision"] for row in rows] + [one.revision for one in decisions]
        with self._writing() as connection:
            revisions.take(connection, least=max(known, default=0))
            # What is there may be newer: others put what they know, too.
            _put_newer(connection, tables.DECISIONS, [_row(one) for one in decisions])
            _put_newer(connection, tables.ROLLBACK_PAIRS, rows)
            frozen = [{"model": model, "plain": asdict(one)} for model, one in freezes.items()]
            tables.upsert(connection, tables.ROLLBACK_FREEZES, frozen)

    def freeze(self, models: Sequence[str], freeze: Freeze | None) -> None:
        """Begin a freeze, or (``None``) end it, of all of them at once."""
        table = tables.ROLLBACK_FREEZES
        with self._writing() as connection:
            revisions.take(connection)
            connection.execute(sa.delete(table).where(table.c.model.in_(models)))
            if freeze is not None:
                rows = [{"model": model, "plain": asdict(freeze)} for model in models]
                connection.execute(sa.insert(table), rows)


def _put_newer(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        statement = tables.upsert_statement(connection.dialect, table, newer="revision")
        connection.execute(statement, rows)


def _pair_row(pair: PairId, standing: Standing, revision: int) -> dict[str, Any]:
    return {
        "model": pair.model, "new": pair.new, "previous": pair.previous,
        "identity": pair.identity, "plain": standing.to_plain(), "revision": revision,
    }  # fmt: skip


def _row(decision: Decision) -> dict[str, Any]:
    return {
        "id": decision.id, "model": decision.pair.model, "wall_ns": decision.wall_ns,
        "action_state": decision.action_state, "owner": decision.owner, "fence": decision.fence,
        "plain": decision.to_plain(), "revision": decision.revision,
    }  # fmt: skip


def _decision(row: sa.RowMapping) -> Decision:
    made = Decision.from_plain(row["plain"] or {})
    return replace(
        made, owner=row["owner"], fence=row["fence"], action_state=row["action_state"],
        revision=row["revision"],
    )  # fmt: skip
