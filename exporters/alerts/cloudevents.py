"""CloudEvents 1.0 over HTTP, structured mode, for whoever takes webhooks.

(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporters.alerts.alert import Alert
from exporters.alerts.base import Common, changed_ns, event_id, rfc3339
from exporters.alerts.http import HttpChannel, Poster

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"


class CloudEventsChannel(HttpChannel):
    """One event an alert and state."""

    kind = "cloudevents"

    def __init__(self, common: Common, poster: Poster, source: str) -> None:
        super().__init__(common, poster)
        self._source = source

    def send(self, alert: Alert, now_ns: int) -> None:
        """Post the event."""
        self._poster.post(event(alert, self._source), now_ns, CONTENT_TYPE)


def event(alert: Alert, source: str) -> dict[str, Any]:
    """The event: ``source`` and ``id`` together are the same whenever it is told again."""
    return {
        "specversion": "1.0",
        "id": event_id(alert),
        "source": source,
        "type": f"model_sidecar.alert.{alert.state}",
        "subject": alert.labels.get("model") or alert.name,
        "time": rfc3339(changed_ns(alert)),
        "datacontenttype": "application/json",
        "data": {
            "id": alert.id,
            "name": alert.name,
            "state": str(alert.state),
            "severity": str(alert.severity),
            "summary": alert.summary,
            "text": alert.text,
            "started": rfc3339(alert.started_ns),
            "ended": rfc3339(alert.ended_ns) if alert.ended_ns else None,
            "labels": alert.labels,
            "values": alert.values,
            "links": alert.links,
        },
    }


def make(
    common: Common, *, url: str, headers: Mapping[str, str], source: str
) -> CloudEventsChannel:
    """The channel of a webhook."""
    poster = Poster(url, timeout_s=common.timeout_s, headers=headers)
    return CloudEventsChannel(common, poster, source)
