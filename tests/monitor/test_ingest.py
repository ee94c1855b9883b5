"""The queue drops and never waits; the sample follows the budget."""

from __future__ import annotations

import threading

import pytest

from sidecar.monitor import ingest as ingest_module
from sidecar.monitor.budget import AdaptiveRate, Budget, cores
from sidecar.monitor.ingest import Ingest
from tests.monitor.making import Clock, exchange

OVERHEAD = 1024


def test_it_holds_no_more_than_its_bytes_and_counts_what_it_refuses():
    queue = Ingest(queue_bytes=3 * (1000 + OVERHEAD), clock=Clock())
    taken = [queue.offer(exchange(f"r{i}", size=1000)) for i in range(5)]
    assert taken == [True, True, True, False, False]
    assert queue.received == 5
    assert queue.dropped == {"queue_full": 2}
    assert queue.queue_bytes == 3 * (1000 + OVERHEAD)
    assert queue.fill == 1
    assert queue.take_lost() == 2
    assert queue.take_lost() == 0
    assert [e.request_id for e in queue.take(10, 10**9, 0)] == ["r0", "r1", "r2"]
    assert queue.queue_bytes == 0
    assert queue.offer(exchange("r9", size=1000))


def test_a_micro_batch_is_bounded_in_number_and_bytes_but_never_empty():
    queue = Ingest(queue_bytes=10**9, clock=Clock())
    for i in range(6):
        queue.offer(exchange(f"r{i}", size=100))
    assert len(queue.take(2, 10**9, 0)) == 2
    assert len(queue.take(10, 250, 0)) == 2
    assert len(queue.take(10, 1, 0)) == 1
    assert queue.waiting == 1


def test_a_repeated_request_is_dropped_but_not_the_other_half_of_a_fallback():
    queue = Ingest(queue_bytes=10**9, clock=Clock())
    assert queue.offer(exchange("a"))
    assert not queue.offer(exchange("a"))
    assert queue.offer(exchange("a", variant="m:1/fallback"))
    assert queue.offer(exchange("a", variant="other:2/new"))
    assert queue.offer(exchange(""))
    assert queue.offer(exchange(""))  # no identity: never a repeat
    assert queue.dropped == {"duplicate": 1}
    assert queue.take_lost() == 0  # a repeat is no sign of pressure


def test_identities_are_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(ingest_module, "IDENTITIES", 2)
    queue = Ingest(queue_bytes=10**9, clock=Clock())
    for name in ("a", "b", "a", "c"):
        queue.offer(exchange(name))
    assert queue.dropped == {"duplicate": 1}
    assert not queue.offer(exchange("a"))  # its repeat kept it
    assert queue.offer(exchange("b"))  # the one unused the longest went


def test_what_waited_too_long_is_dropped():
    clock = Clock()
    queue = Ingest(queue_bytes=10**9, clock=clock, stale_s=5)
    queue.offer(exchange("old"))
    clock.advance(4)
    queue.offer(exchange("new"))
    assert queue.behind_s == pytest.approx(4)
    clock.advance(2)
    assert [e.request_id for e in queue.take(10, 10**9, 0)] == ["new"]
    assert queue.dropped == {"late": 1}
    assert queue.behind_s == 0


def test_closing_wakes_whoever_waits_and_lets_the_rest_be_taken():
    queue = Ingest(queue_bytes=10**9, clock=Clock())
    results: list[list] = []
    thread = threading.Thread(target=lambda: results.append(queue.take(1, 1, 60)))
    thread.start()
    queue.close()
    thread.join(30)
    assert results == [[]]
    assert not queue.offer(exchange())
    assert queue.dropped == {"stopping": 1}


# --- the budget -----------------------------------------------------------------------------------


def test_the_budget_measures_shares_of_all_cores():
    clock, used = Clock(), [0.0]
    budget = Budget(lambda: used[0], 0.25, clock)
    count = cores()
    clock.advance(1)
    used[0] += 0.5 * count
    assert budget.tick() == pytest.approx(0.5)
    clock.advance(3)
    assert budget.tick() == 0
    assert budget.used == pytest.approx(0.5 / 4)


def test_what_was_used_too_much_is_rested_off_and_little_is_saved_up():
    clock, used = Clock(), [0.0]
    budget = Budget(lambda: used[0], 0.25, clock)
    count = cores()
    used[0] += 0.1 * count
    # 0.1 of the cores was used up at once, which is earned in 0.4 s.
    assert budget.pause_s() == pytest.approx(0.4)
    clock.advance(0.3)
    budget.tick()  # measuring changes nothing about it
    assert budget.pause_s() == pytest.approx(0.1)
    clock.advance(1000)
    assert budget.pause_s() == 0
    used[0] += 2 * 0.25 * count
    assert budget.pause_s() == pytest.approx(1)  # a second was saved up, not a thousand
    used[0] += 1e6
    assert budget.pause_s() == 60


def test_what_was_used_to_begin_is_not_rested_off():
    clock, used = Clock(), [0.0]
    budget = Budget(lambda: used[0], 0.25, clock)
    used[0] = 5.0
    clock.advance(5)
    budget.begin()
    clock.advance(1)
    assert budget.pause_s() == 0
    assert budget.tick() == budget.used == 0


def test_cores_know_the_containers_quota(tmp_path):
    file = tmp_path / "cpu.max"
    file.write_text("50000 100000\n")
    assert cores(file) == 0.5
    file.write_text("max 100000\n")
    assert cores(file) == cores(tmp_path / "none") >= 1


CALM = {"used": 0.0, "budget": 0.25, "fill": 0.0, "behind_s": 0.0, "lost": 0}


@pytest.mark.parametrize(
    "pressure", [{"lost": 1}, {"fill": 0.6}, {"behind_s": 2.0}, {"used": 0.3}, {"used": 2.0}]
)
def test_under_pressure_the_sample_shrinks_and_recovers_slowly(pressure):
    rate = AdaptiveRate(0.1)
    assert rate.update(**CALM) == 0.1
    low = [rate.update(**{**CALM, **pressure}) for _ in range(3)]
    assert 0.1 > low[0] > low[1] > low[2] > 0
    back = [rate.update(**CALM) for _ in range(60)]
    assert low[2] < back[0] < low[2] + 0.1 / 20
    assert back[-1] == 0.1


def test_the_sample_never_shrinks_to_nothing():
    rate = AdaptiveRate(0.1)
    for _ in range(1000):
        rate.update(**{**CALM, "lost": 5})
    assert rate.rate == pytest.approx(0.1 * 1e-3)


def test_just_under_the_budget_the_rate_stays():
    rate = AdaptiveRate(0.1)
    rate.update(**{**CALM, "lost": 1})
    before = rate.rate
    assert rate.update(**{**CALM, "used": 0.24}) == before
