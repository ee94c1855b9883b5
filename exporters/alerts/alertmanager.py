"""Prometheus Alertmanager: ``POST /api/v2/alerts``.

An alert is there until its ``endsAt``, so it is said again before that; whoever stops saying it (a
monitor that is gone) lets it end. Labels are its identity, so they hold what does not change;
numbers are annotations.
(https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from exporters.alerts.alert import Alert, State
from exporters.alerts.base import Common, changed_ns, rfc3339, word
from exporters.alerts.http import HttpChannel, Poster

#: A firing alert outlives so many re-sends that do not arrive.
_RESENDS = 4
#: It is said to be resolved for so long, over restarts of the Alertmanager.
_KEEPS_RESOLVED_S = 300.0
#: Identities whose latest alert is known.
_IDENTITIES_MAX = 10_000
#: The links that its templates know.
_LINKS = {"runbook": "runbook_url", "dashboard": "dashboard_url"}


class AlertmanagerChannel(HttpChannel):
    """Says alerts again every ``resend_s``, and for five minutes that they are resolved."""

    kind = "alertmanager"
    keeps_resolved_s = _KEEPS_RESOLVED_S

    def __init__(
        self, common: Common, poster: Poster, resend_s: float, labels: Mapping[str, str]
    ) -> None:
        super().__init__(common, poster)
        self.resend_s = resend_s
        self._labels = dict(labels)
        self._latest: dict[tuple[tuple[str, str], ...], tuple[int, str]] = {}

    def send(self, alert: Alert, now_ns: int) -> None:
        """Say it, unless it is an old one of whom a newer one says that it goes on."""
        labels = self._identity(alert)
        key = tuple(sorted(labels.items()))
        latest = self._latest.get(key, (0, ""))
        mine = (alert.started_ns, alert.id)
        if alert.state is State.RESOLVED and latest > mine:
            return  # to Alertmanager both are one alert, and this would end the newer one
        self._poster.post([self._body(alert, labels, now_ns)], now_ns)
        self._latest.pop(key, None)
        self._latest[key] = max(mine, latest)
        while len(self._latest) > _IDENTITIES_MAX:
            self._latest.pop(next(iter(self._latest)))

    def _identity(self, alert: Alert) -> dict[str, str]:
        own = {"alertname": alert.name, "severity": str(alert.severity), **alert.labels}
        named = {label_name(name): value for name, value in {**self._labels, **own}.items()}
        return {name: value for name, value in named.items() if value}

    def _body(self, alert: Alert, labels: dict[str, str], now_ns: int) -> dict[str, Any]:
        assert self.resend_s is not None
        if alert.state is State.RESOLVED:
            ends_ns = max(changed_ns(alert), alert.started_ns)
        else:
            ends_ns = max(now_ns, alert.started_ns) + int(_RESENDS * self.resend_s * 1e9)
        annotations = {
            "summary": alert.summary,
            "description": alert.text,
            "decision_id": alert.id,
            **{label_name(name): word(value) for name, value in alert.values.items()},
            **{_LINKS.get(name, label_name(name)): url for name, url in alert.links.items()},
        }
        body = {
            "labels": labels,
            "annotations": annotations,
            "startsAt": rfc3339(alert.started_ns),
            "endsAt": rfc3339(ends_ns),
        }
        if alert.links:
            body["generatorURL"] = alert.links.get("dashboard", next(iter(alert.links.values())))
        return body


def label_name(name: str) -> str:
    """A name as Prometheus allows it."""
    made = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    return f"_{made}" if made[:1].isdigit() or not made else made


def make(
    common: Common,
    *,
    url: str,
    headers: Mapping[str, str],
    resend_s: float,
    labels: Mapping[str, str],
) -> AlertmanagerChannel:
    """The channel of an Alertmanager at ``url`` (without ``/api/v2``)."""
    place = f"{url.rstrip('/')}/api/v2/alerts"
    poster = Poster(place, timeout_s=common.timeout_s, headers=headers)
    return AlertmanagerChannel(common, poster, resend_s, labels)
