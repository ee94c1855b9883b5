"""Everything about rolling back in one monitor: the checks, the actor, and what is told of them."""

from __future__ import annotations

import logging
import math
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from exporters.telemetry.model import Point
from sidecar.clock import Clock
from sidecar.config import ModelConfig, SidecarConfig
from sidecar.errors import SidecarError
from sidecar.monitor import calls_rollback
from sidecar.monitor.actions import build
from sidecar.monitor.actions.base import Action
from sidecar.monitor.events import EventLog
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.fleet_side import FleetSide
from sidecar.monitor.leader import Leadership
from sidecar.monitor.measured_rollback import Decided, MeasuredRollback
from sidecar.monitor.measures import CALLERS_OWN, Measures
from sidecar.monitor.mirror_protocol import CopyInfo
from sidecar.monitor.plan import ModelPlan
from sidecar.monitor.pool_side import PoolSide, attach
from sidecar.monitor.rollback.actor import Actor
from sidecar.monitor.rollback.book import Book
from sidecar.monitor.rollback.decisions import Decision, Kind
from sidecar.monitor.rollback.desk import Desk
from sidecar.monitor.rollback.operators import Operators
from sidecar.monitor.rollback.pooled import PooledTraffic
from sidecar.monitor.rollback.schedule import Schedule
from sidecar.monitor.rollback.store import AlertSink
from sidecar.monitor.rollback.traffic import Traffic
from sidecar.monitor.rollback.views import Views
from sidecar.monitor.rollback.watched import Sources
from sidecar.monitor.routing import Routes
from sidecar.monitor.service import Method
from sidecar.monitor.store import Store
from sidecar.monitor.view_rollback import DecisionView, RollbackView
from validators.verdict import Verdict

logger = logging.getLogger("sidecar.monitor.rollback")


def checked_models(config: SidecarConfig) -> dict[str, ModelConfig]:
    """Those whose versions are checked: where asked for, else where there is a pair of versions."""
    return {
        model.name: model
        for model in config.models
        if model.rollback.enabled
        or (
            model.rollback.enabled is None
            and any({"previous", "candidate"} & set(v.roles) for v in model.variants)
        )
    }


