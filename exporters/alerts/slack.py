"""A Slack-compatible incoming webhook: Slack, Mattermost, Rocket.Chat, …

(https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks)
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from exporters.alerts.alert import Alert, Severity, State
from exporters.alerts.base import Common, clip, facts, title
from exporters.alerts.http import HttpChannel, Poster

#: Mattermost's older limit is 4,000 characters, Slack's advice the same.
_TEXT_MAX = 3900
_STORY_MAX = 2500
_FACT_MAX = 300
_MARKS = {
    Severity.INFO: ":information_source:",
    Severity.WARNING: ":warning:",
    Severity.CRITICAL: ":rotating_light:",
}
#: Words that wake everybody where a text is read for mentions.
_MENTION = re.compile(r"@(?=\w)")


class SlackChannel(HttpChannel):
    """One message an alert and state."""

    kind = "slack"

    def send(self, alert: Alert, now_ns: int) -> None:
        """Post the message."""
        self._poster.post({"text": message(alert)}, now_ns)


def escape(text: str) -> str:
    """What others wrote, so that it is text: no link, no command, no mention."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MENTION.sub("@\u200b", text)


def message(alert: Alert) -> str:
    """The message; it has the alert's id, so that two of the same can be told."""
    is_firing = alert.state is State.FIRING
    mark = _MARKS[alert.severity] if is_firing else ":white_check_mark:"
    lines = [f"{mark} *{_fitted(title(alert), _FACT_MAX)}*"]
    if alert.text:
        lines.append(_fitted(alert.text, _STORY_MAX))
    known = [f"• {escape(name)}: {_fitted(text, _FACT_MAX)}" for name, text in facts(alert)]
    links = [f"<{_url(url)}|{escape(name)}>" for name, url in alert.links.items()]
    # Whole lines go where it is too long; a link that is cut in two is none.
    size = sum(map(len, lines)) + len(lines)
    for line in [*known, " · ".join(links)]:
        size += len(line) + 1
        if line and size <= _TEXT_MAX:
            lines.append(line)
    return "\n".join(lines)


def _fitted(text: str, characters: int) -> str:
    """Escaped, at most so many characters long, and no escape cut in two."""
    while len(made := escape(text)) > characters:
        text = clip(text, max(1, min(len(text) - 1, len(text) * characters // len(made))))
    return made


def _url(url: str) -> str:
    return escape(url).replace("|", "%7C").replace("@\u200b", "@")


def make(common: Common, *, url: str) -> SlackChannel:
    """The channel of a webhook. Who knows ``url`` can post."""
    try:
        parts = [part for part in urlsplit(url).path.split("/") if len(part) >= 8]
    except ValueError:  # which the poster says
        parts = []
    return SlackChannel(common, Poster(url, timeout_s=common.timeout_s, secrets=[url, *parts]))
