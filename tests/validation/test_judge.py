"""The rules from measurements to verdicts, on numbers made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from validators.judge import Measured, Terms, judge_run, judge_sets, judge_variant, summarize
from validators.limits import Limit
from validators.results import (
    GroupResult,
    InputSet,
    LabelResult,
    OutputResult,
    RunResult,
    RunSettings,
    VariantResult,
)
from validators.verdict import Verdict

LIMIT = Limit("max_abs", "<=", 1.0)
TERMS = Terms(0.01, 0.05)


def measured(rows, bad=(), invalid=()):
    """An output of ``rows`` rows, of which some are over the limit or not finite."""
    values = np.zeros(rows)
    values[list(bad)] = 2.0
    mask = np.zeros(rows, np.bool_)
    mask[list(invalid)] = True
    values[mask] = np.nan
    return Measured("y", "tensor", invalid=mask, metrics={"max_abs": values})


def judged(kind, one, **more):
    sets = {"set": InputSet("set", kind, "made", one.rows, **more)}
    return judge_sets({"set": [(one, [LIMIT])]}, sets, TERMS)[0].outputs[0]


@pytest.mark.parametrize(
    ("rows", "bad", "verdict"),
    [
        (299, 0, Verdict.PASS),
        (298, 0, Verdict.INCONCLUSIVE),
        (473, 1, Verdict.PASS),
        (472, 1, Verdict.INCONCLUSIVE),
        (400, 12, Verdict.FAIL),
        (1, 1, Verdict.FAIL),
        (0, 0, Verdict.INVALID),
    ],
)
def test_given_data_are_certified(rows, bad, verdict):
    found = judged("data", measured(rows, range(bad)))
    assert (found.verdict, found.disagreements) == (verdict, bad)
    assert (found.certificate is None) == (rows == 0)
    assert found.reasons


@pytest.mark.parametrize(
    ("rows", "bad", "verdict"),
    [
        (64, 0, Verdict.PASS),
        (64, 1, Verdict.FAIL),
        (100, 1, Verdict.PASS),
        (100, 2, Verdict.FAIL),
        (0, 0, Verdict.INVALID),
    ],
)
def test_generated_rows_are_held_to_the_same_share_without_a_certificate(rows, bad, verdict):
    found = judged("random", measured(rows, range(bad)))
    assert (found.verdict, found.certificate) == (verdict, None)


def test_a_row_finite_on_one_side_only_is_invalid_whatever_else():
    for kind in ("data", "random"):
        found = judged(kind, measured(10_000, (), [17]))
        assert found.verdict is Verdict.INVALID
        assert found.reasons[0] == "1 row is not finite on one side only (the first: row 17)"
        assert found.disagreements == 1


def test_of_nonfinite_inputs_only_masks_are_judged():
    assert judged("nonfinite", measured(4, range(4))).verdict is Verdict.PASS
    assert judged("nonfinite", measured(4, (), [1])).verdict is Verdict.INVALID


def test_problems_are_invalid_and_keep_nothing_else():
    found = judged("data", Measured("y", "tensor", problems=["the candidate lacks it"]))
    assert found.verdict is Verdict.INVALID
    assert found.reasons == found.problems == ["the candidate lacks it"]


@pytest.mark.parametrize(
    ("origin_bad", "bad", "invalid", "verdict", "said"),
    [
        ((), (), (), Verdict.PASS, "0 of 6 rows agree in data and not in these batches"),
        ((0, 1, 2), (0, 1, 3), (), Verdict.PASS, "(3 more disagree there too)"),
        ((), (0,), (), Verdict.FAIL, "in batches of 1 rows, half of the rows or more do so"),
        ((), (3, 4, 5), (), Verdict.FAIL, "in batches of 3 rows"),
        ((), (4,), (), Verdict.FAIL, "1 of 6 rows agree in data"),
        ((), (), (2,), Verdict.INVALID, "1 row is not finite on one side only"),
    ],
)
def test_batches_answer_for_what_they_change(origin_bad, bad, invalid, verdict, said):
    # Batches of 1, 2 and 3: rows 0 | 1, 2 | 0, 1, 2 of the origin.
    batch = InputSet("batch", "batch", "made", 6, batch_sizes=[1, 2, 3], origin="data",
                     origin_rows=[0, 1, 2, 0, 1, 2])  # fmt: skip
    sets = {"data": InputSet("data", "data", "given", 400), "batch": batch}
    both = {
        "data": [(measured(400, origin_bad), [LIMIT])],
        "batch": [(measured(6, bad, invalid), [LIMIT])],
    }
    found = judge_sets(both, sets, TERMS)[1].outputs[0]
    assert found.verdict is verdict
    assert any(said in reason for reason in found.reasons), found.reasons


def test_rows_that_were_invalid_before_are_not_the_batches_fault():
    batch = InputSet("batch", "batch", "made", 1, batch_sizes=[1], origin="data", origin_rows=[3])
    sets = {"data": InputSet("data", "data", "given", 400), "batch": batch}
    both = {"data": [(measured(400, (), [3]), [LIMIT])],
            "batch": [(measured(1, (), [0]), [LIMIT])]}  # fmt: skip
    groups = judge_sets(both, sets, TERMS)
    assert [group.verdict for group in groups] == [Verdict.INVALID, Verdict.PASS]


# --- variants and runs ----------------------------------------------------------------------------


def variant(*groups, labels=None, errors=()):
    made = VariantResult("1/v", "onnxruntime", groups=list(groups), errors=list(errors))
    made.labels = labels
    judge_variant(made)
    return made


def group(verdict, *, decides=True, problems=(), certificate=None, name="y"):
    output = OutputResult(name, "tensor", verdict=verdict, problems=list(problems))
    output.reasons = ["said"]
    output.certificate = certificate
    return GroupResult("set", [output], decides=decides)


def labels(verdict, output="y"):
    return LabelResult(output, 400, 1, 1, 1, 0, 0, 0.01, verdict=verdict, reasons=["said"])


def test_a_group_that_does_not_decide_warns():
    made = variant(group(Verdict.PASS), group(Verdict.FAIL, decides=False))
    assert made.verdict is Verdict.PASS
    assert made.warnings == ["set, 'y': said"]
    assert made.reasons == []


def test_structure_decides_everywhere():
    made = variant(group(Verdict.PASS), group(Verdict.INVALID, decides=False, problems=["gone"]))
    assert made.verdict is Verdict.INVALID


def test_errors_are_invalid_and_nothing_is_never_a_pass():
    assert variant(group(Verdict.PASS), errors=["it raised"]).verdict is Verdict.INVALID
    nothing = variant()
    assert (nothing.verdict, nothing.reasons) == (Verdict.INVALID, ["nothing was compared"])


@pytest.mark.parametrize(
    ("output", "of_labels", "of_output", "verdict"),
    [
        ("y", Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.PASS),
        ("y", Verdict.PASS, Verdict.FAIL, Verdict.FAIL),
        ("y", Verdict.PASS, Verdict.INVALID, Verdict.INVALID),
        ("y", Verdict.FAIL, Verdict.PASS, Verdict.FAIL),
        ("y", Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE),
        ("z", Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE),
    ],
)
def test_labels_settle_only_what_is_open_in_their_output(output, of_labels, of_output, verdict):
    made = variant(group(of_output, certificate={}), labels=labels(of_labels, output))
    assert made.verdict is verdict


def result(*variants_, kinds=("data",)):
    settings = RunSettings("production", 0.01, 0.05, 0)
    made = RunResult("m", "now", "0", "", settings, "1/r", variants=list(variants_))
    made.inputs = [InputSet(kind, kind, "", 1) for kind in kinds]
    judge_run(made)
    return made


def test_a_run_is_as_good_as_its_worst_variant_and_no_better_than_its_reference():
    reference = VariantResult("1/r", "pytorch", is_reference=True, verdict=Verdict.PASS)
    good = VariantResult("1/a", "onnxruntime", verdict=Verdict.PASS)
    bad = VariantResult("1/b", "onnxruntime", verdict=Verdict.FAIL, reasons=["said"])
    assert result(reference, good).verdict is Verdict.PASS
    assert result(reference, good, bad).verdict is Verdict.FAIL
    assert result(reference, good, bad).reasons == ["1/b: said"]
    assert result(reference).verdict is Verdict.INVALID, "nothing was compared with it"
    assert result(reference, good, kinds=("random",)).reasons[0].startswith("no data was given")
    reference.errors = ["it did not answer"]
    assert result(reference, good).verdict is Verdict.INVALID


def test_summaries_hold_infinities_and_leave_nan_out():
    found = summarize(np.array([3, np.inf, 1, np.nan, 2]), over=1, unit="dB", worse="lower")
    assert (found.count, found.min, found.p50, found.max) == (4, 1, 2, math.inf)
    assert found.violations == 1
    assert summarize(np.full(3, np.nan)).count == 0
    values = np.random.default_rng(0).normal(size=999)
    found = summarize(values)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        assert value == np.quantile(values, share, method="inverted_cdf")
