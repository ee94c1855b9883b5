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

import itertools
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
        self._at_ns = {
            Moment.TELL: told_ns, Moment.JOIN: joined_ns, Moment.READ: joined_ns + told_ns
        }  # fmt: skip
        self._moments = itertools.cycle(self._at_ns)
        self._round = 0

    def next(self, now_ns: int) -> tuple[int, Moment]:
        """What comes next, and in how many nanoseconds: at most one round.

        One after the other, whatever each takes: what is late is done at once (were it left out,
        a slow reading could keep this replica from ever telling), and rounds that are over are
        left out.

        Args:
            now_ns: wall clock, which may have been set since the last call.
        """
        moment = next(self._moments)
        if moment is Moment.TELL:
            present = now_ns // self._every_ns
            # Those between are over, or the clock was set.
            self._round = present + (self._round == present)
        due_ns = self._round * self._every_ns + self._at_ns[moment]
        return min(max(0, due_ns - now_ns), self._every_ns), moment
