"""How many answers a new version may change: recorded by ``sidecar validate``, read by the checks.

A file in the monitor's folder, keyed by the identity of the pair: a version whose artifact was
replaced since has no budget.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("sidecar.monitor.flip_budgets")

FILE = "flip-budgets.json"
_FORMAT = 1
#: Pairs that are kept; the oldest go first.
PAIRS_MAX = 1000


@dataclass(frozen=True, slots=True)
class FlipBudget:
    """What was recorded of one pair.

    Attributes:
        identity: of both artifacts (``plan.pair_identity``).
        new, previous: variant keys, ``model:version/name``.
        budget: share of rows that may change, in (0, 1).
        flips, rows: as measured, of the output that changed most.
        upper: what the share is at most, at the risk ``alpha``.
        stated: an operator has said so; else the budget is ``upper``.
        created_at: ISO 8601.
    """

    identity: str
    new: str
    previous: str
    budget: float
    flips: int
    rows: int
    upper: float
    alpha: float
    stated: bool
    created_at: str


class FlipBudgets:
    """The budgets of one folder; what another process writes is seen at the next look.

    Args:
        state_dir: the monitor's (``places.state_dir``).
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE
        self._seen: tuple[int, int, int] | None = None
        self._budgets: dict[str, float] = {}

    def budget(self, identity: str) -> float | None:
        """Of the pair with this identity; ``None``: none was recorded, or it cannot be read."""
        try:
            status = self.path.stat()
        except OSError:
            self._seen, self._budgets = None, {}
            return None
        seen = status.st_mtime_ns, status.st_size, status.st_ino
        if seen != self._seen:
            self._seen = seen
            self._budgets = {name: one["budget"] for name, one in self._read().items()}
        return self._budgets.get(identity)

    def record(self, budgets: Sequence[FlipBudget]) -> None:
        """Add budgets, replacing those of the same pairs: all, or none.

        Raises:
            OSError: it cannot be written; what was there stays.
        """
        pairs = self._read() if self.path.exists() else {}
        for one in budgets:
            pairs.pop(one.identity, None)
            plain = asdict(one)
            del plain["identity"]
            pairs[one.identity] = plain
        kept = dict(list(pairs.items())[-PAIRS_MAX:])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{FILE}.", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"format": _FORMAT, "pairs": kept}, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            # The monitor may be another user's process than the one that validates.
            Path(name).chmod(0o644)
            Path(name).replace(self.path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise

    def _read(self) -> dict[str, dict[str, Any]]:
        """Identity → what was recorded, of those that make sense."""
        try:
            document = json.loads(self.path.read_bytes())
            if document["format"] != _FORMAT:
                text = f"its format is {document['format']!r}, not {_FORMAT}"
                raise ValueError(text)
            return {str(name): one for name, one in document["pairs"].items() if _is_sound(one)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.error("no flip budgets: %s cannot be read: %s", self.path, error)
            return {}


def _is_sound(plain: Any) -> bool:
    budget = plain.get("budget") if isinstance(plain, dict) else None
    return isinstance(budget, float) and math.isfinite(budget) and 0 < budget < 1
