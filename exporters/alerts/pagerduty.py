"""PagerDuty, Events API v2: an incident is triggered, and resolved by the same ``dedup_key``.

(https://developer.pagerduty.com/docs/send-alert-event)
"""

from __future__ import annotations

import hashlib
import socket
from typing import Any

from exporters.alerts.alert import Alert, Severity, State
from exporters.alerts.base import Common, changed_ns, clip, one_line, rfc3339
from exporters.alerts.http import HttpChannel, Poster

#: Its limits, in characters.
_SUMMARY_MAX, _KEY_MAX, _TEXT_MAX = 1024, 255, 20_000
_SEVERITIES = {
    Severity.INFO: "info",
    Severity.WARNING: "warning",
    Severity.CRITICAL: "critical",
}


class PagerDutyChannel(HttpChannel):
    """One incident an alert."""

    kind = "pagerduty"
    ends_tests = True

    def __init__(self, common: Common, poster: Poster, routing_key: str) -> None:
        super().__init__(common, poster)
        self._routing_key = routing_key
        self._host = socket.gethostname()

    def send(self, alert: Alert, now_ns: int) -> None:
        """Trigger or resolve."""
        is_firing = alert.state is State.FIRING
        body: dict[str, Any] = {
            "routing_key": self._routing_key,
            "event_action": "trigger" if is_firing else "resolve",
            "dedup_key": dedup_key(alert.id),
            "payload": {
                "summary": clip(one_line(alert.summary), _SUMMARY_MAX),
                "source": alert.labels.get("model") or self._host,
                "severity": _SEVERITIES[alert.severity],
                "timestamp": rfc3339(changed_ns(alert)),
                "component": alert.labels.get("new", ""),
                "group": alert.labels.get("model", ""),
                "class": alert.name,
                "custom_details": {
                    "text": clip(alert.text, _TEXT_MAX),
                    "decision_id": alert.id,
                    **alert.labels,
                    **alert.values,
                },
            },
        }
        if is_firing:
            body["client"] = "model-sidecar"
            body["links"] = [{"href": url, "text": name} for name, url in alert.links.items()]
        self._poster.post(body, now_ns)


def dedup_key(alert_id: str) -> str:
    """The id; one that is too long by its beginning and a hash."""
    if len(alert_id) <= _KEY_MAX:
        return alert_id
    return f"{alert_id[: _KEY_MAX - 65]}-{hashlib.sha256(alert_id.encode()).hexdigest()}"


def make(common: Common, *, routing_key: str, url: str) -> PagerDutyChannel:
    """The channel of a service's integration."""
    # 202 alone: a 200 comes from somebody in between.
    poster = Poster(url, timeout_s=common.timeout_s, secrets=[routing_key], accepted=[202])
    return PagerDutyChannel(common, poster, routing_key)
