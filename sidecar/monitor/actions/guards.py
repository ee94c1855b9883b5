"""What must hold before any action, whatever its kind."""

from __future__ import annotations

from sidecar.clock import Clock


class Cooldown:
    """One action in so much time, over restarts and jumps of the wall clock.

    The wall clock only says how long this process was gone; while it runs, the monotonic one
    counts. An action that seems to lie in the future (the wall clock was set back meanwhile) was
    just now: it may cost a whole cool-down, and never gives one away.
    """

    def __init__(self, cooldown_s: float, clock: Clock) -> None:
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._last_ns: int | None = None

    def restore(self, last_wall_ns: int | None) -> None:
        """Say when the last action was, as it was written down; ``None``: there was none."""
        if last_wall_ns is None:
            return
        age_ns = max(0, self._clock.now_ns() - last_wall_ns)
        last_ns = self._clock.monotonic_ns() - age_ns
        self._last_ns = last_ns if self._last_ns is None else max(self._last_ns, last_ns)

    def acted(self) -> None:
        """An action was begun now."""
        self._last_ns = self._clock.monotonic_ns()

    def left_s(self) -> float:
        """In how many seconds the next one may be begun; 0: now."""
        if self._last_ns is None:
            return 0.0
        gone_s = (self._clock.monotonic_ns() - self._last_ns) / 1e9
        return max(0.0, self._cooldown_s - gone_s)
