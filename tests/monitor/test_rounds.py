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
        assert 0 < wait_ns <= ROUND_NS
        now_ns += wait_ns
        found.append((now_ns, moment))
    return found


@pytest.mark.parametrize("name", NAMES[:5])
def test_in_each_round_there_is_one_of_each_moment(name):
    found = moments(Rounds(name, 1.0), 5 * ROUND_NS - 1, 30)
    assert [moment for _, moment in found] == IN_ORDER * 10
    assert [at_ns // ROUND_NS for at_ns, _ in found] == [5 + n // 3 for n in range(30)]
    assert {at_ns % ROUND_NS for at_ns, moment in found if moment is Moment.JOIN} == {
        int(JOIN * ROUND_NS)
    }


def test_all_tell_before_anybody_joins_and_not_all_at_once():
    told = {moments(Rounds(name, 1.0), 5 * ROUND_NS - 1, 1)[0][0] - 5 * ROUND_NS for name in NAMES}
    assert min(told) >= 0
    assert max(told) <= SPREAD * ROUND_NS
    assert len(told) == len(NAMES)
    assert max(told) - min(told) > 0.8 * SPREAD * ROUND_NS
    assert SPREAD < JOIN


def test_who_wakes_a_little_early_does_not_do_it_twice():
    rounds, now_ns, found = Rounds("a", 1.0), 5 * ROUND_NS - 1, []
    for _ in range(10):
        wait_ns, moment = rounds.next(now_ns)
        now_ns += wait_ns - 1000
        found.append(moment)
    assert found == [*IN_ORDER * 3, Moment.TELL]


def test_who_is_late_leaves_out_what_is_over():
    rounds = Rounds("a", 1.0)
    rounds.next(5 * ROUND_NS - 1)
    (at_ns, moment), *_ = moments(rounds, 9 * ROUND_NS + int(0.45 * ROUND_NS), 1)
    assert moment is Moment.JOIN
    assert at_ns == 9 * ROUND_NS + int(JOIN * ROUND_NS)


@pytest.mark.parametrize("set_to_ns", [3 * ROUND_NS + 7, 10**6 * ROUND_NS + 7])
def test_a_clock_that_is_set_keeps_nobody_waiting(set_to_ns):
    rounds = Rounds("a", 1.0)
    moments(rounds, 5000 * ROUND_NS, 3)
    found = moments(rounds, set_to_ns, 4)
    assert found[0][0] - set_to_ns <= ROUND_NS
    assert found[-1][0] - set_to_ns <= 2 * ROUND_NS
