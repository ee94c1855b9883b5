"""Embeddings: direction, length, neighbours."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from validators.comparators import build


def compare(reference, candidate, **options):
    return build("embedding", options).compare(reference, candidate)


def vectors(rows=60, width=16, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def test_direction_and_length_are_told_apart():
    reference = np.array([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]], np.float32)
    candidate = np.array([[6.0, 8.0], [4.0, -3.0], [-3.0, -4.0]], np.float32)
    found = compare(reference, candidate)
    assert found.metrics["cosine"] == pytest.approx([1, 0, -1], abs=1e-6)
    assert found.metrics["norm_error"] == pytest.approx([1, 0, 0])
    assert np.isnan(found.metrics["neighbours"]).all()  # three rows are no neighbourhood
    assert found.sketches["cosine_distance"].largest == pytest.approx(2)


def test_a_row_of_several_vectors_is_as_good_as_its_worst():
    reference = vectors(6).reshape(2, 3, 16)
    candidate = reference.copy()
    candidate[1, 2] *= -1.5
    found = compare(reference, candidate)
    assert found.metrics["cosine"] == pytest.approx([1, -1])
    assert found.metrics["norm_error"] == pytest.approx([0, 0.5])


def test_zero_vectors_agree_with_each_other_only():
    reference = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    candidate = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
    found = compare(reference, candidate)
    assert found.metrics["cosine"].tolist() == [1, 0, 0]
    assert found.metrics["norm_error"].tolist() == [0, np.inf, 1]


def by_hand(reference, candidate, k):
    shares = []
    for row in range(len(reference)):
        sets = []
        for side in (reference, candidate):
            unit = side / np.linalg.norm(side, axis=1, keepdims=True)
            order = np.argsort(-(unit @ unit[row]), kind="stable")
            sets.append(set(order[order != row][:k].tolist()))
        shares.append(len(sets[0] & sets[1]) / k)
    return shares


def test_neighbours_are_those_of_a_plain_search():
    reference = vectors().astype(np.float64)
    candidate = reference + 0.5 * vectors(seed=1)
    found = compare(reference, candidate, k=7).metrics["neighbours"]
    assert found.tolist() == pytest.approx(by_hand(reference, candidate, 7))
    assert 0 < found.mean() < 1


def test_scaling_keeps_every_neighbour_and_shuffling_none():
    reference = vectors(400)
    assert (compare(reference, reference * 3e30).metrics["neighbours"] == 1).all()
    shuffled = compare(reference, vectors(400, seed=9)).metrics["neighbours"]
    assert shuffled.mean() < 0.2


def test_rows_that_are_tied_do_not_count_as_lost():
    """The same request many times over: which copy comes first means nothing."""
    reference = np.repeat(vectors(4), 30, axis=0)
    noise = 1e-6 * vectors(120, seed=2)
    assert (compare(reference, reference + noise).metrics["neighbours"] == 1).all()


def test_many_rows_are_taken_in_groups():
    reference = vectors(2500, 8)
    found = compare(reference, reference).metrics["neighbours"]
    assert found.shape == (2500,)
    assert (found == 1).all()


def test_fifty_rows_are_enough_unless_k_is_large():
    assert not np.isnan(compare(vectors(50), vectors(50)).metrics["neighbours"]).any()
    assert np.isnan(compare(vectors(49), vectors(49)).metrics["neighbours"]).all()
    assert np.isnan(compare(vectors(50), vectors(50), k=26).metrics["neighbours"]).all()


def test_narrow_floats_and_equal_infinities_are_taken():
    reference = vectors().astype(ml_dtypes.bfloat16)
    reference[3, 2] = np.inf
    found = compare(reference, reference.copy())
    assert found.metrics["cosine"] == pytest.approx(1)
    assert (found.metrics["neighbours"] == 1).all()


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "ten"])
def test_k_is_a_whole_number(k):
    with pytest.raises(ValueError, match="`k` must be a whole number"):
        build("embedding", {"k": k})


def test_one_number_a_row_is_no_embedding():
    with pytest.raises(ValueError, match="kind `regression`"):
        compare(np.ones(3), np.ones(3))
