"""What may be done about a version that is worse, one file an action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sidecar.clock import Clock, SystemClock
from sidecar.config_rollback import ActionConfig
from sidecar.errors import ConfigError, Problem
from sidecar.monitor.actions.base import Action
from sidecar.monitor.routing import Routes

Builder = Callable[[Any, Routes, str, Clock], Action]


def _observe(_config: Any, _routes: Routes, _where: str, _clock: Clock) -> Action:
    from sidecar.monitor.actions.observe import ObserveAction

    return ObserveAction()


def _switch(_config: Any, routes: Routes, _where: str, clock: Clock) -> Action:
    from sidecar.monitor.actions.switch import SwitchAction

    return SwitchAction(routes, clock)


def _deployment(config: Any, _routes: Routes, where: str, _clock: Clock) -> Action:
    from sidecar.monitor.actions.deployment import DeploymentAction

    return DeploymentAction(_cluster(config, ("apps", "v1", "deployments"), where))


def _argo(config: Any, _routes: Routes, where: str, _clock: Clock) -> Action:
    from sidecar.monitor.actions.argo import ArgoAction

    return ArgoAction(_cluster(config, ("argoproj.io", "v1alpha1", "rollouts"), where))


def _kserve(config: Any, _routes: Routes, where: str, _clock: Clock) -> Action:
    from sidecar.monitor.actions.kserve import KServeAction

    kind = ("serving.kserve.io", "v1beta1", "inferenceservices")
    return KServeAction(_cluster(config, kind, where))


def _webhook(config: Any, routes: Routes, _where: str, clock: Clock) -> Action:
    from sidecar.monitor.actions.webhook import WebhookAction

    return WebhookAction(config, routes, clock)


def _cluster(config: Any, kind: tuple[str, str, str], where: str) -> Any:
    from sidecar.monitor.actions import roles
    from sidecar.monitor.actions.cluster import Target, connect

    target = Target(*kind, config.namespace, config.name)
    return connect(config.kubernetes, target, roles.in_words(config), where)


BUILTIN: dict[str, Builder] = {
    "observe": _observe,
    "switch": _switch,
    "deployment": _deployment,
    "argo": _argo,
    "kserve": _kserve,
    "webhook": _webhook,
}


def build(config: ActionConfig, routes: Routes, model: str, clock: Clock | None = None) -> Action:
    """Make a model's action of its configuration. Nobody is asked anything yet.

    Args:
        model: its name, for messages.

    Raises:
        ConfigError: an unknown kind, or a cluster that cannot be found. MissingExtraError: it needs
            a library that is not installed.
    """
    where = f"models[{model}].rollback.action"
    make = BUILTIN.get(config.kind)
    if make is None:
        what = f"no action is called {config.kind!r}; there is {', '.join(BUILTIN)}"
        raise ConfigError("monitor", [Problem(f"{where}.kind", what)])
    return make(config, routes, where, clock or SystemClock())


__all__ = ["BUILTIN", "build"]
