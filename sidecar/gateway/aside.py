"""What a worker says to the monitor beside exchanges and telemetry: its routes, answers to probes.

``tap.py`` owns the connection; here is what to say. It is little: how it routes, once a second
where anything has changed, and at once when the route has.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import add
from time import monotonic
from typing import TYPE_CHECKING, Any

from sidecar.gateway.pages import OTHER, Page, sum_calls, sum_slot
from sidecar.gateway.prober import Prober
from sidecar.monitor.channel_frames import PROBE, PROBED, ROUTED
from sidecar.monitor.routed_frames import (
    WIDTH,
    ModelRouted,
    Probed,
    Routed,
    VersionCounts,
    unpack_probe,
)

if TYPE_CHECKING:
    from sidecar.gateway.registry import Entry, Registry
    from sidecar.gateway.route_follower import RouteFollower

logger = logging.getLogger(__name__)

_TELL_S = 1.0
#: Answers to probes that wait for the connection; they are few, and nobody asks that often.
_ANSWERS_MAX = 64
#: How a request ends that the server failed: what the client got wrong, or gave up, is left out.
FAULTS = frozenset(
    {
        "OverloadedError", "UnavailableError", "DeadlineError", "ExecutionError", "UpstreamError",
        OTHER,
    }
)  # fmt: skip

_Frame = tuple[int, Mapping[str, object], Sequence[bytes]]


class Aside:
    """One worker's.

    Args:
        follower: of the route table; ``None``: nobody follows it.

    Attributes:
        wake: called when there is something to say; set by whoever sends.
    """

    def __init__(
        self, registry: Registry, page: Page, follower: RouteFollower | None = None
    ) -> None:
        self._registry = registry
        self._page = page
        self._follower = follower
        self._prober = Prober(registry, self._answer)
        self._answers: deque[Probed] = deque(maxlen=_ANSWERS_MAX)
        self._changed = threading.Event()
        self._told: dict[str, Any] | None = None
        self._tell_at_s = 0.0
        self.wake: Callable[[], None] = lambda: None

    def changed(self) -> None:
        """The route is another one: say so now."""
        self._changed.set()
        self.wake()

    def _answer(self, probed: Probed) -> None:
        self._answers.append(probed)
        self.wake()

    # --- for the tap ----------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether there is something to say that should not wait for the next second."""
        return bool(self._answers) or self._changed.is_set()

    def heard(self, kind: int, fields: Mapping[str, Any]) -> None:
        """The monitor has said something; what is not for here is passed over.

        Raises:
            ValueError: it cannot be read.
        """
        if kind == PROBE:
            self._prober.ask(unpack_probe(fields))

    def begin(self) -> None:
        """A new connection: whoever is there now knows nothing, and waits for no old answer."""
        self._answers.clear()
        self._told = None
        self._tell_at_s = 0.0

    def frames(self) -> list[_Frame]:
        """What is to be sent now."""
        batch: list[_Frame] = []
        while self._answers:
            batch.append((PROBED, self._answers.popleft().packed(), ()))
        if self._changed.is_set() or monotonic() >= self._tell_at_s:
            self._changed.clear()
            self._tell_at_s = monotonic() + _TELL_S
            fields = self._routed()
            if fields != self._told:
                batch.append((ROUTED, fields, ()))
                self._told = fields
        return batch

    # --- how it routes --------------------------------------------------------------------------

    def _routed(self) -> dict[str, Any]:
        problem = "" if self._follower is None else self._follower.problem
        models = {name: self._model(entry) for name, entry in self._registry.entries.items()}
        return Routed(self._page.id, problem, models).packed()

    def _model(self, entry: Entry) -> ModelRouted:
        counts: dict[str, list[int]] = {}
        for slot, version in self._registry.slots_of_versions(entry.config):
            counts.setdefault(version, []).append(slot)
        return ModelRouted(
            entry.revision, entry.shares, list(entry.held), entry.note,
            {version: self._counted(slots) for version, slots in counts.items()},
        )  # fmt: skip

    def _counted(self, slots: Sequence[int]) -> VersionCounts:
        pages, failed, times = [self._page], 0, [0] * (WIDTH - 2)
        for slot in slots:
            for (_, outcome), call in sum_calls(pages, slot).items():
                if outcome in FAULTS:
                    failed += sum(call.counts)
                elif not outcome:
                    times = list(map(add, times, call.counts))
        fell_back = sum_slot(pages, *slots).counters["fallbacks"]
        return VersionCounts(failed, fell_back, tuple(times))
