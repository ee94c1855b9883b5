"""Whatever Apprise reaches. It tells, and cannot resolve: that an alert is over is a message."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from exporters.alerts.alert import Alert, ChannelError, DeliveryError, Severity, State
from exporters.alerts.base import BaseChannel, Common, facts, title

_TYPES = {
    Severity.INFO: "info",
    Severity.WARNING: "warning",
    Severity.CRITICAL: "failure",
}


class AppriseChannel(BaseChannel):
    """One notification an alert and state."""

    kind = "apprise"

    def __init__(self, common: Common, notifier: Any) -> None:
        super().__init__(common)
        self._notifier = notifier

    def send(self, alert: Alert, now_ns: int) -> None:
        """Notify; Apprise says only whether it worked."""
        known = "\n".join(f"{name}: {value}" for name, value in facts(alert))
        links = "\n".join(f"{name}: {url}" for name, url in alert.links.items())
        body = "\n\n".join(part for part in (alert.text, known, links) if part)
        kind = _TYPES[alert.severity] if alert.state is State.FIRING else "success"
        if not self._notifier.notify(body=body, title=title(alert), notify_type=kind):
            message = "Apprise could not deliver it; its own warning in the log says why"
            # It may have been a time-out, after which nobody knows.
            raise DeliveryError(message, maybe_taken=True)


def make(common: Common, *, url: str) -> AppriseChannel:
    """The channel of an Apprise URL.

    Raises:
        ChannelError: Apprise is not installed, or knows no such URL.
    """
    try:
        import apprise
    except ModuleNotFoundError:
        message = "alerts by Apprise need it: install model-sidecar[apprise]"
        raise ChannelError(message) from None
    log = logging.getLogger("apprise")
    # At lower levels it logs URLs and payloads; what it says of a URL it does not know is nothing
    # that we do not say.
    log.setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.INFO)
    notifier = apprise.Apprise(asset=apprise.AppriseAsset(async_mode=False, app_id="model-sidecar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what its plug-ins import
        known = notifier.add(url)
    log.setLevel(logging.WARNING)
    if not known:
        message = "is no URL that Apprise knows (https://github.com/caronc/apprise/wiki)"
        raise ChannelError(message, "url")
    for plugin in notifier:
        plugin.socket_connect_timeout = plugin.socket_read_timeout = common.timeout_s
    return AppriseChannel(common, notifier)
