"""When the monitors of a fleet exchange counts, and when whoever leads joins them."""

from __future__ import annotations

import pytest

from sidecar.monitor.rounds import JOIN, SPREAD, Moment, Rounds

ROUND_NS = 10**9
IN_ORDER = [Moment.TELL, Moment.JOIN, Moment.READ]
NAMES = [f"life-{n}" for n in range(50)]


def moments(rounds: Rounds, now_ns: int, count: int) -> list[tuple[int, Moment]]:
    found = []
    for _ in range(count):
        wait_ns, moment = rounds.next(now_ns)
        assert 0 <= wait_ns <= ROUND_NS
        now_ns += wait_ns
        found.append((now_ns, moment))
    return found


@pytest.mark.parametrize("name", NAMES[:5])
def test_in_each_round_there_is_one_of_each_moment(name):
    rounds = Rounds(name, 1.0)
    moments(rounds, 4 * ROUND_NS, 3)
    found = moments(rounds, 5 * ROUND_NS - 1, 30)
    assert [moment for _, moment in found] == IN_ORDER * 10
    assert [at_ns // ROUND_NS for at_ns, _ in found] == [5 + n // 3 for n in range(30)]
    assert {at_ns % ROUND_NS for at_ns, moment in found if moment is Moment.JOIN} == {
        int(JOIN * ROUND_NS)
    }


def test_all_tell_before_anybody_joins_and_not_all_at_once():
    told = {moments(Rounds(name, 1.0), 5 * ROUND_NS, 1)[0][0] - 5 * ROUND_NS for name in NAMES}
    assert min(told) >= 0
    assert max(told) <= SPREAD * ROUND_NS
    assert len(told) == len(NAMES)
    assert max(told) - min(told) > 0.8 * SPREAD * ROUND_NS
    assert SPREAD < JOIN


def test_who_wakes_a_little_early_does_not_do_it_twice():
    rounds, now_ns, found = Rounds("a", 1.0), 5 * ROUND_NS - 1, []
    for _ in range(10):
        wait_ns, moment = rounds.next(now_ns)
        now_ns += max(0, wait_ns - 1000)
        found.append((now_ns // ROUND_NS, moment))
    assert [moment for _, moment in found] == [*IN_ORDER * 3, Moment.TELL]
    assert found[-1][0] <= 8


def test_who_is_late_does_the_rest_at_once_and_leaves_out_rounds_that_are_over():
    rounds = Rounds("a", 1.0)
    moments(rounds, 5 * ROUND_NS, 1)  # has told, which took four rounds
    late_ns = 9 * ROUND_NS + ROUND_NS // 10
    found = moments(rounds, late_ns, 5)
    assert found[:2] == [(late_ns, Moment.JOIN), (late_ns, Moment.READ)]
    assert [at_ns // ROUND_NS for at_ns, _ in found[2:]] == [9, 9, 9]


@pytest.mark.parametrize("took_s", [0.3, 0.7, 1.1, 2.5])
def test_however_long_each_takes_none_is_left_out(took_s):
    rounds, now_ns, found = Rounds("a", 1.0), 5 * ROUND_NS, []
    for _ in range(30):
        wait_ns, moment = rounds.next(now_ns)
        now_ns += wait_ns + int(took_s * ROUND_NS)
        found.append(moment)
    assert found == IN_ORDER * 10


@pytest.mark.parametrize("set_to_ns", [3 * ROUND_NS + 7, 10**6 * ROUND_NS + 7])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_clock_that_is_set_keeps_nobody_waiting(after, set_to_ns):
    rounds = Rounds("a", 1.0)
    moments(rounds, 5000 * ROUND_NS, after)
    found = moments(rounds, set_to_ns, 9)
    assert found[2][0] - set_to_ns <= 3 * ROUND_NS
    assert found[-1][0] - found[-4][0] <= ROUND_NS
