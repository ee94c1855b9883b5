"""The four verdicts, and how several become one."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """What is known about a variant.

    INVALID is apart from FAIL: nothing could be compared (an output is missing, shapes differ, a
    comparator raised, no rows), so neither agreement nor disagreement was measured.
    """

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


#: From harmless to worst.
_SEVERITY = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL, Verdict.INVALID)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """INVALID > FAIL > INCONCLUSIVE > PASS; of nothing INVALID: comparing nothing is no pass."""
    return max(verdicts, key=_SEVERITY.index, default=Verdict.INVALID)
