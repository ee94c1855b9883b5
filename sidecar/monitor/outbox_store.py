"""The store's part for alerts on their way: one row for each alert and channel.

A row is written in the transaction of the decision that it tells of, and goes through its states in
place, so that a channel never hears that something is resolved before it heard of it::

    firing:    waiting → sent (→ said again) · failed (given up) · suppressed (it no longer stood)
    resolved:  waiting → sent (→ said again for a while) · failed
               suppressed, where the channel never heard of it

``due_ns`` is the wall-clock time of the next attempt; of a row with nothing left to do, minus the
time at which that was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from exporters.alerts.alert import Alert, Channel, State
from sidecar.monitor import store_tables as tables
from sidecar.monitor.view_rollback import Delivery

WAITING, SENT, FAILED, SUPPRESSED = "waiting", "sent", "failed", "suppressed"
#: Deliveries with nothing left to do that are kept to be shown.
KEPT = 10_000
#: Values in one ``IN``; SQLite takes 32,766.
_AT_ONCE = 500

_OUTBOX = tables.OUTBOX


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One alert on its way to one channel.

    Attributes:
        number: grows when the alert's state changes.
        attempts: to tell it in this state; ``failures``: that failed since one succeeded.
        since_ns: wall clock, when it came to wait; ``tried_ns``: of the latest attempt.
        waited_s: for the channel to take it, as far as it was tried: neither the time that the
            process was not there nor a jump of the clock counts.
        taken: the channel has heard that it fires; ``unsure``: perhaps it has.
        repeats: how often it is still to be said that it is resolved.
        error: of the latest attempt; empty after one that succeeded.
    """

    alert: Alert
    channel: str
    state: str
    due_ns: int
    number: int = 0
    attempts: int = 0
    failures: int = 0
    since_ns: int = 0
    tried_ns: int = 0
    waited_s: float = 0.0
    taken: bool = False
    unsure: bool = False
    repeats: int = 0
    error: str = ""
    sent_ns: int | None = None

    @property
    def is_firing(self) -> bool:
        """Whether the alert goes on."""
        return self.alert.state is State.FIRING


def put(
    connection: sa.Connection,
    alerts: Iterable[Alert],
    channels: Sequence[Channel],
    now_ns: int,
    *,
    waiting_max: int = 10_000,
) -> Counter[tuple[str, str]]:
    """Enter alerts for every channel that is told of their severity, in the caller's transaction.

    One that is on its way already, or was sent, is not entered again. One that is resolved turns
    the row of its firing state.

    Returns:
        (channel, ``suppressed`` or ``refused``) → how many were not entered: repetitions, and those
        for which so many wait for the channel already (``waiting_max``).
    """
    refused: Counter[tuple[str, str]] = Counter()
    waiting = {row[0]: row[1] for row in connection.execute(_waiting())}
    room = {one.name: waiting_max - waiting.get(one.name, 0) for one in channels}
    for alert in alerts:
        if alert.state is State.RESOLVED:
            refused += resolve(connection, alert, now_ns)
            continue
        known = {row.channel: row for row in _rows(connection, _OUTBOX.c.alert == alert.id)}
        for channel in channels:
            if not alert.severity.is_at_least(channel.least):
                continue
            old = known.get(channel.name)
            if old is not None and old.is_firing and old.state in {WAITING, SENT}:
                refused[channel.name, SUPPRESSED] += 1
            elif room[channel.name] <= 0:
                refused[channel.name, "refused"] += 1
            else:
                number = old.number + 1 if old is not None else 0
                fresh = Outgoing(alert, channel.name, WAITING, now_ns, number, since_ns=now_ns)
                write(connection, fresh)
                room[channel.name] -= 1
    return refused


def resolve(connection: sa.Connection, alert: Alert, now_ns: int) -> Counter[tuple[str, str]]:
    """Turn an alert's rows to its resolved state, in the caller's transaction.

    Name, labels, severity and start stay those that the channels have heard. Who has not heard of
    it is not told, but of a lasting one.

    Args:
        alert: in either state; ``ended_ns`` 0 is ``now_ns``.

    Returns:
        (channel, ``suppressed``) → how many are not told.
    """
    untold: Counter[tuple[str, str]] = Counter()
    for row in _rows(connection, _OUTBOX.c.alert == alert.id):
        if not row.is_firing:
            continue
        over = replace(
            row.alert,
            state=State.RESOLVED,
            ended_ns=alert.ended_ns or now_ns,
            summary=alert.summary or row.alert.summary,
            text=alert.text or row.alert.text,
            values={**row.alert.values, **alert.values},
            links={**row.alert.links, **alert.links},
        )
        fresh = Outgoing(
            over, row.channel, WAITING, now_ns, row.number + 1, since_ns=now_ns, taken=row.taken,
            unsure=row.unsure,
        )  # fmt: skip
        is_owed = row.alert.lasting and row.state == WAITING
        if not (row.taken or row.unsure or is_owed):
            untold[row.channel, SUPPRESSED] += row.state == WAITING
            state = row.state if row.state == FAILED else SUPPRESSED
            fresh = replace(fresh, state=state, due_ns=-now_ns, error=row.error)
        write(connection, fresh)
    return +untold


def write(connection: sa.Connection, row: Outgoing) -> None:
    """Insert a row, or replace it."""
    plain = asdict(row)
    values = {name: plain.pop(name) for name in ("channel", "state", "due_ns")}
    tables.upsert(connection, _OUTBOX, [{"alert": row.alert.id, **values, "plain": plain}])


def _waiting() -> sa.Select[Any]:
    """Channel, and how many wait for it."""
    columns, count = _OUTBOX.c, sa.func.count().label("count")
    waits = sa.select(columns.channel, count).where(columns.state == WAITING)
    return waits.group_by(columns.channel)


