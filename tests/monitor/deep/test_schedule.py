"""The schedule's settings, and a real tick; when the first run comes is worked out by hand."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from sidecar.monitor.deep.schedule import Schedule, first_after_s


def test_the_first_run_is_when_it_would_have_come_without_a_restart():
    assert first_after_s(3600, None) == 3600
    assert first_after_s(3600, 600) == 3000
    assert first_after_s(3600, 3590) == 60  # starting has better things to do
    assert first_after_s(3600, 10**6) == 60
    assert first_after_s(3600, -(10**6)) == 3600  # the clock went back
    assert first_after_s(10, 10**6) == 10


def test_jobs_are_what_the_configuration_says():
    schedule = Schedule({"a": 3600, "b": 5}, lambda model: None, {"a": 3000})
    jobs = {job.id: job for job in schedule.scheduler.get_jobs()}
    assert set(jobs) == {"a", "b"}
    now = datetime.now(UTC)
    assert jobs["a"].trigger.interval == timedelta(hours=1)
    assert jobs["a"].trigger.jitter == 300
    assert jobs["b"].trigger.jitter is None  # of less than a second: none
    assert jobs["a"].trigger.start_date - now < timedelta(seconds=600)
    assert jobs["a"].args == ("a",)
    schedule.start()
    try:
        for job in schedule.scheduler.get_jobs():
            assert (job.coalesce, job.max_instances, job.misfire_grace_time) == (True, 1, None)
        assert type(schedule.scheduler._lookup_jobstore("default")).__name__ == "MemoryJobStore"
        assert schedule.scheduler._executors["default"]._pool._max_workers == 1
    finally:
        schedule.close()


def test_runs_come_again_and_one_that_raises_ends_only_itself():
    seen: list[str] = []
    twice = threading.Event()

    def run(model: str) -> None:
        seen.append(model)
        if len(seen) >= 2:
            twice.set()
        raise RuntimeError("a bad run")

    schedule = Schedule({"m": 0.05}, run, {})
    schedule.start()
    try:
        assert twice.wait(60)
    finally:
        schedule.close()
    assert set(seen) == {"m"}


def test_closing_one_that_was_never_started_is_nothing():
    Schedule({"m": 10}, lambda model: None, {}).close()


@pytest.mark.parametrize("late", [1, 100])
def test_what_was_missed_is_made_up_for_once(late):
    ran: list[str] = []
    schedule = Schedule({"m": 3600}, ran.append, {})
    schedule.scheduler.start(paused=True)
    try:
        overdue = datetime.now(UTC) - timedelta(hours=late, seconds=1)
        schedule.scheduler.modify_job("m", next_run_time=overdue)
        done = threading.Event()
        schedule.scheduler.add_listener(lambda event: done.set(), 2**12)  # a job was executed
        schedule.scheduler.resume()
        assert done.wait(60)
        job = schedule.scheduler.get_job("m")
        assert job.next_run_time > datetime.now(UTC)
    finally:
        schedule.close()
    assert ran == ["m"]


def test_one_that_is_wanted_soon_does_not_wait_for_its_hour():
    ran = threading.Event()
    schedule = Schedule({"a": 3600}, lambda model: ran.set(), {})
    schedule.start()
    try:
        assert not ran.is_set()
        schedule.soon("a")
        assert ran.wait(60)
        [job] = schedule.scheduler.get_jobs()  # and the next one is an hour later again
        assert job.next_run_time - datetime.now(UTC) > timedelta(minutes=50)
    finally:
        schedule.close()
