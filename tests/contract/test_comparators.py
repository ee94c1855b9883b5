"""What every comparator keeps to, whoever wrote it: a new line in `BUILTIN` is tested here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from validators.comparators import (
    BUILTIN,
    build,
    check_policy,
    comparator_class,
    default_limits,
    make_policy,
    metric_specs,
)
from validators.compare import compare_outputs
from validators.dtypes import dtype_class
from validators.limits import PRECISIONS, limits_hash
from validators.sketches import LogHistogram

pytestmark = pytest.mark.parametrize("kind", BUILTIN)

#: A value of each class of dtypes.
SAMPLES = {
    "float": np.float32(1),
    "int": np.int64(1),
    "bool": np.True_,
    "string": np.array(b"a", dtype=object),
    "complex": np.complex64(1),
}


def example(kind, seed=0):
    return comparator_class(kind).example(np.random.default_rng(seed))


def outcome(kind, reference, candidate):
    policy = make_policy(kind, "fp32")
    found = compare_outputs({"y": reference}, {"y": candidate}, {"y": policy})["y"]
    return found, policy.limits


def same_metrics(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        # Another order of the rows or of memory may add in another order.
        np.testing.assert_allclose(values, other[name], rtol=1e-5, atol=1e-6, err_msg=name)


# --- what it says about itself --------------------------------------------------------------------


def test_it_describes_its_metrics(kind):
    chosen = comparator_class(kind)
    assert chosen.kind == kind
    assert chosen.metrics
    assert len(metric_specs(kind)) == len(chosen.metrics), "two metrics share a name"
    for spec in chosen.metrics:
        assert spec.worse in {"higher", "lower"}
        assert spec.name.isidentifier()
        assert spec.help
        assert spec.unit


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_has_default_limits_for_every_precision(kind, precision):
    limits = default_limits(kind, precision)
    assert limits
    specs = metric_specs(kind)
    for limit in limits:
        assert limit.op == ("<=" if specs[limit.metric].worse == "higher" else ">=")
        assert limit.source == "default"
    assert limits_hash(limits) == limits_hash(reversed(limits))


def test_a_lower_precision_is_never_judged_more_strictly(kind):
    order = ("fp32", "tf32", "fp16", "bf16", "int8")
    by_precision = [{limit.metric: limit for limit in default_limits(kind, p)} for p in order]
    for tight, loose in itertools.pairwise(by_precision):
        for metric in tight.keys() & loose.keys():
            assert not loose[metric].violated(tight[metric].value)


def test_its_default_options_are_good_and_unknown_ones_are_named(kind):
    build(kind, dict(comparator_class(kind).options))
    with pytest.raises(ValueError, match=r"no option 'nonsense'; known: "):
        build(kind, {"nonsense": 1})
    with pytest.raises(ValueError, match=r"output 'y': .*no option 'nonsense'"):
        check_policy("y", kind, None, {"nonsense": 1})


def test_an_unknown_metric_is_named_with_the_known_ones(kind):
    with pytest.raises(ValueError, match=rf"{kind} has no metric 'nonsense'; known: "):
        make_policy(kind, "fp32", {"nonsense": 1})


# --- what it measures -----------------------------------------------------------------------------


def test_it_measures_every_metric_of_every_row(kind):
    reference, equal, worse = example(kind)
    for candidate in (reference, equal, worse):
        found = build(kind).compare(reference, candidate)
        assert found.rows == reference.shape[0] >= 2
        assert found.metrics.keys() == metric_specs(kind).keys()
        for name, values in found.metrics.items():
            assert isinstance(values, np.ndarray), name
            assert values.dtype == np.float64, name
            assert values.shape == (found.rows,), name
        assert all(isinstance(sketch, LogHistogram) for sketch in found.sketches.values())


@pytest.mark.parametrize("seed", range(3))
def test_limits_tell_equal_from_worse(kind, seed):
    reference, equal, worse = example(kind, seed)
    for candidate, expected in ((reference, False), (equal, False), (worse, True)):
        found, limits = outcome(kind, reference, candidate)
        assert found.problems == ()
        assert found.disagrees(limits).tolist() == [expected] * found.rows, found.metrics


def test_metrics_belong_to_their_rows(kind):
    reference, _, worse = example(kind)
    mixed = reference.copy()
    if mixed.shape == worse.shape:
        mixed[::2] = worse[::2]
    order = np.random.default_rng(5).permutation(reference.shape[0])
    straight = build(kind).compare(reference, mixed).metrics
    shuffled = build(kind).compare(reference[order], mixed[order]).metrics
    same_metrics({name: values[order] for name, values in straight.items()}, shuffled)


def test_inputs_are_left_alone(kind):
    reference, _, worse = example(kind)
    before = reference.copy(), worse.copy()
    reference.flags.writeable = worse.flags.writeable = False
    build(kind).compare(reference, worse)
    np.testing.assert_array_equal(reference, before[0])
    np.testing.assert_array_equal(worse, before[1])


def test_the_order_in_memory_is_no_matter(kind):
    reference, equal, _ = example(kind)
    straight = build(kind).compare(reference, equal).metrics
    other = build(kind).compare(np.asfortranarray(reference), np.asfortranarray(equal)).metrics
    same_metrics(straight, other)
    wide = np.repeat(reference, 2, axis=0)[::2], np.repeat(equal, 2, axis=0)[::2]
    same_metrics(straight, build(kind).compare(*wide).metrics)


def test_it_can_be_used_again(kind):
    reference, equal, worse = example(kind)
    comparator = build(kind)
    first = comparator.compare(reference, equal).metrics
    comparator.compare(reference, worse)
    same_metrics(first, comparator.compare(reference, equal).metrics)


def test_sketches_of_parts_merge_into_that_of_the_whole(kind):
    reference, _, worse = example(kind)
    whole = build(kind).compare(reference, worse).sketches
    half = reference.shape[0] // 2
    parts = [
        build(kind).compare(reference[part], worse[part]).sketches
        for part in (slice(None, half), slice(half, None))
    ]
    for name, sketch in whole.items():
        assert LogHistogram().merge(parts[0][name]).merge(parts[1][name]) == sketch, name


# --- what it refuses ------------------------------------------------------------------------------


def test_other_rows_no_rows_and_scalars_are_refused(kind):
    reference, equal, _ = example(kind)
    comparator = build(kind)
    with pytest.raises(ValueError, match="broadcast"):
        comparator.compare(reference, equal[:1])
    with pytest.raises(ValueError, match="no rows"):
        comparator.compare(reference[:0], equal[:0])
    scalar = reference.reshape(-1)[0]
    with pytest.raises(ValueError, match=r"no rows|scalar"):
        comparator.compare(np.asarray(scalar), np.asarray(scalar))


def test_values_of_a_class_that_it_does_not_take_are_a_problem(kind):
    reference, _, _ = example(kind)
    accepts = comparator_class(kind).accepts
    assert dtype_class(reference.dtype) in accepts
    refused = SAMPLES.keys() - accepts
    assert refused
    for name in refused:
        array = np.full((2, 3), SAMPLES[name])
        found, limits = outcome(kind, array, array)
        assert len(found.problems) == 1
        assert name in found.problems[0]
        assert found.disagrees(limits).size == 0


def test_a_value_that_is_not_finite_on_one_side_makes_its_row_invalid(kind):
    reference, equal, _ = example(kind)
    if dtype_class(equal.dtype) != "float":
        pytest.skip("its values have no NaN")
    for value in (np.nan, np.inf, -np.inf):
        broken = equal.copy()
        broken.reshape(broken.shape[0], -1)[1, 0] = value
        found, limits = outcome(kind, reference, broken)
        assert found.problems == ()
        assert found.invalid.nonzero()[0].tolist() == [1]
        assert found.disagrees(limits)[1]
        assert all(np.isnan(values[1]) for values in found.metrics.values())
        backwards, _ = outcome(kind, broken, reference)
        assert backwards.invalid.nonzero()[0].tolist() == [1]
