"""Whole answers: structure, values that are not finite, and what Polygraphy lets through."""

from __future__ import annotations

from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest

from validators import compare
from validators.comparators import make_policy
from validators.comparators.base import Comparator, Comparison, MetricSpec
from validators.compare import OutputComparison, compare_outputs
from validators.limits import Limit

TENSOR = make_policy("tensor", "fp32")
EXACT = make_policy("exact", "fp32")
ONES = np.ones((3, 4), np.float32)


def problem(reference, candidate, policy=TENSOR):
    """The only problem of the only output."""
    found = compare_outputs({"y": reference}, {"y": candidate}, {"y": policy})["y"]
    assert found.rows == 0
    assert found.invalid.size == 0
    assert found.metrics == {}
    assert found.sketches == {}
    assert found.disagrees(policy.limits).size == 0
    (only,) = found.problems
    return only


def disagreeing(reference, candidate, policy=TENSOR):
    found = compare_outputs({"y": reference}, {"y": candidate}, {"y": policy})["y"]
    assert found.problems == ()
    assert found.rows == reference.shape[0]
    return found.disagrees(policy.limits).tolist()


# --- structure ------------------------------------------------------------------------------------


def test_a_missing_output_is_a_problem():
    policies = {"a": TENSOR, "b": TENSOR}
    found = compare_outputs({"a": ONES, "b": ONES}, {"a": ONES}, policies)
    assert found["a"].problems == ()
    assert found["b"].problems == ("the candidate lacks it",)
    assert found["b"].kind == "tensor"


def test_an_extra_output_is_a_problem():
    found = compare_outputs({"a": ONES}, {"a": ONES, "b": ONES}, {"a": TENSOR})
    assert found["a"].problems == ()
    assert found["b"].problems == ("the reference has no such output",)


def test_a_renamed_output_is_not_guessed_but_hinted_at():
    other = np.zeros((3, 5), np.float32)
    found = compare_outputs({"logits": ONES, "x": other}, {"out": ONES, "x": other},
                            {"logits": TENSOR, "x": TENSOR})  # fmt: skip
    hint = "has the same shape and type there: renamed?"
    assert found["logits"].problems == (f"the candidate lacks it; 'out' {hint}",)
    assert found["out"].problems == (f"the reference has no such output; 'logits' {hint}",)
    assert found["x"].problems == ()


def test_an_output_of_another_shape_is_no_hint():
    found = compare_outputs({"logits": ONES}, {"out": ONES[:, :2]}, {"logits": TENSOR})
    assert found["logits"].problems == ("the candidate lacks it",)


def test_an_output_without_a_policy_is_a_problem():
    found = compare_outputs({"a": ONES}, {"a": ONES}, {})
    assert found["a"].problems == ("no policy says how to compare it",)


def test_a_policy_for_an_output_that_nobody_has_is_a_problem():
    found = compare_outputs({"a": ONES}, {"a": ONES}, {"a": TENSOR, "typo": TENSOR})
    assert found["typo"].problems == ("neither side has this output, but a policy names it",)


@pytest.mark.parametrize("shape", [(3, 1), (3, 4, 1), (1, 4), (3, 2, 2), (12,), (3, 5), (4,)])
def test_shapes_are_never_broadcast(shape):
    for left, right in ((ONES, np.ones(shape, np.float32)), (np.ones(shape, np.float32), ONES)):
        assert problem(left, right).startswith("the reference has ")


def test_another_number_of_rows_says_both():
    assert problem(ONES, ONES[:2]) == "the reference has 3 rows, the candidate 2"


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (np.float32, np.int64, "the reference is float (float32), the candidate int (int64)"),
        (np.int8, np.bool_, "the reference is int (int8), the candidate bool (bool)"),
        (object, np.float64, "the reference is string (object), the candidate float (float64)"),
        (ml_dtypes.bfloat16, np.int32, "the reference is float (bfloat16), the candidate int"),
    ],
)
def test_another_class_of_values_is_a_problem(left, right, message):
    assert problem(np.ones((2, 2), left), np.ones((2, 2), right)).startswith(message)


def test_other_widths_of_one_class_are_compared():
    policy = make_policy("tensor", "bf16")
    for narrow in (np.float16, ml_dtypes.bfloat16, np.float64):
        assert disagreeing(ONES, ONES.astype(narrow), policy) == [False] * 3
    assert disagreeing(np.int64([[1, 2]]), np.uint8([[1, 2]]), EXACT) == [False]


def test_values_that_nothing_can_compare_are_a_problem():
    assert "cannot be compared" in problem(np.zeros((2, 2), "V4"), np.zeros((2, 2), "V4"), EXACT)
    assert problem(ONES, ONES, make_policy("token_ids", "fp32")).startswith("token_ids compares")


