"""Channels by their kind. A new one is a file here and a line in ``BUILTIN``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from exporters.alerts.alert import Channel, ChannelError
from exporters.alerts.base import Common

#: Kind → the module whose ``make`` makes it.
BUILTIN: Mapping[str, str] = {
    "log": "exporters.alerts.log",
    "alertmanager": "exporters.alerts.alertmanager",
    "pagerduty": "exporters.alerts.pagerduty",
    "slack": "exporters.alerts.slack",
    "cloudevents": "exporters.alerts.cloudevents",
    "email": "exporters.alerts.email",
    "apprise": "exporters.alerts.apprise",
}


def build(kind: str, common: Common, settings: Mapping[str, Any]) -> Channel:
    """Make a channel; it connects to nothing yet.

    Args:
        settings: what its kind has beside ``common``, secrets as plain text.

    Raises:
        ChannelError: there is no such kind, its library is not installed, a setting is wrong.
    """
    if kind not in BUILTIN:
        message = f"{kind!r} is no channel; there is {', '.join(BUILTIN)}"
        raise ChannelError(message, "kind")
    made: Channel = importlib.import_module(BUILTIN[kind]).make(common, **settings)
    return made
