"""Alerts on their way: taken in with the decision that they tell of, and told until they are taken.

``put`` and ``resolve`` write into the caller's own transaction, so that there is no decision
without its alerts and no alert without its decision. A thread for each channel tells it what is
due; a receiver that hangs holds up its own channel and no other.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from dataclasses import replace
from time import monotonic

import sqlalchemy as sa

from exporters.alerts.alert import Alert, Channel, DeliveryError, Severity, State
from sidecar.clock import Clock
from sidecar.config_alerts import AlertsConfig
from sidecar.errors import NotFoundError, OverloadedError
from sidecar.monitor.outbox_sender import Patience, Sender
from sidecar.monitor.outbox_store import FAILED, SENT, OutboxTables, put, resolve
from sidecar.monitor.rows import StoreError
from sidecar.monitor.view_rollback import Delivery

__all__ = ["Outbox", "put", "resolve"]

logger = logging.getLogger(__name__)

#: What becomes of alerts (``Outbox.counts``).
OUTCOMES = ("sent", "retried", "failed", "suppressed", "refused")
#: How often a channel looks for what is due, where nobody wakes it.
_LOOK_EVERY_S = 0.5
#: A test waits so much longer than one attempt for a channel that is being told something else.
_TEST_PATIENCE_S = 2.0


class Outbox:
    """Of one monitor. ``start`` once, ``close`` once; methods may be called from any thread.

    Args:
        tables: of the store; ``None`` while it is not open: then alerts wait.
        still_stands: whether what an alert (its id) says still holds; asked before it is said that
            it fires.
        leads: where several monitors share the store, whether this one tells what is due; ``None``:
            nobody else does.
    """

    def __init__(
        self,
        tables: Callable[[], OutboxTables | None],
        channels: Sequence[Channel],
        settings: AlertsConfig,
        clock: Clock,
        still_stands: Callable[[str], bool] = lambda _: True,
        *,
        leads: Callable[[], bool] | None = None,
    ) -> None:
        self._leads = leads
        self._waiting: dict[str, int] = {}
        self.channels = tuple(channels)
        self._tables = tables
        self._settings = settings
        self._clock = clock
        # From 0, so that the first of each is seen as an increase.
        self._counts: Counter[tuple[str, str]] = Counter(
            {(channel.name, outcome): 0 for channel in self.channels for outcome in OUTCOMES}
        )
        self._counting = threading.Lock()
        self._testing = threading.Lock()
        self._unsettled = threading.Lock()  # taken, it is done
        self._stopping = threading.Event()
        self._wakers = {channel.name: threading.Event() for channel in self.channels}
        patience = Patience(
            settings.first_retry_s, settings.last_retry_s, settings.give_up_after_s
        )  # fmt: skip
        self.senders = [
            Sender(
                channel, tables, patience, clock,
                still_stands=still_stands, count=self._count, stopping=self._stopping.is_set,
            )
            for channel in self.channels
        ]  # fmt: skip
        self._threads = [
            threading.Thread(
                target=self._run, args=(sender,), name=f"alerts-{sender.channel.name}", daemon=True
            )
            for sender in self.senders
        ]

    # --- for whoever decides ------------------------------------------------------------------

    def put(self, connection: sa.Connection, alerts: Iterable[Alert]) -> None:
        """Enter alerts within the caller's transaction; ``wake`` once it is committed.

        What there is no room for (``alerts.max_waiting``) is refused, counted and logged: it must
        not keep the decision from being written.
        """
        links = self._settings.links
        linked = [replace(alert, links={**links, **alert.links}) for alert in alerts]
        refused = put(
            connection, linked, self.channels, self._clock.now_ns(),
            waiting_max=self._settings.max_waiting,
        )  # fmt: skip
        for (channel, outcome), count in refused.items():
            self._count(channel, outcome, count)
            if outcome == "refused":
                logger.error(
                    "%d alerts are not told to %s, for which %d wait already (alerts.max_waiting)",
                    count, channel, self._settings.max_waiting,
                )  # fmt: skip

    def resolve(self, connection: sa.Connection, alert: Alert) -> None:
        """Say of an alert that it is over, within the caller's transaction."""
        untold = resolve(connection, alert, self._clock.now_ns())
        for (channel, outcome), count in untold.items():
            self._count(channel, outcome, count)

    def wake(self) -> None:
        """Look now: something was committed. Without it a channel looks twice a second."""
        for waker in self._wakers.values():
            waker.set()

    def deliveries(self, alerts: Sequence[str]) -> list[Delivery]:
        """What became of alerts, by their ids, on each channel; empty where there is no store.

        Raises:
            StoreError: it cannot be read.
        """
        tables = self._tables()
        return [] if tables is None else tables.deliveries(alerts)

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tell; what is left of an earlier life is due at once."""
        for thread in self._threads:
            thread.start()

    def _settle(self) -> None:
        """Once: what waits for a channel that is no more must not wait for ever."""
        tables = self._tables()
        if tables is None or not self._unsettled.acquire(blocking=False):
            return
        try:
            names = [channel.name for channel in self.channels]
            for name in tables.give_up_others(names, self._clock.now_ns()):
                logger.error("alerts for %s are given up: no channel is called so any more", name)
        except StoreError:  # which the store has said
            self._unsettled.release()

    def _may_tell(self, sender: Sender) -> bool:
        if self._leads is not None:
            if not self._leads():
                sender.forget()
                self._waiting = {}
                return False
            # In this thread: who collects metrics does not wait for another machine.
            if sender is self.senders[0]:
                self._waiting = self._read_waiting()
        self._settle()
        return True

    def _run(self, sender: Sender) -> None:
        waker = self._wakers[sender.channel.name]
        while not self._stopping.is_set():
            waker.clear()
            try:
                more = self._may_tell(sender) and sender.step()
            except Exception:  # a channel's thread must not end
                logger.exception("the alerts of %s wait", sender.channel.name)
                more = False
            if not more:
                waker.wait(_LOOK_EVERY_S)

    def close(self, within_s: float = 1.0) -> None:
        """Stop telling; an attempt that hangs is left behind, and made again by the next life."""
        self._stopping.set()
        self.wake()
        until_s = monotonic() + within_s
        for thread, sender in zip(self._threads, self.senders, strict=True):
            if thread.is_alive():
                thread.join(max(0.0, until_s - monotonic()))
            if not thread.is_alive():
                sender.channel.close()

    # --- trying it out ------------------------------------------------------------------------

    def test(self, channel: str = "") -> list[Delivery]:
        """Send a test alert through one channel, or (empty) through all at the same time, and say
        what each said. It is not kept, and tried once.

        Raises:
            NotFoundError: there is no such channel. OverloadedError: another test is under way.
        """
        chosen = [one for one in self.senders if channel in {"", one.channel.name}]
        if not chosen:
            known = ", ".join(one.name for one in self.channels)
            message = f"no channel is called {channel!r}; there is {known or 'none'}"
            raise NotFoundError(message)
        if not self._testing.acquire(blocking=False):
            message = "another test of the alerts is under way; try again when it is done"
            raise OverloadedError(message)
        try:
            now_ns = self._clock.now_ns()
            alert = alert_for_test(now_ns, self._settings.links)
            with futures.ThreadPoolExecutor(len(chosen), "alerts-test") as pool:
                return list(pool.map(lambda one: _tried(one, alert, self._clock), chosen))
        finally:
            self._testing.release()

    # --- numbers ------------------------------------------------------------------------------

    def _count(self, channel: str, outcome: str, count: int = 1) -> None:
        with self._counting:
            self._counts[channel, outcome] += count

    def counts(self) -> dict[tuple[str, str], int]:
        """(channel, outcome) → alerts since the start.

        ``sent``: taken, each state once; ``retried``: an attempt failed, and another will be made;
        ``failed``: given up; ``suppressed``: a repetition, or over before it was told; ``refused``:
        too many waited.
        """
        with self._counting:
            return dict(self._counts)

    def waiting(self) -> dict[str, int]:
        """Channel → alerts that it has not taken yet; empty where that is not known, or another
        monitor's to say."""
        return self._read_waiting() if self._leads is None else dict(self._waiting)

    def _read_waiting(self) -> dict[str, int]:
        tables = self._tables()
        try:
            found = {} if tables is None else tables.waiting()
        except StoreError:
            return {}
        return {} if tables is None else {one.name: found.get(one.name, 0) for one in self.channels}


