"""How much processor time watching may take, and the sampling rate that follows from it.

The monitor is there for the service, not the other way round: over its budget it pauses, the queue
fills, and the gateways are told to take a smaller sample. The sample grows back slowly. Decreasing
by a factor and increasing by a little, as TCP does, finds the rate that can be sustained without
knowing what one exchange costs, which depends on the models and on who else wants the cores.
"""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Callable
from pathlib import Path

from sidecar.clock import Clock

#: Shares are measured over this long.
_WINDOW_S = 10.0
#: And by pieces of this long: also how often the rate may change.
TICK_S = 1.0
#: One execution of a very large model may cost more than many seconds' worth of the budget.
_PAUSE_MAX_S = 60.0
#: A queue this full, or with an exchange that waits so long, is not emptied fast enough.
_FILL_HIGH = 0.5
_BEHIND_HIGH_S = 1.5
_BEHIND_LOW_S = 0.5
#: Of the budget: over the one the sample shrinks, under the other it grows.
_OVER, _UNDER = 1.05, 0.9
_DECREASE = 0.7
_DECREASE_MAX = 0.4
#: Of the configured rate, added each tick: from nothing to all in half a minute.
_INCREASE = 1 / 30
#: Of the configured rate: below it nothing would be seen any more.
_FLOOR = 1e-3


def cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Processors that this process may use: by affinity, and by the container's quota."""
    available = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = cgroup.read_text(encoding="ascii").split()
        return min(available, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2, or "max": no quota
        return available


def own_cpu_s() -> float:
    """Processor time that this process has used, all threads, seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Budget:
    """Measures processor time against ``share`` × cores.

    Args:
        used_s: gives the processor time used since the start, seconds: this process and its child.
        share: of all cores, in (0, 1].
    """

    def __init__(self, used_s: Callable[[], float], share: float, clock: Clock) -> None:
        self._used_s = used_s
        self.share = share
        self._clock = clock
        self._cores = cores()
        self._marks: deque[tuple[int, float]] = deque()
        self.begin()

    def begin(self) -> None:
        """Measure from now on: what was used before (to load copies, once) is not held against it.

        Before anybody else uses this.
        """
        self._account = (self._clock.monotonic_ns(), self._used_s())
        self._balance_s = 0.0
        self._marks.clear()
        self._marks.append(self._account)

    def tick(self) -> float:
        """Measure; returns the share of all cores used since the last tick."""
        now_ns, used_s = self._clock.monotonic_ns(), self._used_s()
        last_ns, last_s = self._marks[-1]
        if now_ns <= last_ns:
            return 0.0
        self._marks.append((now_ns, max(used_s, last_s)))
        while len(self._marks) > 2 and now_ns - self._marks[1][0] >= _WINDOW_S * 1e9:
            self._marks.popleft()
        return self._share(self._marks[-2])

    @property
    def used(self) -> float:
        """Share of all cores used, over the window up to the last tick."""
        return self._share(self._marks[0]) if len(self._marks) > 1 else 0.0

    def _share(self, since: tuple[int, float]) -> float:
        (start_ns, start_s), (end_ns, end_s) = since, self._marks[-1]
        return (end_s - start_s) / ((end_ns - start_ns) / 1e9 * self._cores)

    def pause_s(self) -> float:
        """How long to rest now, seconds, so that the budget is kept; for one thread.

        What was not used is saved up for a second at most, what was used too much is remembered.
        """
        now_ns, used_s = self._clock.monotonic_ns(), self._used_s()
        last_ns, last_s = self._account
        self._account = (now_ns, used_s)
        per_s = self.share * self._cores
        earned_s = per_s * (now_ns - last_ns) / 1e9
        self._balance_s = min(self._balance_s + earned_s - max(used_s - last_s, 0), per_s)
        return min(max(-self._balance_s / per_s, 0.0), _PAUSE_MAX_S)


class AdaptiveRate:
    """The sampling rate that gateways are told.

    Args:
        wanted: as configured; the rate never exceeds it.
    """

    def __init__(self, wanted: float) -> None:
        self.wanted = wanted
        self.rate = wanted

    def update(
        self, *, used: float, budget: float, fill: float, behind_s: float, lost: int
    ) -> float:
        """One tick; returns the new rate.

        Args:
            used: share of all cores used during the tick; ``budget``: what is allowed.
            fill: of the queue, in [0, 1]; ``behind_s``: how long its oldest exchange has waited.
            lost: exchanges dropped during the tick for want of room or time.
        """
        if lost or fill > _FILL_HIGH or behind_s > _BEHIND_HIGH_S or used > budget * _OVER:
            # Far over the budget, the ratio says better than a constant where to go.
            factor = min(_DECREASE, max(budget / used, _DECREASE_MAX)) if used else _DECREASE
            self.rate = max(self.rate * factor, self.wanted * _FLOOR)
        elif behind_s < _BEHIND_LOW_S and used < _UNDER * budget:
            self.rate = min(self.rate + self.wanted * _INCREASE, self.wanted)
        return self.rate
