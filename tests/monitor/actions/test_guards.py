"""The cool-down: over restarts, and whatever the wall clock does."""

from __future__ import annotations

import pytest

from sidecar.monitor.actions.guards import Cooldown

HOUR = 3600.0


class TwoClocks:
    """The wall clock jumps; the other one does not."""

    def __init__(self) -> None:
        self.wall_s = 1_000_000.0
        self.monotonic_s = 50.0

    def now_ns(self) -> int:
        return int(self.wall_s * 1e9)

    def monotonic_ns(self) -> int:
        return int(self.monotonic_s * 1e9)

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


def test_one_action_in_so_much_time():
    clock = TwoClocks()
    guard = Cooldown(HOUR, clock)
    assert guard.left_s() == 0
    guard.acted()
    clock.advance(600)
    assert guard.left_s() == pytest.approx(3000)
    clock.advance(3000)
    assert guard.left_s() == 0


@pytest.mark.parametrize("jump_s", [-86400, 86400])
def test_the_wall_clock_may_jump_while_it_runs(jump_s):
    clock = TwoClocks()
    guard = Cooldown(HOUR, clock)
    guard.acted()
    clock.wall_s += jump_s
    clock.advance(600)
    assert guard.left_s() == pytest.approx(3000)


def test_what_was_written_down_counts_after_a_restart():
    clock = TwoClocks()
    guard = Cooldown(HOUR, clock)
    guard.restore(clock.now_ns() - int(600e9))
    assert guard.left_s() == pytest.approx(3000)
    guard.restore(None)
    guard.restore(clock.now_ns() - int(2000e9))  # an older one changes nothing
    assert guard.left_s() == pytest.approx(3000)


def test_an_action_that_seems_to_be_yet_to_come_was_just_now():
    clock = TwoClocks()
    guard = Cooldown(HOUR, clock)
    guard.restore(clock.now_ns() + int(86400e9))
    assert guard.left_s() == pytest.approx(HOUR)
    clock.advance(HOUR)
    assert guard.left_s() == 0
