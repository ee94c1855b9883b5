"""Limits: their text, their direction, NaN and infinity, defaults, and the hash of a set."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from sidecar.config_validation import OutputKind, Precision
from validators.comparators import BUILTIN, check_policy, comparator_class, make_policy
from validators.comparators.base import MetricSpec
from validators.limits import PRECISIONS, Limit, default_limits, limits_hash, parse_limit

ERROR = MetricSpec("error", "1", "higher", "how far off")
QUALITY = MetricSpec("quality", "dB", "lower", "how good")


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("<= 0.01", 0.01), ("<=.5", 0.5), (" 1e-3 ", 1e-3), ("3.", 3), (2, 2.0), (0.25, 0.25)],
)
def test_a_limit_on_an_error_is_an_upper_one(text, value):
    assert parse_limit("error", text, ERROR) == Limit("error", "<=", value, "config")


@pytest.mark.parametrize("text", [">= 40", ">=40", "40", 40, "4e1", " 40.0"])
def test_a_limit_on_a_quality_is_a_lower_one(text):
    assert parse_limit("quality", text, QUALITY) == Limit("quality", ">=", 40, "config")


def test_the_wrong_direction_is_refused_with_the_right_one():
    with pytest.raises(ValueError, match=r"'quality'.*wrong way; lower is worse, so write >= 40"):
        parse_limit("quality", "<= 40", QUALITY)
    with pytest.raises(ValueError, match=r"'error'.*higher is worse, so write <= 1e-3"):
        parse_limit("error", ">= 1e-3", ERROR)


@pytest.mark.parametrize("text", ["", "<", "== 3", "< 3", "3 dB", "0x10", "1_000", "- 3", "nan"])
def test_other_text_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"'error'.*is not a limit; write a number, or <= and one"):
        parse_limit("error", text, ERROR)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1e999", True, None, [1]])
def test_a_limit_that_would_judge_nothing_is_refused(value):
    with pytest.raises(ValueError, match="limit of 'error'"):
        parse_limit("error", value, ERROR)


# --- judging --------------------------------------------------------------------------------------


def test_on_the_limit_is_within_and_nan_does_not_apply():
    values = np.array([0.9, 1.0, 1.1, np.nan, np.inf, -np.inf])
    assert Limit("m", "<=", 1).violated(values).tolist() == [False, False, True, False, True, False]
    assert Limit("m", ">=", 1).violated(values).tolist() == [True, False, False, False, False, True]


def test_a_limit_prints_as_it_is_written():
    assert str(Limit("max_rel_rms", "<=", 1e-4)) == "max_rel_rms <= 0.0001"


# --- defaults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "sqnr_db", "max_rel_rms"),
    [
        ("fp32", 100, 1e-4),
        ("tf32", 60, 1e-2),
        ("fp16", 50, 2e-2),
        ("bf16", 35, 1e-1),
        ("int8", 20, 0.5),
    ],
)
def test_the_table_for_float_tensors(precision, sqnr_db, max_rel_rms):
    assert default_limits("tensor", precision) == (
        Limit("sqnr_db", ">=", sqnr_db),
        Limit("max_rel_rms", "<=", max_rel_rms),
    )


def test_the_table_for_other_kinds():
    one = {kind: {str(each) for each in default_limits(kind, "fp32")} for kind in BUILTIN}
    assert one["class_scores"] == {"flip <= 0"}
    assert one["regression"] == {"delta_units <= 1"}
    assert one["exact"] == {"not_equal <= 0"}
    assert one["boxes"] == {"f1 >= 0.99"}
    assert one["masks"] == {"iou >= 0.99"}


def test_an_unknown_precision_or_kind_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no precision 'fp8'; known: fp64, fp32, .*int8"):
        default_limits("tensor", "fp8")
    with pytest.raises(ValueError, match=r"no kind of output 'floats'; known: tensor, class_sc"):
        default_limits("floats", "fp32")


def test_the_config_knows_the_same_kinds_and_precisions():
    assert set(get_args(OutputKind)) == set(BUILTIN)
    assert set(get_args(Precision)) == set(PRECISIONS)


# --- the hash -------------------------------------------------------------------------------------


def test_the_hash_changes_with_what_is_judged_and_with_nothing_else():
    base = (Limit("a", "<=", 1), Limit("b", ">=", 2))
    assert limits_hash(base) == limits_hash(base[::-1])
    assert limits_hash(base) == limits_hash([Limit("a", "<=", 1.0, "config"), base[1]])
    others = [
        (),
        base[:1],
        (Limit("a", "<=", 1 + 1e-15), base[1]),
        (Limit("a", ">=", 1), base[1]),
        (Limit("c", "<=", 1), base[1]),
    ]
    hashes = {limits_hash(limits) for limits in (base, *others)}
    assert len(hashes) == 1 + len(others)
    assert all(len(each) == 12 and int(each, 16) >= 0 for each in hashes)


# --- policies -------------------------------------------------------------------------------------


def test_a_policy_takes_the_defaults_or_what_is_given():
    assert make_policy("tensor", "int8").limits == default_limits("tensor", "int8")
    given = make_policy("tensor", "int8", {"cosine": 0.99}, inferred="it looked like one")
    assert given.limits == (Limit("cosine", ">=", 0.99, "config"),)
    assert given.inferred == "it looked like one"
    with pytest.raises(ValueError, match="limits are empty"):
        make_policy("tensor", "int8", {})


def test_a_good_policy_passes_the_check():
    check_policy("y", "tensor", {"sqnr_db": ">= 40"}, {})
    check_policy("y", "class_scores", None, {"k": 3})
    check_policy("y", None, None, {})
    check_policy("y", None, {"flip": "<= 0"}, {"k": 2})


@pytest.mark.parametrize(
    ("kind", "limits", "options", "message"),
    [
        ("tensor", {"flip": 0}, {}, r"output 'y': tensor has no metric 'flip'; known: sqnr_db"),
        ("tensor", None, {"k": 3}, r"output 'y': tensor has no option 'k'; known: none"),
        ("nothing", None, {}, r"output 'y': no kind of output 'nothing'; known: tensor"),
        ("tensor", {"sqnr_db": "<= 3"}, {}, r"output 'y': limit of 'sqnr_db'.*wrong way"),
        (None, {"nonsense": 0}, {}, r"output 'y': fits no kind of output: .*Name its `kind`"),
        (None, {"flip": 0, "sqnr_db": 3}, {}, r"output 'y': fits no kind of output"),
    ],
)
def test_a_bad_policy_is_refused_with_its_output(kind, limits, options, message):
    with pytest.raises(ValueError, match=message):
        check_policy("y", kind, limits, options)


def test_a_comparator_is_imported_once():
    assert comparator_class("tensor") is comparator_class("tensor")
