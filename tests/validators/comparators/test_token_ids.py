"""Tokens: where two texts part, how far apart they end, and whether it was a close call."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validators.comparators import build, make_policy
from validators.compare import compare_outputs


def compare(reference, candidate, **options):
    return build("token_ids", options).compare(np.array(reference), np.array(candidate)).metrics


def test_the_first_token_that_differs_decides():
    found = compare(
        [[5, 6, 7, 8], [5, 6, 7, 8], [1, 2, 3, 4]], [[5, 6, 7, 8], [5, 6, 9, 8], [9, 2, 3, 4]]
    )
    assert found["divergence"].tolist() == [0, 1, 1]
    assert found["decisive_divergence"].tolist() == [0, 1, 1]
    assert found["prefix"].tolist() == [4, 2, 0]
    assert found["prefix_share"].tolist() == [1, 0.5, 0]
    assert found["edit_distance"].tolist() == [0, 1, 1]
    assert found["edit_share"].tolist() == [0, 0.25, 0.25]


def test_lengths_may_differ():
    found = compare([[5, 6, 7]], [[5, 6, 7, 8, 9]])
    assert found["divergence"].tolist() == [1]
    assert (found["prefix"][0], found["prefix_share"][0], found["edit_distance"][0]) == (3, 0.6, 2)
    nothing = compare(np.zeros((2, 0), int), np.zeros((2, 0), int))
    assert nothing["divergence"].tolist() == [0, 0]
    assert nothing["prefix_share"].tolist() == [1, 1]


def test_what_comes_after_the_end_and_padding_do_not_count():
    reference, candidate = [[5, 6, 2, 44, 45]], [[5, 6, 2, 0, 0]]
    assert compare(reference, candidate)["divergence"].tolist() == [1]
    assert compare(reference, candidate, end=2)["divergence"].tolist() == [0]
    padded = compare([[5, 6, 0, 7, 0, 0]], [[5, 6, 0, 7]], pad=0)
    assert padded["divergence"].tolist() == [0]
    assert padded["prefix"].tolist() == [4]  # padding within a row is a token
    assert compare([[0, 0]], [[0, 0, 0]], pad=0)["prefix"].tolist() == [0]


def levenshtein(one, other):
    row = list(range(len(other) + 1))
    for number, token in enumerate(one, start=1):
        left, row[0] = row[0], number
        for at, there in enumerate(other, start=1):
            left, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, left + (token != there))
    return row[-1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_edit_distance_is_levenshteins(one, other):
    found = compare(np.array([one], int).reshape(1, -1), np.array([other], int).reshape(1, -1))
    assert found["edit_distance"].tolist() == [levenshtein(one, other)]


def test_texts_too_long_for_an_edit_distance_have_none():
    rng = np.random.default_rng(0)
    reference, candidate = rng.integers(0, 1000, (2, 1, 2200))
    found = compare(reference, candidate)
    assert math.isnan(found["edit_distance"][0])
    assert found["divergence"].tolist() == [1]
    candidate = np.concatenate([[[1]], reference[:, :-1]], axis=1)  # long, but the same at the ends
    assert math.isnan(compare(reference, candidate)["edit_distance"][0])
    shared = reference.copy()
    shared[0, 1100] += 1
    assert compare(reference, shared)["edit_distance"].tolist() == [1]


# --- with the scores that chose them --------------------------------------------------------------


def answer(scores):
    scores = np.asarray(scores, np.float32)
    return {"ids": scores.argmax(axis=-1), "scores": scores}


def together(reference, candidate, **options):
    policy = make_policy("token_ids", "fp32", None, {"logits": "scores", **options})
    found = compare_outputs(reference, candidate, {"ids": policy})
    assert list(found) == ["ids"]
    assert found["ids"].problems == ()
    return found["ids"], policy


def test_a_close_call_is_no_decisive_divergence():
    reference = answer([
        [[9.0, 0, 0], [5.0, 4.99, 0], [0, 0, 9]],
        [[9.0, 0, 0], [5.0, 1.0, 0], [0, 0, 9]],
    ])  # fmt: skip
    candidate = answer([
        [[9.0, 0, 0], [4.99, 5.0, 0], [0, 9, 0]],
        [[9.0, 0, 0], [1.0, 5.0, 0], [0, 0, 9]],
    ])  # fmt: skip
    found, policy = together(reference, candidate)
    assert found.metrics["divergence"].tolist() == [1, 1]
    assert found.metrics["decisive_divergence"].tolist() == [0, 1]  # what follows counts no more
    assert found.disagrees(policy.limits).tolist() == [False, True]
    strict, _ = together(reference, candidate, noise_margin=0)
    assert strict.metrics["decisive_divergence"].tolist() == [1, 1]


def test_an_end_has_no_scores_and_is_decisive():
    reference = answer([[[9.0, 0], [0, 9.0]]])
    candidate = answer([[[9.0, 0], [0, 9.0], [0, 9.0]]])
    assert together(reference, candidate)[0].metrics["decisive_divergence"].tolist() == [1]


def test_scores_that_are_not_finite_choose_nothing_clearly():
    scores = np.array([[[np.nan, np.nan], [-np.inf, 3.0]]], np.float32)
    packed = build("token_ids", {"logits": "scores"}).gather(
        "ids", {"ids": np.array([[0, 1]]), "scores": scores}
    )
    assert packed.tolist() == [[[0, 0], [1, 1]]]


def test_scores_must_fit_the_tokens():
    outputs = {"ids": np.zeros((1, 3), int), "scores": np.zeros((1, 4, 9))}
    policy = make_policy("token_ids", "fp32", None, {"logits": "scores"})
    found = compare_outputs(outputs, outputs, {"ids": policy})
    assert "must be [1, 3, vocabulary]" in found["ids"].problems[0]
    with pytest.raises(ValueError, match="go through `gather` first"):
        build("token_ids", {"logits": "scores"}).compare(np.zeros((1, 3)), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"logits": ""}, "`logits` is the name of an output"),
        ({"logits": 3}, "`logits` is the name of an output"),
        ({"noise_margin": -1}, "`noise_margin` is a number from 0"),
        ({"end": "</s>"}, "`end` is a token"),
        ({"pad": 1.5}, "`pad` is a token"),
        ({"eos": 2}, "no option 'eos'"),
    ],
)
def test_bad_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        build("token_ids", options)


def test_beams_are_refused():
    with pytest.raises(ValueError, match="use kind `exact`"):
        compare(np.zeros((1, 2, 3), int), np.zeros((1, 2, 3), int))
    assert compare([4, 5], [4, 6])["divergence"].tolist() == [0, 1]  # one token a row
