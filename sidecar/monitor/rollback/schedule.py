"""When checks happen: APScheduler in the monitor, each model at its own interval.

One thread, so that they follow one another. One that was missed, since the machine slept or a check
took long, is made up for once, however late: by default APScheduler drops what is a second late.
Its store is memory: nothing of a check outlives it but decisions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("sidecar.monitor.rollback")


class Schedule:
    """Calls ``check(model)`` at intervals from ``start`` until ``close``.

    Args:
        every_s: model → seconds from one check to the next.
        check: what it raises ends that check only, and is logged.
    """

    def __init__(self, every_s: Mapping[str, float], check: Callable[[str], None]) -> None:
        # Here, so that only a configuration that asks for it imports it.
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.jobstores.memory import MemoryJobStore
        from apscheduler.schedulers.background import BackgroundScheduler
        from apscheduler.triggers.interval import IntervalTrigger

        self._check = check
        self._stopping = threading.Event()
        self.skipped = 0
        self.scheduler: Any = BackgroundScheduler(
            jobstores={"default": MemoryJobStore()},
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
            daemon=True,
        )
        for model, seconds in every_s.items():
            self.scheduler.add_job(
                self._run,
                IntervalTrigger(seconds=seconds, timezone=UTC),
                args=(model,),
                id=model,
                name=f"rollback check of {model}",
                next_run_time=datetime.now(UTC),
            )

    def start(self) -> None:
        """Begin; the first check is at once."""
        self.scheduler.start()

    def now(self) -> None:
        """Check every model as soon as possible, whatever its interval."""
        if not self._stopping.is_set() and self.scheduler.running:
            for job in self.scheduler.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))

    def _run(self, model: str) -> None:
        if self._stopping.is_set():
            self.skipped += 1
            logger.info("a rollback check is skipped: the monitor stops")
            return
        try:
            self._check(model)
        except Exception:
            logger.exception("a rollback check failed by a fault of the monitor")

    def close(self) -> None:
        """No further checks; one that is under way ends by itself."""
        self._stopping.set()
        if self.scheduler.running:
            self.scheduler.shutdown(wait=False)
