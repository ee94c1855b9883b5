"""Routes, as the monitor has them: the table, what workers say of it, probes of their copies."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar import route_table
from sidecar.clock import Clock
from sidecar.config import ModelConfig, SidecarConfig
from sidecar.errors import InvalidRequestError, NotFoundError
from sidecar.monitor.route_book import RouteBook
from sidecar.monitor.route_fleet import RouteFleet
from sidecar.monitor.route_replicas import ReplicaRoute, RouteReplicas
from sidecar.monitor.routing import Probe, RouteConflictError, RouteView
from sidecar.monitor.worker_routes import WorkerRoutes
from sidecar.route_table import Route

logger = logging.getLogger("sidecar.monitor.routes")

_REASON_MAX = 1000
_WEIGHT_MAX = 1e9
#: The workers' counts are about a second old, and told once a second.
_AGE_S = 3.0

#: What had been counted of a model so far, as JSON values.
Since = Callable[[str], dict[str, Any]]


class RouteSide:
    """Implements ``Routes`` (``routing.py``).

    Args:
        path: of the table.
        workers: fed by the channel.
        since: kept with a change, so that what came before it can be told apart from what came
            after.
    """

    def __init__(
        self,
        config: SidecarConfig,
        path: Path,
        workers: WorkerRoutes,
        clock: Clock,
        since: Since = lambda _: {},
    ) -> None:
        self._models: Mapping[str, ModelConfig] = {model.name: model for model in config.models}
        self._workers = workers
        self._book = RouteBook(path)
        self._clock = clock
        self._since = since
        self._fleet: RouteFleet | None = None
        self._replicas: RouteReplicas | None = None
        self._sync_s = 0.0

    def share(self, fleet: RouteFleet, replicas: RouteReplicas, sync_s: float) -> None:
        """The routes are those of all replicas; before anything else is called."""
        self._fleet, self._replicas, self._sync_s = fleet, replicas, sync_s

    def routes(self) -> list[RouteView]:
        """All models' routes."""
        table = self._book.read()
        return [self._view(model, table.get(name)) for name, model in self._models.items()]

    def route(self, model: str) -> RouteView:
        """One model's.

        Raises:
            NotFoundError: no such model; names those there are.
        """
        return self._view(self._model(model), self._book.read().get(model))

    def began(self, model: str) -> Route | None:
        """The route as it lies in the table, with what had been counted; ``None``: never set."""
        return self._book.read().get(self._model(model).name)

    def set(
        self, model: str, shares: dict[str, float], *, by: str, reason: str,
        expected: int | None = None,
    ) -> RouteView:  # fmt: skip
        """See ``Routes.set``."""
        config = self._model(model)
        _check(config, shares)
        since = self._since(model)

        def change(before: Route | None) -> Route:
            revision, _ = self._now(config, before)
            if expected is not None and expected != revision:
                raise _conflict(model, expected, revision, before)
            return Route(
                revision + 1, route_table.normal(shares), by,
                reason.strip()[:_REASON_MAX], self._clock.now_ns(), since,
            )  # fmt: skip

        if self._fleet is not None:
            route = self._fleet.change(model, self._book.read().get(model), change)
        else:
            with self._book.changing() as table:
                route = table[model] = change(table.get(model))
        why = f"{by}: {reason}" if reason else by
        text = route_table.words(route.shares)
        logger.warning("%s is routed %s (revision %d, by %s)", model, text, route.revision, why)
        return self._view(config, route)

    def probe(self, model: str, version: str, timeout_s: float) -> Probe:
        """See ``Routes.probe``."""
        self._model(model)
        if self._replicas is not None:
            return self._replicas.probe(model, version, timeout_s)
        return self._workers.probe(model, version, timeout_s)

    def observed(self, model: str) -> dict[str, int]:
        """See ``Routes.observed``."""
        self._model(model)
        if self._replicas is not None:
            return self._replicas.answered(model)
        return {version: counts.answered for version, counts in self._workers.counts(model).items()}

    def age_s(self) -> float:
        """See ``Routes.age_s``."""
        return _AGE_S + 2 * self._sync_s

    def shares(self, model: str) -> tuple[dict[str, float], bool]:
        """Version → share as it stands, for metrics; and whether it was ever changed."""
        route = self._book.read().get(model)
        config = self._models[model]
        there = route_table.answering(config)
        shares, _ = route_table.resolve(route, route_table.configured(config), there)
        return shares, route is not None

    # --- views ----------------------------------------------------------------------------------

    def _model(self, name: str) -> ModelConfig:
        model = self._models.get(name)
        if model is None:
            message = f"no model {name!r} is served; there is {', '.join(self._models)}"
            raise NotFoundError(message)
        return model

    def _view(self, model: ModelConfig, route: Route | None) -> RouteView:
        versions = list(route_table.answering(model))
        revision, wanted = self._now(model, route)
        shares, note = route_table.resolve(wanted, route_table.configured(model), versions)
        own = self._own(model.name, revision, note)
        others = [] if self._replicas is None else self._replicas.others(model.name)
        # One at another revision has not heard of this one yet, or is ahead of us.
        at_it = [each for each in (own, *others) if each.revision == revision]
        return RouteView(
            model=model.name,
            revision=revision,
            shares={version: shares[version] for version in versions if version in shares},
            sticky=model.route.sticky or "",
            by="config" if wanted is None else wanted.by,
            reason="" if wanted is None else wanted.reason,
            changed_wall_ns=0 if wanted is None else wanted.changed_wall_ns,
            workers=sum(each.workers for each in (own, *others)),
            applied=sum(each.applied for each in at_it),
            candidates=[v for v in route_table.candidates(model) if v not in shares],
            versions=versions,
            problem=_problem(own, others),
            replicas=0 if self._replicas is None else 1 + len(others),
            replicas_applied=sum(each.applied == each.workers for each in at_it if self._replicas),
        )

    def own(self, model: str) -> ReplicaRoute:
        """How this replica's own workers follow a route, to be told to the others."""
        config = self._models[model]
        revision, wanted = self._now(config, self._book.read().get(model))
        there = route_table.answering(config)
        _, note = route_table.resolve(wanted, route_table.configured(config), there)
        return self._own(model, revision, note)

    def _own(self, model: str, revision: int, note: str) -> ReplicaRoute:
        following = self._workers.following(model)
        applied = [each for each in following if each is not None and each.revision == revision]
        said = [note, self._book.problem, *self._workers.problems()]
        said += [each.note for each in applied]
        if self._fleet is not None:
            said.append(self._fleet.problem)
        problem = "; ".join(dict.fromkeys(text for text in said if text))
        return ReplicaRoute("", revision, len(following), len(applied), problem)

    def _now(self, model: ModelConfig, route: Route | None) -> tuple[int, Route | None]:
        """Revision and route as they stand: as the table says, or, where it was lost or damaged, as
        workers go on to route."""
        said = [each for each in self._workers.following(model.name) if each is not None]
        latest = max(said, key=lambda each: each.revision, default=None)
        if route is None and latest is not None and latest.revision > 0:
            return latest.revision, Route(latest.revision, latest.shares, "", "", 0)
        return (0, None) if route is None else (route.revision, route)


