"""The part of the configuration that says who is told when something is decided."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sidecar.config_rollback import HttpUrl
from sidecar.config_runtime import Settings
from sidecar.config_secret import Secret

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Headers = Annotated[
    dict[str, Secret], Field(default_factory=dict, description="`${NAME}`: environment.")
]


class ChannelConfig(Settings):
    """What every channel has."""

    name: str | None = Field(
        None, pattern=_NAME, max_length=100, description="Default: its kind. Unique."
    )
    least: Literal["info", "warning", "critical"] = Field(
        "info", description="The least severity that it is told."
    )
    timeout_s: float = Field(10, gt=0, le=300, description="Of one attempt.")


class LogChannelConfig(ChannelConfig):
    """The monitor's log."""

    kind: Literal["log"]


class AlertmanagerConfig(ChannelConfig):
    """Prometheus Alertmanager, API v2."""

    kind: Literal["alertmanager"]
    url: HttpUrl = Field(description="Without /api/v2; several monitors may tell the same one.")
    headers: Headers
    resend_s: float = Field(60, ge=1, le=3600, description="It forgets what is not said again.")
    labels: dict[str, str] = Field(default_factory=dict, description="Added to each alert's.")


class PagerDutyConfig(ChannelConfig):
    """PagerDuty, Events API v2."""

    kind: Literal["pagerduty"]
    routing_key: Secret = Field(description="Of the service's integration.")
    url: HttpUrl = Field("https://events.pagerduty.com/v2/enqueue", description="Of the API.")


class SlackConfig(ChannelConfig):
    """A Slack-compatible incoming webhook (Mattermost, Rocket.Chat, …)."""

    kind: Literal["slack"]
    url: Secret = Field(description="It is a secret: who knows it can post.")


class CloudEventsConfig(ChannelConfig):
    """A webhook that takes CloudEvents 1.0 (structured mode)."""

    kind: Literal["cloudevents"]
    url: HttpUrl = Field(description="It is sent a POST for each.")
    headers: Headers
    source: str = Field("model-sidecar", min_length=1, description="The event's source.")


class EmailConfig(ChannelConfig):
    """E-mail by SMTP."""

    kind: Literal["email"]
    host: str = Field(min_length=1, description="The mail server.")
    port: int = Field(587, ge=1, le=65535, description="Its port.")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="A server without it is not used; none: plain text."
    )
    user: str | None = Field(None, description="Where the server asks who sends.")
    password: Secret | None = Field(None, description="The user's.")
    sender: str = Field(min_length=3, description="From.")
    to: tuple[str, ...] = Field(min_length=1, description="Who gets it.")


class AppriseConfig(ChannelConfig):
    """Whatever Apprise reaches (the extra `apprise`): it tells, and cannot resolve."""

    kind: Literal["apprise"]
    url: Secret = Field(description="As Apprise writes it; it may hold secrets.")


AlertChannel = Annotated[
    LogChannelConfig
    | AlertmanagerConfig
    | PagerDutyConfig
    | SlackConfig
    | CloudEventsConfig
    | EmailConfig
    | AppriseConfig,
    Field(discriminator="kind"),
]


class AlertsConfig(Settings):
    """Where alerts go. Each is kept until its channel has taken it."""

    channels: tuple[AlertChannel, ...] = Field(
        (LogChannelConfig(kind="log"),), max_length=32, description="By `kind`; default: the log."
    )
    first_retry_s: float = Field(1, gt=0, le=3600, description="Then twice as long, and so on.")
    last_retry_s: float = Field(300, gt=0, le=86400, description="The longest pause between two.")
    give_up_after_s: float = Field(
        86400, gt=0, description="Of trying: then a channel is not told of the alert."
    )
    max_waiting: int = Field(
        10_000, ge=1, description="Alerts that wait for one channel; then refused."
    )
    links: dict[str, str] = Field(
        default_factory=dict, description="Name to URL, shown with each alert: dashboard, runbook."
    )
