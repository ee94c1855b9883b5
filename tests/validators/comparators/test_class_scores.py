"""Class scores: flips, margins, ties, probabilities; against scipy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from scipy import special, stats

from validators.comparators import build, make_policy
from validators.compare import compare_outputs


def metrics(reference, candidate, **options):
    found = build("class_scores", options).compare(np.asarray(reference), np.asarray(candidate))
    return {name: values.tolist() for name, values in found.metrics.items()}


# --- flips ----------------------------------------------------------------------------------------


def test_a_flip_is_another_top_class():
    reference = [[1, 5, 2], [7, 1, 2], [1, 2, 3.0]]
    candidate = [[4, 5, 2], [1, 7, 2], [9, 2, 3.0]]
    found = metrics(reference, candidate)
    assert found["flip"] == [0, 1, 1]
    assert found["margin"] == [3, 5, 1]


def test_decisive_flips_are_told_from_near_ties():
    reference = [[10, 9.95, 0], [10, 5, 0.0]]  # 1 % of the spread of 10 is 0.1
    candidate = [[9.95, 10, 0], [5, 10, 0.0]]
    found = metrics(reference, candidate)
    assert found["flip"] == [1, 1]
    assert found["near_tie_flip"] == [1, 0]
    assert found["decisive_flip"] == [0, 1]
    assert metrics(reference, candidate, noise_margin=0)["near_tie_flip"] == [0, 0]
    assert metrics(reference, candidate, noise_margin=5)["near_tie_flip"] == [1, 1]


def test_the_noise_margin_of_probabilities_is_a_percent():
    reference = [[0.505, 0.495], [0.51, 0.49]]
    candidate = [[0.4, 0.6], [0.4, 0.6]]
    found = metrics(reference, candidate)
    assert found["near_tie_flip"] == [0, 0]  # margins of 0.01 (rounded up) and 0.02
    assert metrics([[0.504, 0.496]], [[0.4, 0.6]])["near_tie_flip"] == [1]


def test_ties_go_to_the_lowest_index_as_argmax_does_and_are_told():
    found = metrics(
        [[3, 3, 1], [3, 3, 1], [1, 3, 2], [0, 0, 0.0]],
        [[4, 3, 1], [3, 4, 1], [3, 3, 2], [0, 0, 0.0]],
    )
    assert found["flip"] == [0, 1, 1, 0]
    assert found["near_tie_flip"] == [0, 1, 0, 0]  # the third was decided by 1 of a spread of 2
    assert found["tie"] == [1, 1, 1, 1]
    assert found["margin"] == [0, 0, 1, 0]
    assert metrics([[1, 2, 3.0]], [[1, 2, 3.0]])["tie"] == [0]


def test_the_default_limit_is_no_flip():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((200, 10)).astype(np.float32)
    candidate = (reference + 0.2 * rng.standard_normal(reference.shape)).astype(np.float32)
    policy = make_policy("class_scores", "int8")
    found = compare_outputs({"y": reference}, {"y": candidate}, {"y": policy})["y"]
    flips = reference.argmax(axis=1) != candidate.argmax(axis=1)
    assert 0 < flips.sum() < 100
    np.testing.assert_array_equal(found.disagrees(policy.limits), flips)
    assert found.sketches["flip_margin"].count == flips.sum()
    assert found.sketches["margin"].count == 200


def test_a_flip_needs_a_margin_of_at_most_twice_the_error():
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((5000, 10))
    candidate = reference + 0.05 * rng.standard_normal(reference.shape)
    found = build("class_scores").compare(reference, candidate)
    worst = np.abs(candidate - reference).max(axis=1)
    flipped = found.metrics["flip"] == 1
    assert flipped.any()
    assert (found.metrics["margin"][flipped] <= 2 * worst[flipped]).all()


# --- several decisions in a row -------------------------------------------------------------------


def test_a_row_of_several_decisions_gives_shares_and_the_worst():
    reference = np.zeros((2, 4, 3))
    reference[..., 1] = 5
    candidate = reference.copy()
    candidate[0, 0] = 0, 0, 6
    found = metrics(reference, candidate, k=1)
    assert found["flip"] == [0.25, 0]
    assert found["top_k_overlap"] == [0, 1]
    assert found["max_dp"][0] > 0.9
    assert found["max_dp"][1] == 0
    assert found["margin"] == [5, 5]


def test_classes_may_be_on_another_axis():
    """[rows, classes, height, width], as segmentation gives them."""
    rng = np.random.default_rng(2)
    reference, candidate = rng.standard_normal((2, 3, 5, 4, 6))
    last = metrics(np.moveaxis(reference, 1, -1), np.moveaxis(candidate, 1, -1))
    assert str(metrics(reference, candidate, axis=1)) == str(last)  # NaN is in it
    flips = reference.argmax(axis=1) != candidate.argmax(axis=1)
    np.testing.assert_allclose(last["flip"], flips.reshape(3, -1).mean(axis=1))


@pytest.mark.parametrize("shape", [(3, 40_000), (5000, 11), (2, 3000, 7)])
def test_large_outputs_are_judged_in_pieces_without_a_seam(shape):
    rng = np.random.default_rng(3)
    reference = rng.standard_normal(shape).astype(np.float32)
    candidate = reference + np.float32(0.3) * rng.standard_normal(shape).astype(np.float32)
    flips = reference.argmax(axis=-1) != candidate.argmax(axis=-1)
    found = metrics(reference, candidate)
    np.testing.assert_allclose(found["flip"], flips.reshape(shape[0], -1).mean(axis=1))
    top = np.sort(reference, axis=-1)
    margins = (top[..., -1].astype(np.float64) - top[..., -2]).reshape(shape[0], -1)
    np.testing.assert_allclose(found["margin"], margins.min(axis=1))


# --- probabilities --------------------------------------------------------------------------------


def test_divergence_is_that_of_scipy():
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((2, 50, 20)) * 3
    p, q = special.softmax(logits, axis=-1)
    wanted = {"kl": stats.entropy(p, q, axis=1), "max_dp": np.abs(p - q).max(axis=1)}
    sides = {"logits": logits, "probabilities": (p, q), "log_probabilities": np.log((p, q))}
    for form, (left, right) in sides.items():
        for options in ({}, {"scores": form}):
            found = metrics(left, right, **options)
            for name, values in wanted.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-9, err_msg=form)


def test_sums_of_narrow_floats_still_look_like_probabilities():
    rng = np.random.default_rng(5)
    p = special.softmax(rng.standard_normal((100, 1000)), axis=1).astype(ml_dtypes.bfloat16)
    declared, inferred = (metrics(p, p[::-1], **each) for each in ({"scores": "probabilities"}, {}))
    assert inferred["kl"] == declared["kl"]


def test_scores_in_0_to_1_that_do_not_add_up_are_logits():
    scores = np.array([[0.9, 0.8, 0.1]])
    found, declared = metrics(scores, scores / 2), metrics(scores, scores / 2, scores="logits")
    assert str(found) == str(declared)  # NaN is in it


def test_a_probability_rounded_to_zero_is_no_infinite_divergence():
    found = metrics([[0.999, 0.001]], [[1.0, 0.0]])
    assert found["kl"][0] == pytest.approx(0.001 * np.log(0.001 / 1e-12), rel=0.1)


def test_huge_logits_do_not_overflow():
    found = metrics([[1e30, 0, -1e30]], [[1e30, 0, -1e30]])
    assert found["kl"] == [0]
    assert found["max_dp"] == [0]
    assert metrics([[1e30, 0, -1e30]], [[0, 1e30, -1e30]])["max_dp"] == [1]


def test_top_k_overlap():
    reference = [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0.0]]
    assert metrics(reference, [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0.0]])["top_k_overlap"] == [1]
    assert metrics(reference, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9.0]])["top_k_overlap"] == [0]
    assert metrics(reference, [[9, 8, 7, 6, 1, 2, 3, 4, 5, 0.0]])["top_k_overlap"] == [0.8]
    assert metrics(reference, [[9, 8, 0, 0, 0, 0, 0, 0, 0, 7.0]], k=3)["top_k_overlap"] == [2 / 3]
    assert np.isnan(metrics([[1, 2, 3.0]], [[1, 2, 3.0]])["top_k_overlap"]).all()


# --- values that are not finite -------------------------------------------------------------------


def test_masked_classes_stay_masked():
    """-inf on both sides, as a model that forbids classes gives it."""
    masked = np.array([[1, -np.inf, 3], [-np.inf, -np.inf, 2]])
    found = metrics(masked, masked + np.array([0.5, 0, 0]))
    assert found["flip"] == [0, 0]
    assert found["kl"][0] > 0
    assert found["kl"][1] == 0
    assert not np.isnan(found["max_dp"]).any()


def test_nan_on_both_sides_is_never_the_top_class():
    reference = np.array([[np.nan, 1, 5], [np.nan, 1, 5]])
    candidate = np.array([[np.nan, 2, 5], [np.nan, 6, 5]])
    assert metrics(reference, candidate)["flip"] == [0, 1]
    nothing = np.full((2, 3), np.nan)
    assert metrics(nothing, nothing)["flip"] == [0, 0]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (4,),
            {},
            r"needs \[rows, classes\], not \(4,\); .* of kind `regression`",
        ),
        ((4, 1), {}, r"a single class on axis -1, so there is nothing to choose"),
        ((4, 1, 9), {"axis": 1}, r"a single class on axis 1"),
        ((4, 3), {"axis": 2}, r"shape \(4, 3\) has no axis 2 after the rows"),
        ((4, 3), {"axis": -2}, r"shape \(4, 3\) has no axis -2 after the rows"),
    ],
)
def test_shapes_without_a_choice_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        build("class_scores", options).compare(np.ones(shape), np.ones(shape))


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"k": 2.5},
        {"k": True},
        {"axis": 0},
        {"axis": "last"},
        {"noise_margin": -1},
        {"noise_margin": "small"},
        {"noise_margin": float("nan")},
        {"scores": "softmax"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=rf"class_scores: `{next(iter(options))}`"):
        build("class_scores", options)
