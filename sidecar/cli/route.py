"""``sidecar route`` and ``sidecar compare``: show, change and compare what versions answer.

Exit codes: 0 when it is shown or done; 1 when it was refused, or a monitor does not answer.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecar.cli.verdicts import console_for
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from sidecar.monitor.client import MonitorClient
    from sidecar.monitor.routing import RouteView
    from sidecar.monitor.view_rollback import CompareSide, RollbackView

DONE, REFUSED = 0, 1
#: States of a pair in which a new version is not promoted without being told to.
_NOT_YET = frozenset({"insufficient", "suspect", "regressed", "rolled_back", "blocked"})
#: Of a reason in the table; `--json` has all of it.
_WHY_MAX = 100


@dataclass(frozen=True, slots=True)
class Change:
    """What a change is made with."""

    address: str
    model: str
    reason: str
    expect: int | None
    token: str
    timeout_s: float
    as_json: bool

    def client(self) -> MonitorClient:
        """A connection to the monitor."""
        from sidecar.monitor.client import MonitorClient

        return MonitorClient(self.address, timeout_s=self.timeout_s)


def show(address: str, model: str, *, timeout_s: float, as_json: bool) -> int:
    """Show the route of one model, or (empty) of all; return the exit code.

    Raises:
        SidecarError: no monitor answers there, or it has no such model.
    """
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=timeout_s) as client:
        routes = client.routes(model)
    if as_json:
        _print_json(routes)
    else:
        _show(routes)
    return DONE


def set_shares(change: Change, shares: list[str]) -> int:
    """Set a route; return the exit code.

    Raises:
        SidecarError: a share cannot be read; the monitor refuses it, or does not answer.
    """
    weights = parse_shares(shares)
    with change.client() as client:
        view = client.set_route(
            change.model, weights, reason=change.reason, expected=change.expect,
            token=change.token,
        )  # fmt: skip
    _done(view, as_json=change.as_json)
    return DONE


def promote(change: Change, version: str, *, force: bool) -> int:
    """Route everything to one version; return the exit code.

    Raises:
        SidecarError: the monitor refuses it, or does not answer.
    """
    with change.client() as client:
        [before] = client.routes(change.model)
        pairs = client.judged(change.model)
        pair = _about(pairs or [], version)
        held = pair is not None and pair.state in _NOT_YET
        if not change.as_json:
            _show_pair(version, pair, known=pairs is not None)
        if held and not force:
            assert pair is not None
            text = f"version {version} is not promoted: it is {pair.state} ({pair.text}); "
            raise SidecarError(text + "with --force it is promoted all the same")
        view = client.set_route(
            change.model, {version: 1.0},
            reason=change.reason or ("promoted, by force" if held else "promoted"),
            # What was decided on is what was just shown.
            expected=before.revision if change.expect is None else change.expect,
            token=change.token,
        )  # fmt: skip
    _done(view, as_json=change.as_json)
    return DONE


def compare(
    address: str, model: str, first: str, second: str, *, alpha: float, timeout_s: float,
    as_json: bool,
) -> int:  # fmt: skip
    """Show how two versions compare; return the exit code.

    Raises:
        SidecarError: no monitor answers there, or there are no two such versions.
    """
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=timeout_s) as client:
        view = client.compare(model, first, second, alpha)
    if as_json:
        _print_json(view)
        return DONE
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    names = [view.metrics[0].first.version, view.metrics[0].second.version] if view.metrics else []
    for title in (view.model, *(f"version {name}" for name in names), "difference"):
        table.add_column(escape(title))
    for one in view.metrics:
        difference = _range(one.difference_lower, one.difference_upper, one.unit)
        table.add_row(
            escape(one.metric), _side(one.first, one.unit), _side(one.second, one.unit), difference
        )
    console = console_for()
    console.print(table)
    for one in view.metrics:
        console.print(escape(one.text))
    console.print(escape(view.text))
    return DONE


def parse_shares(words: list[str]) -> dict[str, float]:
    """``["2=0.9", "3=0.1"]`` as version → weight.

    Raises:
        SidecarError: one of them is no such thing, or a version is given twice.
    """
    shares: dict[str, float] = {}
    for word in words:
        version, equals, text = word.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not equals or not version or not 0 <= weight < math.inf:
            message = f"{word!r} is no share: write VERSION=WEIGHT, 2=0.9 say"
            raise SidecarError(message)
        if version in shares:
            message = f"version {version} is given twice"
            raise SidecarError(message)
        shares[version] = weight
    return shares


# --- showing --------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    from sidecar.monitor.view_messages import to_json

    values = [to_json(one) for one in value] if isinstance(value, list) else to_json(value)
    print(json.dumps(values, indent=2))


def _show(routes: list[RouteView]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from sidecar.clock import SystemClock

    table = Table(box=None, pad_edge=False)
    for title in ("model", "shares", "revision", "followed by", "since", "why"):
        table.add_column(title)
    now_ns = SystemClock().now_ns()
    for route in routes:
        followed = f"{route.applied} of {route.workers} workers"
        if route.replicas:
            followed += f", {route.replicas_applied} of {route.replicas} replicas"
        behind = route.applied < route.workers or route.replicas_applied < route.replicas
        colour = "yellow" if behind else "green"
        table.add_row(
            escape(route.model), escape(_words(route)), str(route.revision),
            f"[{colour}]{followed}", _ago(route.changed_wall_ns, now_ns), escape(_why(route)),
        )  # fmt: skip
    console = console_for()
    console.print(table)
    for route in routes:
        if route.sticky:
            console.print(escape(f"{route.model}: sticky by {route.sticky}"))
        if route.candidates:
            waiting = ", ".join(route.candidates)
            console.print(escape(f"{route.model}: candidates, which answer nobody yet: {waiting}"))
        if route.problem:
            console.print(f"[yellow]{escape(f'{route.model}: {route.problem}')}")


def _words(route: RouteView) -> str:
    """The largest share first. A map of protobuf has no order of its own."""
    shares = sorted(route.shares.items(), key=lambda one: (-one[1], len(one[0]), one[0]))
    return " ".join(f"{version}={share:.4g}" for version, share in shares)


def _why(route: RouteView) -> str:
    why = f"{route.by}: {route.reason}" if route.reason else route.by
    return why if len(why) <= _WHY_MAX else f"{why[:_WHY_MAX]} …"


def _ago(wall_ns: int, now_ns: int) -> str:
    if not wall_ns:
        return "–"
    seconds = max(0, now_ns - wall_ns) / 1e9
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _done(view: RouteView, *, as_json: bool) -> None:
    if as_json:
        _print_json(view)
    else:
        _show([view])


def _about(pairs: list[RollbackView], version: str) -> RollbackView | None:
    """The pair in which a version is the new one."""
    for pair in pairs:
        if pair.new.rpartition(":")[2].partition("/")[0] == version:
            return pair
    return None


def _show_pair(version: str, pair: RollbackView | None, *, known: bool) -> None:
    from rich.markup import escape

    console = console_for()
    if pair is None:
        why = "it is the new one of no pair" if known else "this monitor checks no versions"
        console.print(escape(f"nothing is known of version {version}: {why}"))
        return
    colour = "green" if pair.state == "ok" else "yellow"
    console.print(
        f"{escape(pair.new)} beside {escape(pair.previous)}: "
        f"[{colour}]{escape(pair.state)}[/{colour}] {escape(pair.text)}"
    )
    for harm in pair.metrics:
        console.print(escape(f"  {harm.metric}: {harm.text or f'{harm.pairs} pairs'}"))


def _side(side: CompareSide, unit: str) -> str:
    if math.isnan(side.value):
        return "–"
    return f"{_number(side.value, unit)} ({_range(side.lower, side.upper, unit)}, n {side.n})"


def _range(lower: float, upper: float, unit: str) -> str:
    return f"{_number(lower, unit)} … {_number(upper, unit)}"


def _number(value: float, unit: str) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{100 * value:.3g} %" if unit == "1" else f"{value:.4g} {unit}"
