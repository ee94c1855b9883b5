"""What the connected gateway workers say of their routes, and what their copies answer to a probe.

Told over the channel (``routed_frames.py``), so that it is the same where a supervisor started
everything and where gateway and monitor are containers of their own.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sidecar.monitor.channel_frames import PROBE, PROBED, ROUTED
from sidecar.monitor.routed_frames import (
    ModelRouted,
    ProbeAsked,
    Probed,
    Routed,
    VersionCounts,
    total,
    unpack_probed,
    unpack_routed,
)
from sidecar.monitor.routing import Probe

#: Pages whose workers are gone: their counts stay, or requests would seem to have been unanswered.
_PAGES_MAX = 1024


class Peer(Protocol):
    """A connected worker."""

    worker: int
    pid: int

    def send(self, kind: int, fields: dict[str, Any]) -> None:
        """Say something to it; one that is gone is dropped."""
        ...


@dataclass(slots=True)
class _Waiting:
    """A probe that is under way."""

    asked: dict[int, Peer]
    answers: dict[int, Probed] = field(default_factory=dict)


class WorkerRoutes:
    """For any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._peers: dict[Peer, Routed | None] = {}
        #: By page, not by worker: one that takes another's place goes on in its page.
        self._pages: dict[int, Routed] = {}
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count(1)

    # --- for the channel ------------------------------------------------------------------------

    def joined(self, peer: Peer) -> None:
        """A worker has connected."""
        with self._changed:
            self._peers[peer] = None

    def left(self, peer: Peer) -> None:
        """A connection has ended, of a worker or of somebody who never said who it is."""
        with self._changed:
            self._peers.pop(peer, None)
            for waiting in self._waiting:
                for number, asked in waiting.asked.items():
                    if asked is peer:
                        gone = Probed(number, ok=False, text="it went away meanwhile", ms=0)
                        waiting.answers.setdefault(number, gone)
            self._changed.notify_all()

    def heard(self, peer: Peer, kind: int, fields: Mapping[str, Any]) -> None:
        """A worker has said something.

        Raises:
            ValueError: it cannot be read.
        """
        if kind == ROUTED:
            routed = unpack_routed(fields)
            with self._changed:
                if peer in self._peers:
                    self._peers[peer] = routed
                self._pages.pop(routed.page, None)  # the latest come last
                self._pages[routed.page] = routed
                while len(self._pages) > _PAGES_MAX:
                    del self._pages[next(iter(self._pages))]
                self._changed.notify_all()
        elif kind == PROBED:
            probed = unpack_probed(fields)
            with self._changed:
                for waiting in self._waiting:
                    if waiting.asked.get(probed.id) is peer:
                        waiting.answers[probed.id] = probed
                self._changed.notify_all()

    # --- for the monitor ------------------------------------------------------------------------

    def following(self, model: str) -> list[ModelRouted | None]:
        """How each connected worker routes a model; ``None``: it has not said so yet."""
        with self._changed:
            said = list(self._peers.values())
        return [None if routed is None else routed.models.get(model) for routed in said]

    def problems(self) -> list[str]:
        """What keeps connected workers from following the table, each once."""
        with self._changed:
            said = list(self._peers.values())
        return list(dict.fromkeys(each.problem for each in said if each and each.problem))

    def pages(self, model: str) -> dict[int, Mapping[str, VersionCounts]]:
        """Page → version → what was counted in it, of every worker that was ever heard of."""
        with self._changed:
            return {
                page: routed.models[model].counts
                for page, routed in self._pages.items()
                if model in routed.models
            }

    def is_whole(self, model: str) -> bool:
        """See ``compare_versions.Counted``: these are all gateway workers there are."""
        return True

    def counts(self, model: str) -> dict[str, VersionCounts]:
        """Version → what was counted, over all workers."""
        found: dict[str, list[VersionCounts]] = {}
        for counts in self.pages(model).values():
            for version, each in counts.items():
                found.setdefault(version, []).append(each)
        return {version: total(each) for version, each in found.items()}

    def probe(self, model: str, version: str, timeout_s: float) -> Probe:
        """Have every connected worker run its copy of a version once; waits for all of them."""
        with self._changed:
            asked = {next(self._numbers): peer for peer in self._peers}
            waiting = _Waiting(asked)
            self._waiting.append(waiting)
        try:
            if not asked:
                return Probe(ok=False, text="no gateway worker is connected")
            for number, peer in asked.items():
                question = ProbeAsked(number, model, version, timeout_s)
                peer.send(PROBE, question.packed())
            with self._changed:
                self._changed.wait_for(lambda: len(waiting.answers) == len(asked), timeout_s)
                return _joined(f"{model}:{version}", waiting, timeout_s)
        finally:
            with self._changed:
                self._waiting.remove(waiting)


def _joined(name: str, waiting: _Waiting, timeout_s: float) -> Probe:
    bad: list[str] = []
    slowest = 0.0
    for number, peer in waiting.asked.items():
        answer = waiting.answers.get(number)
        who = f"worker {peer.worker} (pid {peer.pid})"
        if answer is None:
            bad.append(f"{who}: no answer within {timeout_s:g} s")
        elif not answer.ok:
            bad.append(f"{who}: {answer.text}")
        else:
            slowest = max(slowest, answer.ms)
    if bad:
        return Probe(ok=False, text=f"{name} cannot serve: {'; '.join(bad)}")
    count = len(waiting.asked)
    noun = "worker" if count == 1 else "workers"
    return Probe(ok=True, text=f"{name} answers at {count} {noun}, within {slowest:.3g} ms")
