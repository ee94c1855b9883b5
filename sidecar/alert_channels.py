"""The configured alert channels, made: secrets revealed, and mistakes named by their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from exporters.alerts.alert import Channel, ChannelError, Severity
from exporters.alerts.base import Common
from exporters.alerts.build import build
from sidecar.errors import ConfigError, MissingExtraError, Problem

if TYPE_CHECKING:
    from sidecar.config_alerts import AlertsConfig, ChannelConfig


def make_channels(config: AlertsConfig) -> list[Channel]:
    """Make every channel; none connects to anything yet.

    Raises:
        ConfigError: settings that cannot be, all at once. MissingExtraError: a library is missing.
    """
    made: list[Channel] = []
    problems: list[Problem] = []
    for index, channel in enumerate(config.channels):
        try:
            made.append(_make(channel))
        except ChannelError as error:
            if not error.key:
                raise MissingExtraError(str(error)) from None
            problems.append(Problem(f"alerts.channels[{index}].{error.key}", str(error)))
    if problems:
        raise ConfigError("alerts", problems)
    return made


def channel_name(channel: ChannelConfig) -> str:
    """As it is called: by itself, or its kind."""
    kind: str = channel.kind  # type: ignore[attr-defined]  # every kind of it has one
    return channel.name or kind


def _make(channel: ChannelConfig) -> Channel:
    values = {name: _plain(getattr(channel, name)) for name in type(channel).model_fields}
    del values["name"]
    kind = values.pop("kind")
    common = Common(
        channel_name(channel), Severity(values.pop("least")), values.pop("timeout_s")
    )  # fmt: skip
    return build(kind, common, values)


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value
