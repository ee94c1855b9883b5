"""Requests that come again under the same identity: one event must not count twice.

The queue has dropped what the same variant answered again (``ingest.py``). A pair of versions has
several doors: a retry may be answered by the other version, or by the fallback.
"""

from __future__ import annotations

#: Remembered identities of a pair, as numbers: a few megabytes; retries come within seconds.
REMEMBERED = 65_536


class Repeats:
    """The identities that came last, by pair. In memory only: a retry across a restart counts."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._most = remembered
        self._seen: dict[tuple[str, str], dict[int, None]] = {}

    def is_repeat(self, sides: tuple[str, str], request_id: str) -> bool:
        """Whether this pair has counted the request already; an empty identity never repeats."""
        if not request_id:
            return False
        seen = self._seen.setdefault(sides, {})
        identity = hash(request_id)
        if identity in seen:
            return True
        seen[identity] = None
        if len(seen) > self._most:
            del seen[next(iter(seen))]
        return False
