"""A desk over one pair of versions, with a real store and outbox, and time that stands still."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import SecretStr

from exporters.alerts.alert import Alert, State
from sidecar.config_alerts import AlertsConfig
from sidecar.config_monitor import StoreConfig
from sidecar.monitor import harms
from sidecar.monitor import store_tables as tables
from sidecar.monitor.actions.base import Outcome, Request, Result
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.leader import Leadership
from sidecar.monitor.outbox import Outbox
from sidecar.monitor.outbox_store import OutboxTables
from sidecar.monitor.rollback.actor import Actor
from sidecar.monitor.rollback.book import Book
from sidecar.monitor.rollback.decisions import Decision, PairId
from sidecar.monitor.rollback.desk import Desk
from sidecar.monitor.rollback.operators import Operators
from sidecar.monitor.rollback.views import Views
from sidecar.monitor.rollback.watched import Sources
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store import Store
from tests.monitor.making import Clock as _Clock
from tests.monitor.making import model, plan
from validators.sequential import latency
from validators.sequential.paired import BLOCK

NEW, PREVIOUS = "m:2/new", "m:1/old"
HOUR = 3600.0


class Clock(_Clock):
    """Two clocks: the wall's can be set, the other never goes back."""

    def __init__(self) -> None:
        super().__init__()
        self.ns = 10**15
        self.wall_offset_ns = 10**18

    def now_ns(self) -> int:
        return self.ns + self.wall_offset_ns

    def jump(self, seconds: float) -> None:
        """Set the wall clock."""
        self.wall_offset_ns += int(seconds * 1e9)


class Lever:
    """An action on a lever that the test looks at: left is the new version, right the previous."""

    kind = "webhook"

    def __init__(self) -> None:
        self.at = "new"
        self.calls: list[tuple[str, str, int]] = []
        self.target = Result(Outcome.DONE, "version 1 answers")
        self.refuses: Result | None = None
        self.shows = True
        self.dies: Callable[[str], None] = lambda _: None

    def check(self, request: Request) -> Result:
        self._called("check", request)
        return self.target

    def perform(self, request: Request) -> Result:
        self._called("perform", request)
        if self.refuses is not None:
            return self.refuses
        self.at = "previous"
        self.dies("performed")
        return Result(Outcome.DONE, "the lever is at version 1")

    def verify(self, request: Request) -> Result:
        self._called("verify", request)
        done = self.at == "previous" and self.shows
        outcome = Outcome.DONE if done else Outcome.RETRY
        return Result(outcome, "all requests go to 1" if done else "requests still go to 2")

    def undo(self, request: Request) -> Result:
        self._called("undo", request)
        self.at = "new"
        return Result(Outcome.DONE, "the lever is at version 2 again")

    def _called(self, step: str, request: Request) -> None:
        self.calls.append((step, request.decision_id, request.fence))
        self.dies(step)

    def count(self, step: str) -> int:
        return sum(1 for one in self.calls if one[0] == step)