def _problem(own: ReplicaRoute, others: Sequence[ReplicaRoute]) -> str:
    # What all have in common is said once.
    of_others = [o for o in others if o.problem not in {"", own.problem}]
    said = [own.problem, *(f"replica {o.name}: {o.problem}" for o in of_others)]
    return "; ".join(text for text in said if text)


def _check(model: ModelConfig, shares: Mapping[str, float]) -> None:
    there = route_table.answering(model)
    for version, weight in shares.items():
        if version not in there:
            message = f"model {model.name!r} has no version {version!r} to route to; it has: "
            raise NotFoundError(message + ", ".join(there))
        if not 0 <= weight <= _WEIGHT_MAX:  # which NaN is not either
            message = f"the share of version {version} is {weight:g}; it must be between 0 and "
            raise InvalidRequestError(f"{message}{_WEIGHT_MAX:g}")
    if not math.fsum(shares.values()) > 0:
        message = f"no version of {model.name!r} is given a share: then nobody would answer"
        raise InvalidRequestError(message)


def _conflict(model: str, expected: int, revision: int, before: Route | None) -> RouteConflictError:
    text = f"the route of {model!r} is at revision {revision} by now, not at {expected}"
    if before is not None:
        why = f"by {before.by}: {before.reason}" if before.reason else f"by {before.by}"
        text += f": {route_table.words(before.shares)} ({why})"
    return RouteConflictError(f"{text}; look again, then decide again")
