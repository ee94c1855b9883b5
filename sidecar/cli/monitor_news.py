"""Where ``sidecar watch`` shows what comes: a table that is drawn again, lines, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text
from typing_extensions import override

from sidecar.cli.monitor_follow import Connected, Lost, Missed, News
from sidecar.cli.monitor_screen import event_line, status_group
from sidecar.cli.status import model_lines
from sidecar.clock import SystemClock
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.view import MonitorStatus, VerdictEvent
from sidecar.monitor.view_messages import to_json

#: How old a status may be.
_REFRESH_S = 1.0


class Screen(Protocol):
    """Where news are shown; a context manager."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        ...

    def show(self, news: News | None) -> None:
        """Show what came; ``None``, about once a second, when nothing did."""
        ...


class _Plain(ABC):
    """A screen that only ever writes lines; says that a monitor is gone once, not at each try."""

    def __init__(self) -> None:
        self._is_lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, news: News | None) -> None:
        """Write a line."""
        if news is None or (self._is_lost and isinstance(news, Lost)):
            return
        self._write(news)
        self._is_lost = isinstance(news, Lost)

    @abstractmethod
    def _write(self, news: News) -> None:
        """Write a line about it."""


class JsonLines(_Plain):
    """One object a line, on standard output."""

    @override
    def _write(self, news: News) -> None:
        names = {Connected: "connected", Missed: "missed", Lost: "lost", VerdictEvent: "verdict"}
        print(json.dumps({"type": names[type(news)], **to_json(news)}), flush=True)


class Lines(_Plain):
    """Verdicts on standard output; what happens to the connection on standard error."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    @override
    def _write(self, news: News) -> None:
        if isinstance(news, VerdictEvent):
            # Not by rich: a line stays a line, whatever the width, for it may be searched.
            print(event_line(news).plain, flush=True)
        else:
            print(_sentence(news, self._address, again=self._is_lost), file=sys.stderr, flush=True)


class LiveTable:
    """The status, drawn again each second; verdicts are lines above it, and stay when it ends."""

    def __init__(self, console: Console, client: MonitorClient, status: MonitorStatus) -> None:
        self._client = client
        self._status = status
        self._asked_at = time.monotonic()
        self._lost = self._old = ""
        self._lines = model_lines(client)
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, news: News | None) -> None:
        """Write what came, ask for the status when it is old, and draw."""
        if isinstance(news, VerdictEvent):
            self._live.console.print(event_line(news))
        elif isinstance(news, Missed):
            self._live.console.print(_sentence(news, self._client.address, again=False))
        elif isinstance(news, Lost):
            self._lost = _sentence(news, self._client.address, again=False)
        elif isinstance(news, Connected):
            self._lost = ""
        if time.monotonic() - self._asked_at >= _REFRESH_S:
            self._ask()
        self._draw()

    def _ask(self) -> None:
        try:
            self._status = self._client.status(timeout_s=_REFRESH_S)
            self._lines = model_lines(self._client)
            self._old = ""
        except MonitorCallError:
            self._old = "no answer: what is shown is old"
        self._asked_at = time.monotonic()

    def _draw(self) -> None:
        parts: list[RenderableType] = [
            Text(remark, "bold yellow") for remark in (self._lost, self._old) if remark
        ]
        parts.append(status_group(self._status, SystemClock().now_ns(), self._lines))
        self._live.update(Group(*parts), refresh=True)


def _sentence(news: Connected | Missed | Lost, address: str, *, again: bool) -> str:
    if isinstance(news, Connected):
        text = f"{address} is back" if again else f"watching {address}"
        return text + (
            " with another store: verdicts are counted anew" if news.counted_anew else ""
        )
    if isinstance(news, Missed):
        return f"{news.count:,} verdicts in between are no longer kept"
    return f"{news.reason}; trying again"