class Bench:
    """``m`` in version 2, beside version 1. Everything is real but time and the lever."""

    def __init__(
        self, folder: Path, clock: Clock | None = None, lever: Lever | None = None, *,
        beside: Bench | None = None, lease_s: float | None = None, url: str = "", **settings: Any,
    ) -> None:  # fmt: skip
        """With ``lease_s`` one of several on one store, which is that of ``beside``, if any; with
        ``url`` it is on PostgreSQL."""
        self.clock = clock or Clock()
        act = {"kind": "webhook", "url": "http://127.0.0.1:1/"}
        rollback = {"min_pairs": 100, "action": act, **settings}
        candidate = rollback.pop("candidate", False)
        roles = ["candidate"] if candidate else ["serving"]
        self.new, self.previous = NEW, PREVIOUS
        variants = [("1", "old", ["previous"]), ("2", "new", roles)]
        if candidate:
            variants[0] = ("1", "old", ["serving"])
        self.config = model(*variants, rollback=rollback)
        self.plans = {"m": plan(self.config)}
        [self.pair] = [one for one in self.plans["m"].pairs if one.purpose == "versions"]
        self.evidence = Evidence("life", self.clock)
        if beside is not None:
            self.store: Store | None = beside.store
        elif url:
            self.store = Store.connect(StoreConfig(url=SecretStr(url)), self.clock)
        else:
            self.store = Store.open(folder, self.clock)
            self.evidence.load(self.store)
        self.outbox = Outbox(
            lambda: None if self.store is None else self.store.part(OutboxTables),
            [_Channel()], AlertsConfig(), self.clock,
        )  # fmt: skip
        self.leadership = Leadership(lambda: self.store, self.clock, lease_s=lease_s)
        if lease_s is not None:
            self.leadership.tick()
        self.book = Book(self.outbox, self.clock, self.leadership)
        assert self.book.follow(self.store)
        self.traffic: dict[str, tuple[int, int]] = {}
        self.told: list[Decision] = []
        self.budget: float | None = None
        sources = Sources(
            {"m": self.config}, self.plans, self.evidence, lambda: self.traffic,
            lambda _: self.budget, lambda _model, variant: not candidate or variant != NEW,
        )  # fmt: skip
        self.desk = Desk(sources, self.book, self.clock, rate=1.0, told=self.told.append)
        self.lever = lever or Lever()
        self.actor = Actor(
            self.book, lambda _: self.config.rollback, {"m": self.lever}, self.desk.not_fresh,
            self.clock,
        )  # fmt: skip
        self.operators = Operators(self.book, self.desk, ("m",), {"m": self.lever}, self.actor.wake)
        self.views = Views(self.book, self.desk, {"m": self.config}, lambda _: 0)
        self._index = 0

    @property
    def id(self) -> PairId:
        return PairId("m", NEW, PREVIOUS, self.pair.identity)

    # --- what was seen ----------------------------------------------------------------------------

    def pairs(self, count: int, *, new_only: int = 0, previous_only: int = 0) -> None:
        """So many pairs; of them failed in the new version alone, in the previous one alone."""
        key = self._key(harms.ERROR)
        self.evidence.add(
            key,
            {
                "n10": new_only, "n01": previous_only, "n11": 0,
                "n00": count - new_only - previous_only,
            },
        )  # fmt: skip
        blocks = count / 20
        worse, better = min(new_only, blocks), min(previous_only, blocks)
        self.evidence.add(
            self._key(harms.by(harms.ERROR, 20)),
            {"n10": worse, "n01": better, "n00": max(blocks - worse - better, 0)},
        )
        self._index += count

    def slow(self, count: int, *, sides: tuple[str, str] = (NEW, PREVIOUS)) -> None:
        """So many pairs in which the new version was the slower one, by every bet."""
        self._slow(sides, {"n10": count}, 1.0)

    def equal(self, count: int, *, sides: tuple[str, str] = (PREVIOUS, PREVIOUS)) -> None:
        """So many in which either was, as often."""
        self._slow(sides, {"n10": count / 2, "n01": count / 2}, 0.5)

    def _slow(self, sides: tuple[str, str], cells: dict[str, float], share: float) -> None:
        total = sum(cells.values())
        for metric in latency.METRICS:
            self.evidence.add(self._key(metric, sides), cells)
            for length in harms.BLOCK_LENGTHS:
                blocks = {
                    "n10": share * total / length, "n01": (1 - share) * total / length, "n00": 0,
                }  # fmt: skip
                self.evidence.add(self._key(harms.by(metric, length), sides), blocks)

    def calibrated(self, pairs: int, block: int) -> None:
        key = EvidenceKey(
            "m", PREVIOUS, PREVIOUS, "", harms.CALIBRATION, self.pair.identity
        )  # fmt: skip
        self.evidence.set_cells(key, {"pairs": pairs, "block": block})

    def _key(
        self, metric: str, sides: tuple[str, str] = (NEW, PREVIOUS), output: str = ""
    ) -> EvidenceKey:
        return EvidenceKey("m", *sides, output, metric, self.pair.identity, self._index // BLOCK)

    def flips(self, count: int, flipped: int) -> None:
        key = self._key(harms.FLIP, output="scores")
        self.evidence.add(key, {"n10": flipped, "n00": count - flipped})

    # --- what was made of it ----------------------------------------------------------------------

    def check(self, seconds: float = 10.0) -> None:
        """Time goes on, and the pairs are looked at."""
        self.clock.advance(seconds)
        self.book.follow(self.store)
        self.desk.check()

    def act(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(0.5)
            self.actor.tick()

    @property
    def view(self):
        [found] = self.views.pairs("m")
        return found

    @property
    def state(self) -> str:
        return self.view.state

    def decision(self, kind: str = "ModelRollback") -> Decision:
        [found] = [one for one in self.book.decisions() if one.kind == kind]
        return found

    def alerts(self) -> list[tuple[str, str, str]]:
        """Name, state (firing or resolved) and delivery of everything in the outbox."""
        assert self.store is not None
        rows = self.store.database.read(sa.select(tables.OUTBOX))
        found = [Alert.from_plain(row["plain"]["alert"]) for row in rows]
        states = [row["state"] for row in rows]
        return sorted(
            (alert.name, str(alert.state), state)
            for alert, state in zip(found, states, strict=True)
        )

    def firing(self) -> list[str]:
        return [name for name, state, _ in self.alerts() if state == State.FIRING]

    def close(self) -> None:
        if self.store is not None:
            self.evidence.flush(self.store)
            self.store.close()


class _Channel:
    """Takes whatever it is sent: these tests look into the outbox."""

    name = kind = "none"
    resend_s = None
    keeps_resolved_s = 0.0
    timeout_s = 1.0
    least = "info"
    ends_tests = False

    def send(self, alert: Alert, now_ns: int) -> None:
        del alert, now_ns

    def close(self) -> None:
        pass


class Unheard:
    """A sink for what nobody is to be told."""

    def put(self, connection: sa.Connection, alerts: Any) -> None:
        del connection, alerts

    def resolve(self, connection: sa.Connection, alert: Alert) -> None:
        del connection, alert

    def wake(self) -> None:
        pass

    def deliveries(self, alert_ids: Any) -> list[Any]:
        del alert_ids
        return []
