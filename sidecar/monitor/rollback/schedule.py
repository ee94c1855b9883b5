"""When checks happen: APScheduler in the monitor, each model's shortest interval for all.

One check looks at every model (it takes milliseconds), one at a time. One that was missed, since
the machine slept or a check took long, is made up for once, however late: by default APScheduler
drops what is a second late. Its store is memory: nothing of a check outlives it but decisions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("sidecar.monitor.rollback")


class Schedule:
    """Calls ``check`` each ``interval_s`` from ``start`` until ``close``.

    Args:
        check: what it raises ends that check only, and is logged.
    """

    def __init__(self, check: Callable[[], None], interval_s: float) -> None:
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
        self.scheduler.add_job(
            self._run,
            IntervalTrigger(seconds=interval_s, timezone=UTC),
            id="rollback",
            name="rollback check",
            next_run_time=datetime.now(UTC),
        )

    def start(self) -> None:
        """Begin; the first check is at once."""
        self.scheduler.start()

    def _run(self) -> None:
        if self._stopping.is_set():
            self.skipped += 1
            logger.info("a rollback check is skipped: the monitor stops")
            return
        try:
            self._check()
        except Exception:
            logger.exception("a rollback check failed by a fault of the monitor")

    def close(self) -> None:
        """No further checks; one that is under way ends by itself."""
        self._stopping.set()
        if self.scheduler.running:
            self.scheduler.shutdown(wait=False)
