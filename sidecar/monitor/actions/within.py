"""A call to another server, bounded as a whole: libraries bound each read, and bytes may drip."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Calls that were given up on and still hang: each holds a thread until its socket ends.
_HANGING_MAX = 4


class Within:
    """Runs calls in threads that can be left behind; any thread.

    Args:
        limit_s: of one call, whole.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._hanging = threading.BoundedSemaphore(_HANGING_MAX)

    def run(self, call: Callable[[], T]) -> T:
        """Return what the call returns, and raise what it raises.

        Raises:
            TimeoutError: it has not ended in time (it may yet have its effect), or as many as may
                hang still do. The text says which.
        """
        if not self._hanging.acquire(blocking=False):
            message = f"{_HANGING_MAX} earlier calls still hang"
            raise TimeoutError(message)
        answers: list[T] = []
        errors: list[Exception] = []
        ended = threading.Event()

        def run() -> None:
            try:
                answers.append(call())
            except Exception as error:  # noqa: BLE001 - raised by the thread that waits
                errors.append(error)
            finally:
                self._hanging.release()
                ended.set()

        threading.Thread(target=run, name="action", daemon=True).start()
        if not ended.wait(self.limit_s):
            message = f"no answer within {self.limit_s:g} s"
            raise TimeoutError(message)
        if errors:
            raise errors[0]
        return answers[0]
