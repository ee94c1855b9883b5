"""When the monitors of a fleet exchange what they have counted.

By the wall clock, so that all do it within the same part of a round:

- *tell*: each writes what it has counted, at a moment of its own in the first ``SPREAD`` of the
  round (all at once would be a burst for the database);
- *join*: whoever leads joins what all have told, and reads it, at ``JOIN``;
- *read*: each reads what the others have told, as long after ``JOIN`` as it told after the round
  began.

With moments of each one's own a pair would be known to the leader a whole round later: it waits for
the replica that told longest ago.

It need not be exact. A machine whose clock is wrong tells later or earlier, and is waited for
(``pool.py``); nothing is counted twice or lost.
"""

from __future__ import annotations

import zlib
from enum import Enum

#: Shares of a round. From the last that tells to joining there is time for a write.
SPREAD, JOIN = 0.4, 0.5


class Moment(Enum):
    """What is due."""

    TELL = "tell"
    JOIN = "join"
    READ = "read"


class Rounds:
    """The moments of one monitor.

    Args:
        name: decides its place among the others.
        every_s: one round.
    """

    def __init__(self, name: str, every_s: float) -> None:
        self._every_ns = max(1, int(every_s * 1e9))
        place = zlib.crc32(name.encode()) / 2**32
        told_ns, joined_ns = int(SPREAD * place * self._every_ns), int(JOIN * self._every_ns)
        # Nothing is due at the same moment as another: each is told from the next by its time.
        self._at_ns = {
            Moment.TELL: told_ns, Moment.JOIN: joined_ns, Moment.READ: joined_ns + told_ns + 1
        }  # fmt: skip
        self._last_ns = 0

    def next(self, now_ns: int) -> tuple[int, Moment]:
        """What comes next, and in how many nanoseconds: within one round, and not the same moment
        twice. One that was missed is not made up for.

        Args:
            now_ns: wall clock, which may have been set since the last call.
        """
        # Whoever wakes a little early must not do it again in a moment; but a clock that was set
        # back must not keep anybody waiting.
        is_early = 0 <= self._last_ns - now_ns < self._every_ns
        after_ns = self._last_ns if is_early else now_ns
        due = {
            moment: ((after_ns - at_ns) // self._every_ns + 1) * self._every_ns + at_ns
            for moment, at_ns in self._at_ns.items()
        }
        moment = min(due, key=lambda one: due[one])
        due_ns = due[moment]
        self._last_ns = due_ns
        return due_ns - now_ns, moment
