"""What ``status`` shows of telemetry: one line, and one for each signal that goes anywhere."""

from __future__ import annotations

from rich.text import Text

from sidecar.monitor.telemetry_view import SignalStatus, TelemetryStatus

_STYLES = {"ok": "green", "starting": "yellow", "stopped": "yellow"}
_STATES = {
    "ok": "ok",
    "failing": "a backend takes nothing",
    "failed": "nothing can be told",
}


def telemetry_text(status: TelemetryStatus) -> Text:
    """Draw it."""
    text = Text(_STATES.get(status.state, status.state), _STYLES.get(status.state, "bold red"))
    text.append(f", {status.prometheus}" if status.prometheus else "", "default")
    if status.message:
        text.append(f"\n{status.message}", "yellow")
    for signal in status.signals:
        text.append("\n")
        text.append_text(_signal(signal))
    return text


def _signal(signal: SignalStatus) -> Text:
    place = " → ".join(part for part in (signal.exporter, signal.endpoint) if part)
    line = Text(f"{signal.signal}: {place}", "default" if signal.up else "bold red")
    if not signal.up:
        line.append(" is down")
    if signal.exporter != "prometheus":  # of what is scraped nobody counts
        line.append(f", {signal.exported:,} sent", "default")
    if signal.waiting:
        line.append(f", {signal.waiting:,} waiting", "default")
    for reason, count in sorted(signal.dropped.items()):
        line.append(f", {count:,} dropped ({reason})", "yellow")
    if signal.error:
        line.append(f"\n  {signal.error}", "yellow")
    return line
