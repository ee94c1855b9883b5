"""Tells one channel what is due: at least once, with growing pauses, until it was taken.

Before a first attempt it is written that one begins: of a process that is killed between sending
and writing that it has sent, the next one knows that the channel may have heard. It sends again,
under the same id.

Times at which something is due are of the wall clock, since they outlive the process; the pause of
a channel that fails is not, and the wall clock is watched for being set back.
"""

from __future__ import annotations

import logging
import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from exporters.alerts.alert import Alert, Channel, DeliveryError, State
from sidecar.clock import Clock
from sidecar.monitor.outbox_store import (
    FAILED,
    SENT,
    SUPPRESSED,
    WAITING,
    OutboxTables,
    Outgoing,
    repeats_of,
)
from sidecar.monitor.rows import StoreError

logger = logging.getLogger("sidecar.monitor.outbox")

#: A receiver that asks for a longer pause than this is asked again all the same.
RETRY_AFTER_MAX_S = 3600.0
#: Rows that are read at once.
_AT_ONCE = 20
#: Set back by more than this, the wall clock is another one; less is how clocks are kept right.
_SET_BACK_NS = 10**9
#: So many deliveries are done before old ones are looked for to delete.
_PRUNE_EVERY = 200


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often it is tried: ``alerts.first_retry_s`` and so on."""

    first_s: float = 1.0
    last_s: float = 300.0
    give_up_after_s: float = 86400.0

    def pause_s(self, failures: int, rng: random.Random) -> float:
        """After so many failures in a row: at random up to a limit that doubles with each.

        (Full jitter, https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/,
        above the first pause.)
        """
        limit = min(self.last_s, self.first_s * 2.0 ** min(failures, 60))
        return min(self.first_s, limit) + rng.random() * max(0.0, limit - self.first_s)


class Sender:
    """Of one channel; ``step`` is called by one thread.

    Args:
        tables: of the store; ``None``: it is not open.
        still_stands: whether what an alert says (its id) still holds.
        count: is told the channel and the outcome.
        stopping: whether the process ends.

    Attributes:
        lock: held while the channel is used.
    """

    def __init__(
        self,
        channel: Channel,
        tables: Callable[[], OutboxTables | None],
        patience: Patience,
        clock: Clock,
        *,
        still_stands: Callable[[str], bool],
        count: Callable[[str, str], None],
        stopping: Callable[[], bool],
        rng: random.Random | None = None,
    ) -> None:
        self.channel = channel
        self.lock = threading.Lock()
        self._tables = tables
        self._patience = patience
        self._clock = clock
        self._still_stands = still_stands
        self._count = count
        self._stopping = stopping
        self._rng = rng or random.SystemRandom()
        self._offset_ns: int | None = None
        self._failures = 0
        self._failing_since_ns = self._paused_ns = 0
        self._done = 0
        self._cannot_read = False
        self._unwritten: dict[str, Outgoing] = {}

    def forget(self) -> None:
        """Another monitor tells from now on: it goes by what the store has."""
        self._unwritten.clear()
        self._offset_ns = None
        self._failures, self._paused_ns = 0, 0

    def step(self) -> bool:
        """Send what is due; returns whether there may be more."""
        tables = self._tables()
        if tables is None:
            return False
        self._look_at_the_clock(tables)
        self._write_what_is_left(tables)
        if self._clock.monotonic_ns() < self._paused_ns:
            return False
        now_ns = self._clock.now_ns()
        try:
            rows = tables.due(self.channel.name, now_ns, _AT_ONCE + len(self._unwritten))
        except StoreError as error:
            if not self._cannot_read and not self._stopping():
                logger.error("alerts for %s wait: %s", self.channel.name, error)
            self._cannot_read = True
            return False
        self._cannot_read = False
        found = [row for one in rows if (row := self._as_known(one, now_ns)) is not None]
        for row in found:
            if self._stopping() or not self._deliver(tables, row):
                return False
        return bool(found)

    def _look_at_the_clock(self, tables: OutboxTables) -> None:
        now_ns = self._clock.now_ns()
        offset_ns, before_ns = now_ns - self._clock.monotonic_ns(), self._offset_ns
        if before_ns is None or offset_ns < before_ns - _SET_BACK_NS:
            try:
                tables.make_due(self.channel.name, now_ns, self.channel.resend_s)
            except StoreError:
                return  # which the store has said; looked at again the next time
        self._offset_ns = offset_ns

    def _as_known(self, row: Outgoing, now_ns: int) -> Outgoing | None:
        """A row with what could not be written of it; ``None``: it is not due."""
        kept = self._unwritten.get(row.alert.id)
        if kept is None:
            return row
        if kept.number != row.number:  # it was resolved meanwhile
            return replace(row, taken=row.taken or kept.taken, unsure=row.unsure or kept.unsure)
        is_due = kept.state in {WAITING, SENT} and 0 < kept.due_ns <= now_ns
        return kept if is_due else None

    def _write(self, tables: OutboxTables, row: Outgoing) -> None:
        """Write what became of it, now or, where the store refuses, before anything else later."""
        self._unwritten[row.alert.id] = row
        self._write_what_is_left(tables)

    def _write_what_is_left(self, tables: OutboxTables) -> None:
        for alert, row in list(self._unwritten.items()):
            try:
                tables.mark(row)
            except StoreError:
                return  # which the store has said; what was sent is known here
            del self._unwritten[alert]

    # --- one alert ----------------------------------------------------------------------------

    def _deliver(self, tables: OutboxTables, row: Outgoing) -> bool:
        """Try once; returns whether the channel can be told the next."""
        now_ns = self._clock.now_ns()
        if row.is_firing and not row.alert.lasting and not self._stands(row):
            if row.state == WAITING:
                self._count(self.channel.name, SUPPRESSED)
                row = replace(row, state=SUPPRESSED)
            self._write(tables, replace(row, due_ns=-now_ns))
            return True
        row = replace(
            row, tried_ns=now_ns, waited_s=row.waited_s + self._waited_s(row, now_ns),
            attempts=row.attempts + (row.state == WAITING),
        )  # fmt: skip
        if not (row.taken or row.unsure):
            self._write(tables, replace(row, unsure=True))
        try:
            with self.lock:
                self.channel.send(_owed(row) or row.alert, now_ns)
        except DeliveryError as error:
            return self._failed(tables, row, error)
        except Exception as error:  # noqa: BLE001 - a channel's fault is that channel's loss
            # Without the error's text, which may hold what the channel must not tell.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s failed by a fault of its own:\n%s", self.channel.name, where)
            fault = DeliveryError(f"a fault: {type(error).__name__}", maybe_taken=True)
            return self._failed(tables, row, fault)
        self._succeeded(tables, row)
        return True

    def _waited_s(self, row: Outgoing, now_ns: int) -> float:
        """Since it was tried last, as far as the channel has failed in this life.

        (So that neither a clock that jumps nor a process that was away makes it give up.)
        """
        if not self._failures:
            return 0.0
        failing_ns = self._clock.monotonic_ns() - self._failing_since_ns
        return min(max(0, now_ns - max(row.tried_ns, row.since_ns)), failing_ns) / 1e9

    def _stands(self, row: Outgoing) -> bool:
        try:
            return self._still_stands(row.alert.id)
        except Exception:  # better told in vain than not at all
            logger.exception("whether alert %s still stands is not known", row.alert.id)
            return True

    def _succeeded(self, tables: OutboxTables, row: Outgoing) -> None:
        name = self.channel.name
        if self._failures:
            logger.info("%s takes alerts again", name)
        self._failures, self._paused_ns = 0, 0
        now_ns = self._clock.now_ns()
        if _owed(row) is not None:  # now that it is over, next
            self._count(name, SENT)
            row = replace(row, taken=True, unsure=False, failures=0, error="", due_ns=now_ns)
            self._write(tables, row)
            return
        if row.state == WAITING:
            self._count(name, SENT)
            row = replace(row, sent_ns=now_ns, repeats=repeats_of(self.channel))
        else:
            row = replace(row, repeats=row.repeats - 1)
        pause_s = self.channel.resend_s
        goes_on = pause_s is not None and (row.is_firing or row.repeats > 0)
        due_ns = now_ns + int((pause_s or 0) * 1e9) if goes_on else -now_ns
        self._write(
            tables,
            replace(
                row, state=SENT, due_ns=due_ns, failures=0, waited_s=0.0,
                error="", taken=True, unsure=False,
            ),
        )  # fmt: skip
        self._done += 1
        if self._done % _PRUNE_EVERY == 0:
            try:
                tables.prune()
            except StoreError:
                return  # which the store has said; the next time will do

    def _failed(self, tables: OutboxTables, row: Outgoing, error: DeliveryError) -> bool:
        """Returns whether the channel can be told the next."""
        name, now_ns = self.channel.name, self._clock.now_ns()
        pause_s = self._pause_s(row.failures, error)
        row = replace(
            row, error=str(error), failures=row.failures + 1,
            due_ns=now_ns + int(pause_s * 1e9),
            unsure=not row.taken and (row.unsure or error.maybe_taken),
        )  # fmt: skip
        if row.state == SENT:
            repeats = row.repeats if row.is_firing else row.repeats - 1
            goes_on = row.is_firing or repeats > 0
            row = replace(row, repeats=repeats, due_ns=row.due_ns if goes_on else -now_ns)
        elif error.is_final or row.waited_s >= self._patience.give_up_after_s:
            self._count(name, FAILED)
            row = replace(row, state=FAILED, due_ns=-now_ns)
            logger.error(
                "%s is not told of alert %s (%s) after %d attempts, and will not be: %s",
                name, row.alert.id, row.alert.summary, row.attempts, error,
            )  # fmt: skip
        else:
            self._count(name, "retried")
        self._write(tables, row)
        if error.is_final:  # of this alert; the next may be another matter
            return True
        pause_s = self._pause_s(self._failures, error)
        self._paused_ns = self._clock.monotonic_ns() + int(pause_s * 1e9)
        if not self._failures:
            self._failing_since_ns = self._clock.monotonic_ns()
            logger.warning("%s takes no alerts, and is tried again: %s", name, error)
        self._failures += 1
        return False

    def _pause_s(self, failures: int, error: DeliveryError) -> float:
        pause_s = self._patience.pause_s(failures, self._rng)
        return min(max(pause_s, error.retry_after_s or 0.0), max(pause_s, RETRY_AFTER_MAX_S))


def _owed(row: Outgoing) -> Alert | None:
    """That a lasting alert fires, where it was over before the channel could hear of it."""
    if row.is_firing or row.taken or not row.alert.lasting:
        return None
    return replace(row.alert, state=State.FIRING, ended_ns=0)