def _rows(connection: sa.Connection, where: sa.ColumnElement[bool]) -> list[Outgoing]:
    # Read to be written: nobody else writes them meanwhile.
    found = connection.execute(sa.select(_OUTBOX).where(where).with_for_update()).mappings()
    return [row for one in found if (row := _outgoing(one)) is not None]


def _outgoing(row: sa.RowMapping) -> Outgoing | None:
    """A row as it was written; ``None``: it cannot be read."""
    try:
        plain = {k: v for k, v in row["plain"].items() if k in Outgoing.__dataclass_fields__}
        plain["alert"] = Alert.from_plain(plain["alert"])
        columns = {name: row[name] for name in ("channel", "state", "due_ns")}
        return Outgoing(**{**plain, **columns})
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _told_late(now: Outgoing, row: Outgoing) -> Outgoing:
    """The resolved state of a row of which it becomes known now what the channel has heard."""
    heard, unsure = now.taken or row.taken, row.unsure
    if (heard or unsure) and now.state == SUPPRESSED and not now.is_firing:
        now = replace(now, state=WAITING, due_ns=abs(now.due_ns))  # it was taken for untold
    return replace(now, taken=heard, unsure=unsure)


class OutboxTables:
    """Reads and writes the rows; raises ``StoreError`` as the store does."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[sa.Select[Any]], list[sa.RowMapping]],
    ) -> None:
        self.writing = writing
        self._read = read

    def due(self, channel: str, now_ns: int, limit: int) -> list[Outgoing]:
        """What a channel is to be told now, the longest due first; unreadable rows are left out."""
        columns = _OUTBOX.c
        statement = (
            sa.select(_OUTBOX)
            .where(
                columns.state.in_((WAITING, SENT)), columns.due_ns > 0, columns.due_ns <= now_ns,
                columns.channel == channel,
            )
            .order_by(columns.due_ns, columns.alert)
            .limit(limit)
        )  # fmt: skip
        return [row for one in self._read(statement) if (row := _outgoing(one)) is not None]

    def make_due(self, channel: str, now_ns: int, resend_s: float | None) -> None:
        """Let nothing wait longer than a channel's own pause from now.

        For the beginning, and for a clock that was set back: a time that was chosen by another
        clock may be hours away.
        """
        mine = (_OUTBOX.c.channel == channel) & (_OUTBOX.c.due_ns > now_ns)
        again_ns = now_ns + int((resend_s or 0) * 1e9)
        change = sa.update(_OUTBOX)
        with self.writing() as connection:
            waits = mine & (_OUTBOX.c.state == WAITING)
            connection.execute(change.where(waits).values(due_ns=now_ns))
            repeats = mine & (_OUTBOX.c.state == SENT) & (_OUTBOX.c.due_ns > again_ns)
            connection.execute(change.where(repeats).values(due_ns=again_ns))

    def give_up_others(self, channels: Sequence[str], now_ns: int) -> list[str]:
        """Give up what waits for channels that are not configured any more; returns their names."""
        others = _OUTBOX.c.channel.not_in(channels) & (_OUTBOX.c.due_ns > 0)
        gone = set()
        with self.writing() as connection:
            for row in _rows(connection, others):
                gone.add(row.channel)
                state = FAILED if row.state == WAITING else row.state
                error = "there is no such channel any more"
                write(connection, replace(row, state=state, due_ns=-now_ns, error=error))
        return sorted(gone)

    def mark(self, row: Outgoing) -> None:
        """Write what became of an attempt.

        Where the alert was resolved meanwhile, only what the channel has heard is noted.
        """
        key = (_OUTBOX.c.alert == row.alert.id) & (_OUTBOX.c.channel == row.channel)
        with self.writing() as connection:
            for now in _rows(connection, key):
                if now.number == row.number:
                    write(connection, row)
                else:
                    write(connection, _told_late(now, row))

    def waiting(self) -> dict[str, int]:
        """Channel → how many alerts wait for it."""
        return {row["channel"]: row["count"] for row in self._read(_waiting())}

    def deliveries(self, alerts: Sequence[str]) -> list[Delivery]:
        """What became of alerts, in the order of their ids and channels."""
        found: list[sa.RowMapping] = []
        for begin in range(0, len(alerts), _AT_ONCE):
            ids = alerts[begin : begin + _AT_ONCE]
            found += self._read(sa.select(_OUTBOX).where(_OUTBOX.c.alert.in_(ids)))
        found.sort(key=lambda row: (row["alert"], row["channel"]))
        return [delivery(row) for one in found if (row := _outgoing(one)) is not None]

    def prune(self, kept: int = KEPT) -> None:
        """Delete the oldest of those with nothing left to do, beyond ``kept``."""
        done = _OUTBOX.c.due_ns < 0
        edge = sa.select(_OUTBOX.c.due_ns).where(done).order_by(_OUTBOX.c.due_ns)
        with self.writing() as connection:
            oldest = connection.execute(edge.limit(1).offset(kept)).scalar()
            if oldest is not None:
                gone = done & (_OUTBOX.c.due_ns >= oldest)
                connection.execute(sa.delete(_OUTBOX).where(gone))


def delivery(row: Outgoing) -> Delivery:
    """A row as it is shown."""
    return Delivery(
        row.channel, row.alert.name, row.state, row.attempts, row.error, row.sent_ns
    )  # fmt: skip


def repeats_of(channel: Channel) -> int:
    """How often a channel is told again that something is resolved."""
    if channel.resend_s is None:
        return 0
    return math.ceil(channel.keeps_resolved_s / channel.resend_s)
