"""Variants that hang or crash again and again are left out for a while: the others go on."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.clock import Clock

#: In a row, without an answer in between.
_STRIKES = 3
_FIRST_S = 30.0
_MAX_S = 1800.0


@dataclass(slots=True)
class _Record:
    strikes: int = 0
    suspended_until_ns: int = 0
    next_s: float = _FIRST_S


class Suspensions:
    """Counts, for each variant, how often in a row it ended the mirror child."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}

    def blame(self, variant: str) -> bool:
        """It hung or crashed; returns whether it is suspended now.

        After a suspension one more strike is enough for the next, twice as long.
        """
        record = self._records.setdefault(variant, _Record())
        record.strikes += 1
        if record.strikes < _STRIKES:
            return False
        record.suspended_until_ns = self._clock.monotonic_ns() + int(record.next_s * 1e9)
        record.next_s = min(record.next_s * 2, _MAX_S)
        return True

    def forgive(self, variant: str) -> None:
        """It answered."""
        if variant in self._records:
            del self._records[variant]

    def is_suspended(self, variant: str) -> bool:
        """Whether it is to be left out now."""
        record = self._records.get(variant)
        return record is not None and self._clock.monotonic_ns() < record.suspended_until_ns

    def suspended(self) -> list[str]:
        """Those left out now."""
        return [variant for variant in self._records if self.is_suspended(variant)]