class RollbackSide:
    """Puts the parts together; they know nothing of one another.

    Args:
        store: the store, while it is open.
        copies: variant → its copy in the mirror child.
        routes: the route table; ``None``: nothing can be routed from here.
        leadership: of this monitor; ``None``: nobody else has the store.
        fleet: the other replicas; ``None``: there are none.
        budget: pair identity → the flips that validation has recorded for it.

    Raises:
        ConfigError: an action cannot be made as configured. MissingExtraError: it needs a library
            that is not installed.
    """

    def __init__(
        self,
        config: SidecarConfig,
        plans: Mapping[str, ModelPlan],
        evidence: Evidence,
        measures: Measures,
        alerts: AlertSink,
        store: Callable[[], Store | None],
        events: EventLog,
        clock: Clock,
        *,
        copies: Mapping[str, CopyInfo],
        routes: Routes | None = None,
        budget: Callable[[str], float | None] = lambda _: None,
        leadership: Leadership | None = None,
        fleet: FleetSide | None = None,
    ) -> None:
        self._models = checked_models(config)
        self._store = store
        self._events = events
        self._routes = routes
        self._measures = measures
        self._seen: Counter[tuple[str, bool]] = Counter()
        self._seeing = threading.Lock()
        self._decided: Counter[Decided] = Counter()
        self._leadership = leadership or Leadership(lambda: None, clock)
        self.book = Book(alerts, clock, self._leadership)
        self._actions = _actions(self._models, routes, clock)
        sources = Sources(
            self._models, plans, evidence, self._traffic_of(fleet), budget, self._serves,
            since_ns=measures.since_ns if fleet is None else 0,
        )  # fmt: skip
        mirror = config.monitor.mirror
        self.desk = Desk(sources, self.book, clock, rate=mirror.sample_rate, told=self._told)
        self._actor = Actor(
            self.book, lambda model: self._models[model].rollback, self._actions,
            self.desk.not_fresh, clock,
        )  # fmt: skip
        self._operators = Operators(
            self.book, self.desk, tuple(self._models), self._actions, self._actor.wake
        )
        self._views = Views(
            self.book, self.desk, self._models,
            lambda variant: copies[variant].memory_bytes if variant in copies else 0,
        )  # fmt: skip
        self._measured = MeasuredRollback(self.views, self._counted, clock.now_ns())
        self._schedule: Schedule | None = None
        self._pool: PoolSide | None = None
        if fleet is not None:
            self._pool = attach(fleet, evidence, self._leadership, clock)
            fleet.every_sync("rollback", self._follow)

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to check; nothing where no model is to be."""
        if not self._models:
            return
        self.book.follow(self._store())
        self._actor.start()
        every_s = {name: model.rollback.interval_s for name, model in self._models.items()}
        try:
            self._schedule = Schedule(every_s, self.check)
            self._schedule.start()
        except Exception:  # a scheduler that does not start is its own loss
            logger.exception("no rollback checks")

    def check(self, model: str) -> None:
        """Look at a model's pairs as soon as this round's evidence is there. One at a time."""
        if self._pool is not None:
            self._pool.wait()
        self.book.follow(self._store())
        self.desk.check(model)
        if self.book.open():
            self._actor.wake()

    @property
    def leads(self) -> bool:
        """Whether this monitor decides, and knows all that was decided before."""
        return self.book.leads if self._models else self._leadership.is_leader

    def led_anew(self) -> None:
        """This monitor has begun, or ceased, to lead: look at once, whatever the intervals."""
        if self._schedule is not None:
            self._schedule.now()
        self._actor.wake()

    def _follow(self, store: Store) -> None:
        """What others have written, operators at other replicas too."""
        if self._models:
            self.book.follow(store)
            if self.book.has_open:
                self._actor.wake()

    def close(self) -> None:
        """No further checks and actions; bounded. Idempotent."""
        if self._schedule is not None:
            self._schedule.close()
        self._actor.close()

    def saw(self, exchange: Exchange) -> None:
        """One exchange that the gateway has sent: where there are no pages, they are counted."""
        if exchange.outcome in CALLERS_OWN:
            return
        with self._seeing:
            self._seen[exchange.variant, exchange.outcome == "OK"] += 1

    def _traffic_of(self, fleet: FleetSide | None) -> Callable[[], Traffic]:
        """This gateway's, or that of all replicas."""
        if fleet is None:
            return self._traffic
        replicas, measures = fleet.replicas, self._measures

        def source() -> str:
            # With pages a monitor that is started again goes on with the same counts.
            mine = measures.since_ns if measures.served() else replicas.incarnation
            return f"{socket.gethostname()}:{mine}"

        pooled = PooledTraffic(
            self._traffic, source,
            lambda: [one.plain.get("traffic") or {} for one in replicas.alive(math.inf)],
        )  # fmt: skip
        replicas.tell("traffic", pooled.tell)
        return pooled.traffic

    def _traffic(self) -> Traffic:
        served = self._measures.served()
        if served:
            return served
        with self._seeing:
            seen = dict(self._seen)
        variants = {variant for variant, _ in seen}
        return {
            variant: (
                seen.get((variant, True), 0) + seen.get((variant, False), 0),
                seen.get((variant, False), 0),
            )
            for variant in variants
        }

    def _serves(self, model: str, variant: str) -> bool:
        """Whether the route gives a variant's version anything, or else its role does."""
        version, _, _ = variant.removeprefix(f"{model}:").partition("/")
        if self._routes is not None:
            try:
                return self._routes.route(model).shares.get(version, 0.0) > 0
            except SidecarError:
                logger.warning("the route of %s is not known: its roles are gone by", model)
        return any(
            one.version == version and "serving" in one.roles
            for one in self._models[model].variants
        )

    def _counted(self) -> dict[Decided, int]:
        with self._seeing:
            return dict(self._decided)

    def _told(self, decision: Decision) -> None:
        with self._seeing:
            self._decided[decision.pair.model, decision.state, decision.metric] += 1
        bad = decision.kind in {Kind.ROLLBACK, Kind.SERVED}
        self._events.append(
            model=decision.pair.model, candidate=decision.pair.new,
            baseline=decision.pair.previous, output="",
            verdict=Verdict.FAIL if bad else Verdict.INCONCLUSIVE,
            text=f"{decision.text} {decision.action_text}".strip(),
        )  # fmt: skip

    # --- what is shown and called -----------------------------------------------------------------

    def still_stands(self, alert_id: str) -> bool:
        """Whether an alert is still to be told."""
        return self.book.still_stands(alert_id)

    def models(self) -> tuple[str, ...]:
        """Those that are checked."""
        return tuple(self._models)

    def views(self, model: str | None = None) -> list[RollbackView]:
        """Every pair, as it is now."""
        return self._views.pairs(model)

    def decisions(self, model: str | None, limit: int) -> list[DecisionView]:
        """The newest first, each with what became of its alerts."""
        return self._views.decisions(model, limit)

    def freeze(self, model: str, *, frozen: bool, by: str, reason: str) -> None:
        """Let nobody but operators act on a model (empty: on any), or end that."""
        self._operators.freeze(model, frozen=frozen, by=by, reason=reason)

    def approve(self, name: str, *, by: str, reason: str) -> DecisionView:
        """Let an action that waits, or was blocked, be done."""
        return self._views.decision(self._operators.approve(name, by=by, reason=reason), told=True)

    def undo(self, name: str, *, by: str, reason: str) -> DecisionView:
        """Take a rollback back, or close a decision."""
        return self._views.decision(self._operators.undo(name, by=by, reason=reason), told=True)

    def methods(self) -> Mapping[str, Method]:
        """What the monitor's service answers of it."""
        return calls_rollback.methods(self)

    def points(self) -> Iterator[Point]:
        """Every metric of rolling back."""
        return self._measured.points()


def _actions(
    models: Mapping[str, ModelConfig], routes: Routes | None, clock: Clock
) -> dict[str, Action]:
    """Model → what is done; of those that only observe, nothing."""
    made = {}
    for name, model in models.items():
        config = model.rollback.action
        if config.kind == "observe":
            continue
        if routes is None and config.kind in _NEED_ROUTES:
            logger.error("%s: the action %s has no route table here", name, config.kind)
            continue
        made[name] = build(config, routes, name, clock)  # type: ignore[arg-type]
    return made


#: Actions that look at the route table, or change it.
_NEED_ROUTES = frozenset({"switch", "webhook"})