def test_comparing_nothing_is_never_a_pass():
    assert problem(ONES[:0], ONES[:0]) == "no rows, so nothing was compared"
    assert problem(ONES[:, :0], ONES[:, :0]).endswith("hold no values, so nothing was compared")
    nothing = np.full((2, 3), np.nan)
    assert problem(nothing, nothing).startswith("no finite value on either side")
    assert "scalar" in problem(np.float32(1).reshape(()), np.float32(1).reshape(()))
    assert compare_outputs({}, {}, {}) == {}


def detections(boxes, seed=0):
    """Boxes [1, n, 4] and their scores [1, n], as two outputs."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (1, boxes, 2))
    places = np.concatenate([corner, corner + 20], axis=-1).astype(np.float32)
    return {"boxes": places, "scores": rng.uniform(0.5, 1, (1, boxes)).astype(np.float32)}


def test_an_output_that_another_packs_in_needs_no_policy():
    policies = {"boxes": make_policy("boxes", "fp32", options={"scores": "scores"})}
    found = compare_outputs(detections(5), detections(5), policies)
    assert list(found) == ["boxes"]
    assert not found["boxes"].disagrees(policies["boxes"].limits).any()
    other = detections(5) | {"scores": np.zeros((1, 5), np.float32)}
    assert (
        compare_outputs(detections(5), other, policies)["boxes"]
        .disagrees(policies["boxes"].limits)
        .all()
    )


def test_sides_may_differ_in_length_where_the_kind_allows_it():
    policies = {"boxes": make_policy("boxes", "fp32", options={"scores": "scores"})}
    found = compare_outputs(detections(5), detections(3), policies)["boxes"]
    assert found.problems == ()
    assert found.disagrees(policies["boxes"].limits).all()


def test_an_output_that_another_needs_is_missed_by_both():
    policies = {"boxes": make_policy("boxes", "fp32", options={"scores": "scores"})}
    lacking = {"boxes": detections(5)["boxes"]}
    found = compare_outputs(detections(5), lacking, policies)
    assert found["boxes"].problems == (
        "boxes also needs output 'scores', which is not on both sides",
    )
    assert found["scores"].problems == ("the candidate lacks it",)


# --- values that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "class_scores", "regression", "exact"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_rows_that_are_finite_on_one_side_only_are_invalid(kind, dtype):
    nan, inf = np.nan, np.inf
    left = np.array([[1, 2], [nan, 2], [1, inf], [nan, 2], [inf, 2], [inf, 2], [3, 4]], dtype)
    right = np.array([[1, 2], [1, 2], [1, 2], [nan, 2], [inf, 2], [-inf, 2], [3, nan]], dtype)
    policy = make_policy(kind, "fp32")
    found = compare_outputs({"y": left}, {"y": right}, {"y": policy})["y"]
    assert found.invalid.tolist() == [False, True, True, False, False, True, True]
    assert found.disagrees(policy.limits).tolist() == found.invalid.tolist()
    assert found.nonfinite_equal == 2
    for values in found.metrics.values():
        assert np.isnan(values[found.invalid]).all()


def test_a_sound_row_beside_an_invalid_one_is_still_judged():
    left = np.float32([[1, 2], [1, 2], [1, 2]])
    right = np.float32([[1, 2], [np.nan, 2], [1, 3]])
    found = compare_outputs({"y": left}, {"y": right}, {"y": TENSOR})["y"]
    assert found.violations(TENSOR.limits)["sqnr_db"].tolist() == [False, False, True]
    assert found.disagrees(TENSOR.limits).tolist() == [False, True, True]
    assert found.metrics["max_abs"][[0, 2]].tolist() == [0, 1]
    assert found.sketches["abs_error"].count == 4


def test_an_answer_of_nan_alone_is_invalid_in_every_row():
    found = compare_outputs({"y": ONES}, {"y": np.full_like(ONES, np.nan)}, {"y": TENSOR})["y"]
    assert found.invalid.all()
    assert found.disagrees(TENSOR.limits).all()
    assert all(np.isnan(values).all() for values in found.metrics.values())
    assert found.metrics.keys() == {spec.name for spec in compare.build("tensor").metrics}


def test_finite_values_whose_squares_are_not_are_finite():
    huge = np.full((2, 3), 1e300)
    assert disagreeing(huge, huge) == [False, False]
    assert disagreeing(huge, huge, make_policy("class_scores", "fp32")) == [False, False]


# --- limits ---------------------------------------------------------------------------------------


def test_limits_are_applied_afterwards():
    found = compare_outputs({"y": ONES}, {"y": ONES * np.float32(1.01)}, {"y": TENSOR})["y"]
    assert found.disagrees(TENSOR.limits).all()
    assert not found.disagrees(make_policy("tensor", "int8").limits).any()
    assert not found.disagrees(()).any()
    two = (Limit("max_abs", "<=", 1), Limit("max_abs", "<=", 0.001))
    assert found.violations(two)["max_abs"].all()


def test_a_limit_on_what_was_not_measured_is_an_error():
    found = compare_outputs({"y": ONES}, {"y": ONES}, {"y": TENSOR})["y"]
    with pytest.raises(ValueError, match=r"output 'y' has no metric 'flip'; measured: sqnr_db, "):
        found.disagrees([Limit("flip", "<=", 0)])


# --- comparators that fail ------------------------------------------------------------------------


class Faulty(Comparator):
    """Does what it is told to do wrong."""

    kind = "faulty"
    metrics = (MetricSpec("m", "1", "higher", "nothing"),)
    options = MappingProxyType({"fault": "raise"})
    defaults = MappingProxyType({"m": 1})

    def compare_rows(self, reference, candidate):
        if self.settings["fault"] == "raise":
            raise ZeroDivisionError("no luck")
        rows = reference.shape[0] + (self.settings["fault"] == "rows")
        return Comparison(rows, {"m": np.zeros(reference.shape[0] + 1)})

    @classmethod
    def example(cls, rng):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("fault", "message"),
    [("raise", "ZeroDivisionError: no luck"), ("rows", "3 rows"), ("metrics", "3 rows")],
)
def test_a_comparator_that_fails_is_a_problem_that_names_it(monkeypatch, fault, message):
    monkeypatch.setattr(compare, "build", lambda _kind, _options: Faulty({"fault": fault}))
    text = problem(ONES, ONES)
    assert text.startswith("the faulty comparator failed: ")
    assert message in text


def test_an_output_that_does_not_fit_its_kind_is_a_problem():
    text = problem(ONES[:, :1], ONES[:, :1], make_policy("class_scores", "fp32"))
    assert text.startswith("the class_scores comparator failed: ValueError: ")
    assert "single class" in text


def test_a_wrong_policy_is_the_configs_mistake_and_raises():
    wrong = compare.OutputPolicy("nonsense", ())
    with pytest.raises(ValueError, match="no kind of output 'nonsense'"):
        compare_outputs({"y": ONES}, {"y": ONES}, {"y": wrong})


def test_problems_leave_nothing_to_judge():
    found = OutputComparison("y", "tensor", problems=("broken",))
    assert found.violations(TENSOR.limits).keys() == {"sqnr_db", "max_rel_rms"}
    assert found.disagrees(TENSOR.limits).size == 0


# --- Polygraphy's holes ---------------------------------------------------------------------------


def polygraphy(reference, candidate, how=None):
    """Whether Polygraphy's comparison of iterations passes."""
    from polygraphy.comparator import Comparator as Peer
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.logger import G_LOGGER

    results = RunResults()
    for name, iterations in (("reference", reference), ("candidate", candidate)):
        results.append((name, [IterationResult(dict(outputs)) for outputs in iterations]))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        return bool(Peer.compare_accuracy(results, compare_func=how))


