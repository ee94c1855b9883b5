"""Bins, counts that add up, and what is read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from validators.drift.bins import (
    ABOVE,
    BELOW,
    BINS,
    INFINITE,
    MISSING,
    OTHER,
    UNSEEN,
    CategoryBins,
    NumericBins,
    bins_of,
    count_codes,
    normal_scores,
)
from validators.drift.columns import Column, ColumnType
from validators.drift.reference import Reference, Window, sample_of

NUMERIC, CATEGORICAL = ColumnType.NUMERIC, ColumnType.CATEGORICAL
COLUMNS = (Column("a", NUMERIC), Column("b", NUMERIC), Column("kind", CATEGORICAL))


def some_rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=count)
    a[::50] = np.nan
    return {"a": a, "b": rng.exponential(size=count), "kind": rng.integers(0, 40, count)}


def test_bins_hold_equal_shares_and_every_value_has_a_code():
    values = np.random.default_rng(0).lognormal(size=6400)
    bins = NumericBins.of(values)
    counts = np.bincount(bins.codes(values), minlength=36)
    assert counts[1 : BINS + 1].sum() == 6400
    assert counts[1 : BINS + 1].min() >= 190
    odd = np.array([values.min() - 1, values.max() + 1, np.inf, -np.inf, np.nan, values.max()])
    assert bins.codes(odd).tolist() == [BELOW, ABOVE, INFINITE, INFINITE, MISSING, BINS]


@pytest.mark.parametrize("atom", [0.0, 5.0, 1e6])
def test_a_frequent_value_has_a_bin_of_its_own(atom):
    rng = np.random.default_rng(1)
    values = np.where(rng.uniform(size=5000) < 0.4, atom, rng.uniform(0, 10, 5000))
    bins = NumericBins.of(values)
    code = bins.codes(np.array([atom]))[0]
    assert set(values[bins.codes(values) == code]) == {atom}
    assert (np.diff(bins.edges) > 0).all()


@pytest.mark.parametrize("value", [0.0, -3.5, 1e300])
def test_a_constant_has_one_bin(value):
    bins = NumericBins.of(np.full(100, value))
    around = np.array([value, np.nextafter(value, -np.inf) - 1, value * 2 + 1])
    assert bins.codes(around)[0] == 1
    assert bins.codes(around[2:]).tolist() in ([ABOVE], [BELOW])
    assert bins.spread == 1


def test_a_column_without_a_finite_value_is_named():
    with pytest.raises(ValueError, match="column 'a': no finite value"):
        Reference.of({"a": np.full(9, np.nan)}, COLUMNS[:1])


def test_categories_are_frequent_rare_or_new():
    values = np.array(["x"] * 9 + ["y"] * 5 + [f"rare{i:03}" for i in range(60)])
    bins = CategoryBins.of(values)
    found = bins.codes(np.array(["y", "x", "rare059", "new"]))
    assert found.tolist() == [1, 0, OTHER, UNSEEN]
    assert [bins.label(code) for code in (0, OTHER, UNSEEN)] == [
        "x",
        "(other)",
        "(never seen before)",
    ]


def test_normal_scores_are_normal():
    values = np.random.default_rng(2).exponential(size=20_000)
    bins = bins_of(values, NUMERIC)
    codes = bins.codes(values)
    scores = normal_scores(count_codes(codes[:, None]))[0]
    found = scores[codes]
    assert found.mean() == pytest.approx(0, abs=0.01)
    assert found.std() == pytest.approx(1, abs=0.03)
    assert stats.spearmanr(found, values).statistic > 0.999
    assert scores[MISSING] == 0


def test_windows_of_replicas_add_up_to_the_window_of_all():
    rows = some_rows(3000)
    reference = Reference.of(rows, COLUMNS)
    whole, merged = reference.window(), reference.window()
    reference.add(whole, rows)
    for part in np.array_split(np.random.default_rng(3).permutation(3000), 4):
        window = reference.window()
        reference.add(window, {name: column[part] for name, column in rows.items()})
        merged.merge(Window.from_plain(json.loads(json.dumps(window.to_plain()))))
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_array_equal(whole.counts, reference.counted.counts)
    assert merged.rows == 3000
    for name in ("scores", "products", "features"):
        ours, theirs = (getattr(side.joint, name) for side in (merged, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2)


def test_a_reference_survives_json():
    reference = Reference.of(some_rows(2000), COLUMNS, seed=7, sample_rows=300)
    plain = json.loads(json.dumps(reference.to_plain(), allow_nan=False))
    restored = Reference.from_plain(plain)
    assert restored.to_plain() == plain
    fresh = some_rows(500, seed=1)
    sides = [reference.window(), restored.window()]
    for side, made in zip(sides, (reference, restored), strict=True):
        made.add(side, fresh)
    assert sides[0].to_plain() == sides[1].to_plain()
    np.testing.assert_array_equal(reference.sample["a"], restored.sample["a"])
    assert len(reference.sample["a"]) == 300


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"version": 9},
        lambda plain: {**plain, "columns": plain["columns"][:2]},
        lambda plain: {**plain, "sample": {}},
        lambda plain: {**plain, "counted": {**plain["counted"], "counts": [[-1] * 36] * 3}},
    ],
)
def test_what_is_not_a_stored_reference_is_refused(broken):
    plain = Reference.of(some_rows(100), COLUMNS).to_plain()
    with pytest.raises(ValueError, match="not a stored reference"):
        Reference.from_plain(broken(plain) if callable(broken) else broken)


def test_columns_that_are_missing_or_uneven_are_named():
    rows = some_rows(100)
    with pytest.raises(ValueError, match="no column 'kind'; there are: a, b"):
        Reference.of({name: rows[name] for name in "ab"}, COLUMNS)
    with pytest.raises(ValueError, match=r"different numbers of rows: \[7, 100\]"):
        Reference.of({**rows, "b": rows["b"][:7]}, COLUMNS)
    with pytest.raises(ValueError, match="nothing would be watched"):
        Reference.of(rows, ())


def test_a_sample_is_seeded_bounded_and_of_whole_blocks():
    kept = sample_of(10_000, 500, seed=1, block_rows=10)
    assert kept.size == np.unique(kept).size == 500
    assert (kept.reshape(-1, 10) // 10 == kept.reshape(-1, 10)[:, :1] // 10).all()
    np.testing.assert_array_equal(kept, sample_of(10_000, 500, seed=1, block_rows=10))
    assert (kept != sample_of(10_000, 500, seed=2, block_rows=10)).any()
    assert sample_of(30, 500, seed=1).tolist() == list(range(30))
