"""Alerts in the log of the process."""

from __future__ import annotations

import logging

from exporters.alerts.alert import Alert, Severity, State
from exporters.alerts.base import BaseChannel, Common, facts, one_line, title

logger = logging.getLogger(__name__)

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}


class LogChannel(BaseChannel):
    """One line an alert and state."""

    kind = "log"

    def send(self, alert: Alert, now_ns: int) -> None:
        """Write the line."""
        level = logging.INFO if alert.state is State.RESOLVED else _LEVELS[alert.severity]
        known = ", ".join(f"{name}={one_line(value)}" for name, value in facts(alert))
        logger.log(level, "%s — %s (%s)", title(alert), one_line(alert.text), known)


def make(common: Common) -> LogChannel:
    """The channel."""
    return LogChannel(common)
