"""When deep runs happen: APScheduler in the monitor, each model at its own interval.

One thread, so that they follow one another. What was missed (the machine slept, a run took longer
than the interval) is made up for once, however late. Nothing is kept by the scheduler: how old the
latest report is says when the next one is due, over restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

#: Of an interval, how far runs are moved at random, so that replicas do not run all at once.
_JITTER_SHARE = 0.1
_JITTER_S_MAX = 300
#: A run that is due at the start waits for so long: starting has better things to do.
_SETTLE_S = 60.0


class Schedule:
    """Calls ``run(model)`` at intervals from ``start`` until ``close``.

    Args:
        every_s: model → seconds from one run to the next.
        run: must not raise; what it does raise ends that run only.
        age_s: model → how long ago the latest run was, where there was one.
    """

    def __init__(
        self,
        every_s: Mapping[str, float],
        run: Callable[[str], None],
        age_s: Mapping[str, float],
    ) -> None:
        # Here, so that only a configuration that asks for it imports it.
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.jobstores.memory import MemoryJobStore
        from apscheduler.schedulers.background import BackgroundScheduler
        from apscheduler.triggers.interval import IntervalTrigger

        self.scheduler: Any = BackgroundScheduler(
            jobstores={"default": MemoryJobStore()},
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
            daemon=True,
        )
        now = datetime.now(UTC)
        for model, seconds in every_s.items():
            jitter = int(min(_JITTER_SHARE * seconds, _JITTER_S_MAX))
            self.scheduler.add_job(
                run,
                IntervalTrigger(
                    seconds=seconds,
                    start_date=now + timedelta(seconds=first_after_s(seconds, age_s.get(model))),
                    jitter=jitter or None,
                    timezone=UTC,
                ),
                args=(model,),
                id=model,
                name=f"deep drift run of {model}",
            )

    def start(self) -> None:
        """Begin."""
        self.scheduler.start()

    def soon(self, model: str) -> None:
        """Run this model's next one now, instead of when it would be due."""
        self.scheduler.modify_job(model, next_run_time=datetime.now(UTC))

    def close(self) -> None:
        """No further runs; one that is under way is its owner's to end."""
        if self.scheduler.running:
            self.scheduler.shutdown(wait=False)


def first_after_s(every_s: float, age_s: float | None) -> float:
    """Seconds until the first run: when it would have come had there been no restart."""
    if age_s is None:  # nothing has been seen yet that could be looked at
        return every_s
    # A clock that went back must not put it off for longer than an interval.
    due_s = min(every_s - age_s, every_s)
    return max(due_s, min(_SETTLE_S, every_s))