def test_hole_missing_output():
    both, one = {"a": ONES, "b": ONES}, {"a": ONES}
    assert polygraphy([both], [one])
    found = compare_outputs(both, one, {"a": TENSOR, "b": TENSOR})
    assert found["b"].problems


def test_hole_fewer_iterations():
    assert polygraphy([{"a": ONES}, {"a": ONES}], [{"a": ONES}])
    assert problem(np.concatenate([ONES, ONES]), ONES) == (
        "the reference has 6 rows, the candidate 3"
    )


def test_hole_int32_wraps():
    low = np.array([[-(2**31)]], np.int32)
    high = np.array([[2**31 - 1]], np.int32)
    assert polygraphy([{"a": low}], [{"a": high}])
    assert disagreeing(low, high) == [True]
    assert disagreeing(low, high, EXACT) == [True]


def test_hole_ten_times_under_cosine():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((4, 100)).astype(np.float32)
    from polygraphy.comparator import CosineSimilarityCompareFunc

    strict = CosineSimilarityCompareFunc(cosine_similarity_threshold=0.999)
    assert polygraphy([{"y": reference}], [{"y": 10 * reference}], strict)
    assert disagreeing(reference, 10 * reference) == [True] * 4
    embedding = make_policy("embedding", "fp32")
    assert disagreeing(reference, 10 * reference, embedding) == [True] * 4


def test_hole_bfloat16():
    reference = np.random.default_rng(0).standard_normal((4, 100)).astype(ml_dtypes.bfloat16)
    with pytest.raises(AttributeError):
        polygraphy([{"y": reference}], [{"y": reference}])
    policy = make_policy("tensor", "bf16")
    assert disagreeing(reference, reference, policy) == [False] * 4
    assert disagreeing(reference, (2 * reference).astype(ml_dtypes.bfloat16), policy) == [True] * 4


def test_hole_strings():
    reference = np.array([["cat"], ["dog"]], dtype=object)
    with pytest.raises(TypeError):
        polygraphy([{"y": reference}], [{"y": reference}])
    assert disagreeing(reference, reference, EXACT) == [False, False]
    candidate = np.array([["cat"], ["dig"]], dtype=object)
    assert disagreeing(reference, candidate, EXACT) == [False, True]
