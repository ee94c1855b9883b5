"""What comparing has shown, told as points: this life's counts, and the rates of all lives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exporters import instruments
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.ledger import Ledger, by_reason
from sidecar.monitor.measured_evidence import MeasuredEvidence, variant_attributes
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store import Store
from sidecar.monitor.tally import Tally
from sidecar.monitor.view import ModelStatus, OutputStatus, PairStatus
from tests.monitor.making import Clock
from validators.verdict import Verdict

NEW = {"model.name": "m", "model.version": "2", "variant": "int8"}
KEY = EvidenceKey("m", "m:2/int8", "m:2/ref", "y", "disagrees", "policy")


def output(rate, upper):
    return OutputStatus("y", "tensor", "p", "", (), 10, 10, 1, 0, rate, 0.0, upper)


def pair(*outputs, purpose="certificate", blocked=""):
    verdict = Verdict.INCONCLUSIVE
    return PairStatus("m:2/int8", "m:2/ref", purpose, 10, verdict, blocked, list(outputs))


def measured(evidence, *pairs, tally=None):
    models = [ModelStatus("m", "m:2/ref", "default", list(pairs), "")]
    return MeasuredEvidence(evidence, tally or Tally(), lambda: models, lambda: 77, 5)


def told(source, instrument):
    return [(p.attributes, p.value) for p in source.points() if p.instrument is instrument]


@pytest.fixture
def evidence():
    return Evidence("life", Clock())


def test_with_nothing_counted_only_the_queue_is_told(evidence):
    (point,) = measured(evidence).points()
    assert (point.instrument, point.value) == (instruments.MIRROR_QUEUE, 77)


def test_exchanges_by_what_became_of_them(evidence):
    own = {"compared": 5, "set_aside": 1, "received": 8, "dropped_full": 2, "not_mirrored_form": 3}
    Ledger(evidence).note({}, own)
    found = {
        (a["outcome"], a["reason"]): value
        for a, value in told(measured(evidence), instruments.MIRROR_EXCHANGES)
    }
    assert found == {
        ("compared", ""): 5, ("set_aside", ""): 1, ("dropped", "full"): 2,
        ("not_mirrored", "form"): 3,
    }  # fmt: skip


def test_the_taps_reasons_join_the_monitors_own():
    dropped, not_mirrored = by_reason(
        {"tap_dropped_full": 2, "dropped_full": 3, "tap_sequence": 4, "tap_unclear": 0, "other": 9}
    )
    assert (dropped, not_mirrored) == ({"full": 5}, {"sequence": 4})


def test_requests_by_verdict(evidence):
    evidence.add(KEY, {"n": 10, "k": 2.5, "wrong": 4, "structural": 1})
    other = EvidenceKey(KEY.model, KEY.candidate, "m:2/ref2", "y", "disagrees", "policy")
    evidence.add(other, {"n": 2, "k": 0, "wrong": 0, "structural": 0})
    noise = EvidenceKey(KEY.model, KEY.candidate, KEY.baseline, "y", "noise", "policy")
    evidence.add(noise, {"n": 100, "wrong": 50})
    found = told(measured(evidence), instruments.COMPARISON_RESULTS)
    assert {a["verdict"]: value for a, value in found} == {"PASS": 8, "FAIL": 3, "INVALID": 1}
    assert all(a == {**NEW, "output": "y", "verdict": a["verdict"]} for a, _ in found)


def test_counters_begin_with_each_life(tmp_path):
    """What earlier lives counted is evidence, and no burst of this one's."""
    for life in range(2):
        store = Store.open(tmp_path, clock := Clock())
        evidence = Evidence("unsaved", clock)
        evidence.load(store)
        ledger = Ledger(evidence)
        evidence.add(KEY, {"n": 3, "wrong": 0})
        total = ledger.note({}, {"compared": 3})
        assert total["compared"] == 3 * (life + 1)
        source = measured(evidence)
        assert [value for _, value in told(source, instruments.COMPARISON_RESULTS)] == [3]
        assert [value for _, value in told(source, instruments.MIRROR_EXCHANGES)] == [3]
        assert evidence.flush(store)
        store.close()


def test_rates_and_bounds_of_pairs_that_are_judged(evidence):
    blocked, versions = (
        pair(output(0.5, 1.0), blocked="no"),
        pair(output(0.5, 1.0), purpose="versions"),
    )
    source = measured(evidence, blocked, versions, pair(output(None, 1.0)), pair(output(0.1, 0.4)))
    assert told(source, instruments.DISAGREEMENT_RATE) == [({**NEW, "output": "y"}, 0.1)]
    assert told(source, instruments.DISAGREEMENT_BOUND) == [({**NEW, "output": "y"}, 0.4)]


def test_executions_of_copies_and_ratios_of_answers(evidence):
    tally = Tally()
    for ns in (50_000, 50_001, 10**12):
        tally.execution("m:2/int8", ns)
    tally.sqnr("m:2/int8", "y", np.array([20.0, 20.5, math.inf, math.nan, -5.0]))
    tally.sqnr("m:2/int8", "y", np.array([math.nan]))
    points = {p.instrument.name: p for p in measured(evidence, tally=tally).points()}
    executions = points["model_sidecar.inference.duration"]
    assert executions.attributes == {**NEW, "role": "mirror", "stage": "execute"}
    assert (executions.counts[0], executions.counts[1], executions.counts[-1]) == (1, 1, 1)
    assert executions.sum == pytest.approx(1000.000100001)
    ratios = points["model_sidecar.comparison.sqnr"]
    assert ratios.attributes == {**NEW, "output": "y"}
    bounds = instruments.SQNR_BUCKETS_DB
    expected = {bounds.index(20.0): 1, bounds.index(30.0): 1, len(bounds): 1, 0: 1}
    assert {at: count for at, count in enumerate(ratios.counts) if count} == expected
    assert ratios.sum == 20.0 + 20.5 + bounds[-1] - 5.0


def test_a_variants_key_is_told_in_parts():
    assert variant_attributes("m:2/int8") == NEW