def alert_for_test(now_ns: int, links: dict[str, str]) -> Alert:
    """What a test sends."""
    return Alert(
        id=f"test:{now_ns}",
        name="TestAlert",
        state=State.FIRING,
        severity=Severity.INFO,
        summary="A test of the alerts of model-sidecar",
        text="Somebody has asked for it (sidecar alerts test). Nothing is wrong, and nothing needs "
        "to be done.",
        started_ns=now_ns,
        labels={"model": "test"},
        links=dict(links),
    )


def try_channel(channel: Channel, alert: Alert, clock: Clock) -> Delivery:
    """Send once; where something would stay open, resolve it."""
    try:
        channel.send(alert, clock.now_ns())
        if channel.ends_tests:
            over = replace(alert, state=State.RESOLVED, ended_ns=clock.now_ns())
            channel.send(over, clock.now_ns())
    except DeliveryError as error:
        return Delivery(channel.name, alert.name, FAILED, 1, str(error))
    except Exception as error:  # noqa: BLE001 - its text may hold what must not be told
        text = f"a fault: {type(error).__name__}"
        return Delivery(channel.name, alert.name, FAILED, 1, text)
    return Delivery(channel.name, alert.name, SENT, 1, "", clock.now_ns())


def _tried(sender: Sender, alert: Alert, clock: Clock) -> Delivery:
    channel = sender.channel
    if not sender.lock.acquire(timeout=channel.timeout_s + _TEST_PATIENCE_S):
        text = "it is being told something else, which hangs"
        return Delivery(channel.name, alert.name, FAILED, 0, text)
    try:
        return try_channel(channel, alert, clock)
    finally:
        sender.lock.release()
