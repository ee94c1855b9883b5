"""What ``check-config`` says of alerts: where they go, and what is often not meant."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sidecar.alert_channels import channel_name, make_channels
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from sidecar.config import SidecarConfig

_LOCAL = {"localhost", "127.0.0.1", "::1"}


def alert_lines(config: SidecarConfig) -> list[str]:
    """Each channel with where it goes; of a URL that is a secret the host alone."""
    lines = []
    for channel in config.alerts.channels:
        name, kind = channel_name(channel), str(channel.kind)
        called = name if name == kind else f"{name}: {kind}"
        least = "" if channel.least == "info" else f", from {channel.least}"
        place = _place(channel)
        lines.append(f"{called}{f' → {place}' if place else ''}{least}")
    return lines


def _place(channel: Any) -> str:
    if channel.kind == "email":
        return f"{', '.join(channel.to)} by {channel.host}:{channel.port}"
    if channel.kind == "slack":
        return _host(channel.url.get_secret_value())
    if channel.kind == "apprise":
        return f"{channel.url.get_secret_value().partition('://')[0]}://…"
    if channel.kind in {"alertmanager", "pagerduty", "cloudevents"}:
        return _host(channel.url)  # there may be a password in front of it
    return ""


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}"
    except ValueError:
        return "an address that is none"


def _is_local(url: str) -> bool:
    try:
        return urlsplit(url).hostname in _LOCAL
    except ValueError:
        return True  # it is none, which is said already


def alert_notes(config: SidecarConfig) -> list[str]:
    """Channels that will not work, or not safely."""
    found = []
    kinds = {channel.kind for channel in config.alerts.channels}
    if config.monitored and "apprise" in kinds and find_spec("apprise") is None:
        found.append("no alert goes by Apprise as it is installed here: install "
                     "model-sidecar[apprise]")  # fmt: skip
    elif config.monitored and (kinds - {"log", "email"}) and find_spec("httpx") is None:
        found.append("alerts need httpx: install model-sidecar[monitor]")
    else:
        try:
            for made in make_channels(config.alerts):
                made.close()
        except ConfigError as error:
            found += [str(problem) for problem in error.problems]
    for index, channel in enumerate(config.alerts.channels):
        path = f"alerts.channels[{index}]"
        if channel.kind == "email":
            if channel.security == "none" and channel.password is not None:
                found.append(f"{path}: the password travels unencrypted: security is none")
            continue
        url = getattr(channel, "url", "")
        text = url.get_secret_value() if hasattr(url, "get_secret_value") else url
        has_secret = channel.kind in {"slack", "pagerduty"} or getattr(channel, "headers", None)
        if has_secret and text.startswith("http://") and not _is_local(text):
            found.append(f"{path}: secrets travel unencrypted: its url is http")
    return found
