"""The leader of three replicas is killed during a regression, again and again.

Real processes (``tests/support/fleets.py``): three ``sidecar serve`` under traffic on one
PostgreSQL, the action a Deployment's rollback at an API server. Each regression ends in a rollback,
which an operator takes back; so begins the next. The leader's monitor is killed (SIGKILL) at a
random moment from the beginning of the regression to after the action.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.tools import Row
from tests.support.fleets import Fleet, until
from tests.support.postgres import postgres_server

#: Of one round of the benchmark; five rounds are the figure.
KILLS = 4
LEASE_S = 5.0
_WITHIN_S = 600.0
#: Different reasons that are told of requests that failed.
_DETAILS_MAX = 3


@dataclass(frozen=True, slots=True)
class Killed:
    """One regression.

    Attributes:
        actions, alerts: effective changes of the Deployment, and decisions that were heard of.
        at: what had happened when the leader was killed.
        leader_s: from the kill to the next leader; ``action_s``: to the action, if it came after.
    """

    actions: int
    alerts: int
    at: str
    leader_s: float
    action_s: float | None


def leader_kills(rounds: int) -> list[Row]:
    """Each round is four kills."""
    rng = random.Random(6)
    with postgres_server() as server, tempfile.TemporaryDirectory() as name:
        url = server.make("leader-kills")
        with Fleet(Path(name), url, lease_s=LEASE_S) as fleet:
            took = _first(fleet)
            killed = [_kill(fleet, rng, took) for _ in range(KILLS * rounds)]
            requests = _requests(fleet)
    return [*_rows(killed), requests]


def _first(fleet: Fleet) -> float:
    """A regression in which nobody is killed: how long it takes to the action, to choose moments
    from."""
    until(fleet.all_rolled_back, "the first is rolled back", within_s=_WITHIN_S)
    changes = len(fleet.changes()) + 1
    fleet.undo(fleet.replicas[0])
    began = time.monotonic()
    until(lambda: len(fleet.changes()) > changes, "the second is acted on", within_s=_WITHIN_S)
    return time.monotonic() - began


def _kill(fleet: Fleet, rng: random.Random, took_s: float) -> Killed:
    changes, told = len(fleet.changes()) + 1, fleet.firing()  # the undoing is a change, too
    fleet.undo(rng.choice(fleet.replicas))
    at_s = time.monotonic() + rng.uniform(0, 1.3 * took_s)
    until(lambda: time.monotonic() >= at_s, "the moment comes", within_s=_WITHIN_S)
    pid, fence = until(lambda: (found := fleet.leader())[0] and found, "somebody leads")
    at = _so_far(fleet, changes)
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    until(lambda: fleet.leader()[1] > fence, "another one leads", within_s=_WITHIN_S)
    leader_s = time.monotonic() - killed_s
    action_s = None
    if at != "acted":
        until(lambda: len(fleet.changes()) > changes, "it acts", within_s=_WITHIN_S)
        action_s = time.monotonic() - killed_s
    until(fleet.all_rolled_back, "all show it", within_s=_WITHIN_S)
    until(lambda: fleet.firing() > told, "it is told", within_s=_WITHIN_S)
    return Killed(len(fleet.changes()) - changes, fleet.firing() - told, at, leader_s, action_s)


def _so_far(fleet: Fleet, changes: int) -> str:
    if len(fleet.changes()) > changes:
        return "acted"
    states = {view.state for one in fleet.replicas if (view := one.view())}
    return "decided" if "regressed" in states else "not decided"


def _requests(fleet: Fleet) -> Row:
    failed, answered, known = sum(fleet.failed), sum(fleet.answered), list(fleet.failures)
    said = [f"{code}: {n}" for code, n in Counter(one.code for one in known).most_common()]
    if known:
        longest = max(known, key=lambda one: one.took_s)
        where = f"at replica {longest.replica}, which had answered {longest.answered:,}"
        said.append(f"the longest took {longest.took_s:.1f} s, {where}")
        said += sorted({one.details for one in known})[:_DETAILS_MAX]
    return Row(
        "requests that failed meanwhile, sent to all three", "0",
        f"{failed} of {failed + answered:,}", failed == 0, "; ".join(said),
    )  # fmt: skip


def _rows(killed: list[Killed]) -> list[Row]:
    actions, alerts = [one.actions for one in killed], [one.alerts for one in killed]
    at = [one.at for one in killed]
    moments = ", ".join(f"{what}: {at.count(what)}" for what in ("not decided", "decided", "acted"))
    exact = all(n == 1 for n in actions) and all(n >= 1 for n in alerts)
    leaders = [one.leader_s for one in killed]
    acted = [one.action_s for one in killed if one.action_s is not None]
    return [
        Row(
            f"the leader killed {len(killed)} times, each in a regression of its own",
            "1 action each, ≥ 1 alert", f"{actions.count(1)} with 1 action", exact,
            f"actions {sorted(set(actions))}, alerts {sorted(set(alerts))}; killed when {moments}",
        ),
        Row(
            "from the kill to the next leader, s", "–", f"{np.median(leaders):.1f}", True,
            f"{min(leaders):.1f} to {max(leaders):.1f}; lease {LEASE_S:g} s",
        ),
        Row(
            "from the kill to the action, where it came after, s", "–",
            f"{np.median(acted):.1f}" if acted else "none", True,
            f"{len(acted)} of {len(killed)}" + (f", at most {max(acted):.1f}" if acted else ""),
        ),
    ]  # fmt: skip
