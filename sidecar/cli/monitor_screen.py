"""What ``status`` and ``watch`` show of a monitor: tables, and lines for where nothing is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sidecar.cli.telemetry_screen import telemetry_text
from sidecar.monitor.view import (
    CertificateView,
    ModelStatus,
    MonitorStatus,
    OutputStatus,
    PairStatus,
    VerdictEvent,
)
from validators.verdict import Verdict

STYLES: Mapping[Verdict, str] = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.INVALID: "bold red",
}
_NS = 1_000_000_000


def status_group(
    status: MonitorStatus, now_wall_ns: int, lines: Mapping[str, Text] = MappingProxyType({})
) -> Group:
    """Draw everything: the monitor's own state, coverage, and a table a model.

    ``lines``: model → what is said of it beside its pairs (``status.model_lines``).
    """
    parts: list[RenderableType] = [_header(status, now_wall_ns), _coverage(status)]
    for model in status.models:
        parts += [Text(), *_model(model)]
        if model.model in lines:
            parts.append(Text("  ").append_text(lines[model.model]))
    if not status.models:
        loading = "its copies are being loaded: nothing is watched until they are there"
        none = loading if status.state == "starting" else "no model is watched"
        parts.append(Text(none, "yellow"))
    return Group(*parts)


def event_line(event: VerdictEvent) -> Text:
    """Draw one event: when, what, which verdict, and the sentence that says why."""
    line = Text(f"{clock_time(event.wall_ns)}  ")
    line.append(f"{event.verdict:<12}", STYLES[event.verdict])
    line.append(f"  {subject(event)}  ", "bold")
    line.append(event.text)
    return line


def subject(event: VerdictEvent) -> str:
    """What an event is about: ``digits:2/int8 scores``."""
    return f"{event.candidate} {event.output}".strip()


def clock_time(wall_ns: int) -> str:
    """Local time of day, to the second."""
    return datetime.fromtimestamp(wall_ns / _NS, UTC).astimezone().strftime("%H:%M:%S")


# --- the monitor itself ---------------------------------------------------------------------------


def _header(status: MonitorStatus, now_wall_ns: int) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    age = duration((now_wall_ns - status.started_wall_ns) / _NS)
    who = Text(f"{status.state} for {age}", "green" if status.state == "running" else "yellow")
    facts = [f"process {status.pid}" if status.pid else "", status.version, status.config]
    who.append("".join(f", {fact}" for fact in facts if fact), "default")
    grid.add_row("monitor", who)
    child = status.child
    copies = Text(child.state, "green" if child.state in {"ready", "busy"} else "yellow")
    copies.append(f", process {child.pid}" if child.pid else "", "default")
    if child.memory_bytes:
        copies.append(f", {size(child.memory_bytes)}", "default")
    if child.restarts:
        copies.append(f", started anew {times(child.restarts)}", "yellow")
        copies.append(f": {child.message}" if child.message else "", "yellow")
    grid.add_row("copies", copies)
    store = Text("ok" if status.store.ok else "cannot be written", _good(good=status.store.ok))
    store.append(f", {size(status.store.bytes)}, {status.store.path}", "default")
    if status.store.message:
        store.append(f"\n{status.store.message}", "yellow")
    grid.add_row("store", store)
    if status.store.shared:
        grid.add_row("shared", _shared(status))
    fleet = fleet_text(status, now_wall_ns)
    if fleet is not None:
        grid.add_row("fleet", fleet)
    if status.telemetry.state not in {"", "off"}:
        grid.add_row("telemetry", telemetry_text(status.telemetry))
    return grid


def fleet_text(status: MonitorStatus, now_wall_ns: int) -> Text | None:
    """Who decides of all replicas that share a store, since when, and how many live; ``None``:
    none is shared."""
    leader, replicas = status.leader, len(status.store.replicas)
    if not leader.fence and not leader.message:
        return None
    if leader.fence:
        text = Text(
            f"{'this monitor' if leader.here else leader.host} decides",
            "yellow" if leader.message else "green",
        )
        age = duration(max(now_wall_ns - leader.since_wall_ns, 0) / _NS)
        text.append(f", process {leader.pid}, for {age} (term {leader.fence})", "default")
    else:
        text = Text("nobody decides", "bold yellow")
    lives = "1 replica lives" if replicas == 1 else f"{replicas} replicas live"
    text.append(f", {lives}", "default")
    if leader.message:
        text.append(f"\n{leader.message}", "yellow")
    return text


def _shared(status: MonitorStatus) -> Text:
    """The database of all replicas, and who of them is alive."""
    store = status.store
    shown = Text("ok" if store.shared_ok else "not reached", _good(good=store.shared_ok))
    alive = ", ".join(name[:8] for name in store.replicas) or "none is known to be"
    shown.append(f", {store.shared}, {len(store.replicas)} alive: ", "default")
    shown.append(alive, "default")
    if store.shared_message:
        shown.append(f"\n{store.shared_message}", "yellow")
    return shown


def _coverage(status: MonitorStatus) -> RenderableType:
    seen = status.coverage
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    share = f" ({percent(seen.compared / seen.sampled)})" if seen.sampled else ""
    flow = Text(
        f"{seen.sampled:,} sampled → {seen.received:,} received → {seen.compared:,} compared{share}"
    )
    if seen.set_aside:
        flow.append(f", {seen.set_aside:,} set aside", "yellow")
    grid.add_row("coverage", flow)
    for name, reasons, style in (
        ("dropped", seen.dropped, "yellow"), ("not mirrored", seen.not_mirrored, "default"),
    ):  # fmt: skip
        counted = [f"{reason} {count:,}" for reason, count in sorted(reasons.items()) if count]
        if counted:
            grid.add_row(name, Text(", ".join(counted), style))
    pressed = seen.rate < seen.rate_wanted
    budget = Text(f"{percent(seen.rate)} of requests", "yellow" if pressed else "default")
    budget.append(f" ({percent(seen.rate_wanted)} wanted)" if pressed else "", "yellow")
    budget.append(f", {percent(seen.cpu_share_used)} of the processor", "default")
    budget.append(f" (at most {percent(seen.cpu_share)})" if seen.cpu_share else "", "default")
    budget.append(f", {size(seen.queue_bytes)} waiting", "default")
    grid.add_row("sampling", budget)
    return grid


# --- models ---------------------------------------------------------------------------------------


def _model(model: ModelStatus) -> Iterable[RenderableType]:
    title = Text(model.model, "bold")
    title.append(f"  reference {model.reference or 'none'}", "default")
    title.append(f", {model.retention_class}" if model.retention_class else "", "default")
    yield title
    if model.message:
        yield Text(f"  {model.message}", "yellow")
    judged = [pair for pair in model.pairs if pair.purpose == "certificate"]
    if judged:
        yield _certificates(judged)
    others = [pair for pair in model.pairs if pair.purpose != "certificate"]
    if others:
        yield _versions(others)
    outputs = [output for pair in model.pairs for output in pair.outputs]
    # Of several candidates the same was inferred as a rule: said once.
    for name, inferred in dict.fromkeys((one.output, one.inferred) for one in outputs):
        if inferred:
            yield Text(f"  {name}: {inferred}", "dim")


def _certificates(pairs: Sequence[PairStatus]) -> Table:
    table = _table("candidate\noutput", "compared\ninvalid", "disagree\nbounds", "noise\nits own")
    table.add_column("verdict\ncertificate")
    for pair in pairs:
        name = Text(pair.candidate, "bold")
        table.add_row(name, f"{pair.compared:,}", "", "", _verdict(pair))
        for output in pair.outputs:
            table.add_row(*_output(output))
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _verdict(pair: PairStatus) -> Text:
    if pair.blocked:
        return Text(f"not compared: {pair.blocked}", "bold red")
    if pair.verdict is None:
        return Text()
    cell = Text(pair.verdict, STYLES[pair.verdict])
    if not pair.outputs:  # which is INVALID, but nobody's fault yet
        cell = Text("nothing compared yet", "dim")
    if pair.purpose == "certificate":
        for side, name in (("candidate", "it"), ("baseline", pair.baseline)):
            if count := pair.errors.get(side, 0):
                cell.append(f"\n{name} failed {times(count)}", "yellow")
    return cell


def _output(output: OutputStatus) -> tuple[RenderableType, ...]:
    name = f"  {output.output or '(whole answer)'}\n  {output.kind}"
    requests = f"{output.requests:,}" + (f"\n{output.invalid:,}" if output.invalid else "")
    if output.rate is None:
        rate = "–"
    else:
        lower, upper = (percent(bound).removesuffix(" %") for bound in (output.lower, output.upper))
        rate = f"{percent(output.rate)}\n{lower}–{upper} %"
    noise = "–"
    if output.noise is not None and output.noise.requests:
        own = max(output.noise.excess_upper, 0.0)
        noise = f"{percent(output.noise.rate)}\n≤ {percent(own)}"
    return name, requests, rate, noise, _certificate(output.certificate)


def _certificate(certificate: CertificateView | None) -> Text:
    if certificate is None:
        return Text("nothing compared yet", "dim")
    cell = Text(certificate.verdict, STYLES[certificate.verdict])
    if certificate.certified_wall_ns is not None:
        cell.append(f" since {clock_time(certificate.certified_wall_ns)}", "default")
    elif certificate.requests_to_go is not None:
        cell.append(f", {certificate.requests_to_go:,} to go", "default")
    cell.append(f"\n{claim(certificate)}\n{evidence(certificate)}", "default")
    return cell


def claim(certificate: CertificateView) -> str:
    """What is known for sure: ``at most 0.91 % at 95 %``."""
    return f"at most {percent(certificate.bound)} at {percent(1 - certificate.alpha)}"


def evidence(certificate: CertificateView) -> str:
    """What it is asked to be, and what it rests on: ``limit 1 %, n 500, k 0.5``."""
    return f"limit {percent(certificate.limit)}, n {certificate.n:,}, k {certificate.k:.4g}"


def _versions(pairs: Sequence[PairStatus]) -> Table:
    table = _table("version\nprevious", "pairs", "errors", "p50 ms", "p99 ms")
    table.add_column("answers that changed")
    for pair in pairs:
        table.add_row(
            f"{pair.candidate}\n{pair.baseline}",
            f"{pair.compared:,}",
            _both(pair.errors, "{:,}"),
            _both(pair.p50_ms, "{:.2f}"),
            _both(pair.p99_ms, "{:.2f}"),
            _verdict(pair) if pair.blocked else _changed(pair),
        )
    return table


def _changed(pair: PairStatus) -> str:
    rates = {output.output: output.rate for output in pair.outputs if output.rate is not None}
    return "\n".join(f"{name or '(whole answer)'} {percent(rate)}" for name, rate in rates.items())


def _both(values: Mapping[str, float], form: str) -> str:
    sides = ("candidate", "baseline")
    return "\n".join(form.format(values[side]) if side in values else "–" for side in sides)


# --- words ----------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """Three digits and the sign: ``0.0912 %``."""
    return f"{100 * share:.3g} %"


def size(count: int) -> str:
    """Bytes for people: ``1.2 MiB``."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """The two largest units: ``3 h 12 min``."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def times(count: int) -> str:
    """``once``, ``twice``, ``3 times``."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def _good(*, good: bool) -> str:
    return "green" if good else "bold red"
