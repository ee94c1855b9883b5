"""The worst verdict stands; none at all is INVALID."""

from __future__ import annotations

import itertools

from validators.verdict import Verdict, worst

ORDER = [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL, Verdict.INVALID]


def test_comparing_nothing_is_never_a_pass():
    assert worst([]) is Verdict.INVALID
    assert worst(iter(())) is Verdict.INVALID


def test_the_worst_stands_in_any_order():
    for size in (1, 2, 3):
        for some in itertools.permutations(ORDER, size):
            assert worst(some) is max(some, key=ORDER.index)


def test_a_verdict_reads_as_its_word():
    assert [str(verdict) for verdict in ORDER] == ["PASS", "INCONCLUSIVE", "FAIL", "INVALID"]
    assert Verdict("FAIL") is Verdict.FAIL
