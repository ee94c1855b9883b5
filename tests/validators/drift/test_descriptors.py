"""Columns against what numpy and scipy say of each row."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import special, stats

from validators.drift import descriptors
from validators.drift.columns import LOOK_AT, ColumnType
from validators.drift.descriptors import BUILTIN, build, from_plain

RNG = np.random.default_rng(0)
VALUES = {
    "tensor": RNG.normal(size=(7, 3, 5)).astype(np.float32),
    "class_scores": RNG.normal(size=(7, 10)).astype(np.float32),
    "embedding": RNG.normal(size=(70, 12)).astype(np.float32),
    "image": RNG.uniform(size=(7, 3, 16, 20)).astype(np.float32),
    "features": RNG.normal(size=(7, 4)),
    "exact": np.array([b"cat", b"dog", b"cat"], dtype=object),
}


@pytest.mark.parametrize("kind", BUILTIN)
def test_every_kind_gives_typed_columns_and_survives_json(kind):
    values = VALUES[kind]
    made = build(kind, "x").fit(values)
    found = made.describe(values)
    assert [column.name for column in made.columns(values)] == list(found)
    for column in made.columns(values):
        assert column.name.startswith("x.")
        assert found[column.name].shape == (len(values),)
        numeric = found[column.name].dtype == np.float64
        assert numeric == (column.type is ColumnType.NUMERIC)
    restored = from_plain(json.loads(json.dumps(made.to_plain())))
    for name, column in restored.describe(values).items():
        np.testing.assert_array_equal(column, found[name])


@pytest.mark.parametrize("kind", BUILTIN)
def test_rows_do_not_depend_on_their_neighbours(kind, monkeypatch):
    values = VALUES[kind]
    made = build(kind, "x").fit(values)
    whole = made.describe(values)
    monkeypatch.setattr("validators.drift.columns._CHUNK", 7)
    for start in range(len(values)):
        for name, column in made.describe(values[start : start + 1]).items():
            if column.dtype == np.float64:
                np.testing.assert_allclose(column, whole[name][[start]], rtol=1e-12, atol=1e-14)
            else:
                assert column[0] == whole[name][start]


@pytest.mark.parametrize("kind", BUILTIN)
def test_no_rows_give_empty_columns(kind):
    made = build(kind, "x").fit(VALUES[kind])
    assert {len(column) for column in made.describe(VALUES[kind][:0]).values()} == {0}


@pytest.mark.parametrize("kind", BUILTIN)
def test_an_unknown_option_is_refused_with_the_known_ones(kind):
    with pytest.raises(ValueError, match=f"{kind} has no option 'colour'; known: "):
        build(kind, "x", {"colour": 1})


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no descriptor 'boxes'; known: tensor, class_scores"):
        build("boxes", "x")


def test_a_tensor_is_its_finite_values_and_the_shares_of_the_rest():
    values = np.array([[1, 2, 0, 3], [np.nan, np.inf, 0, 4], [np.nan] * 4], dtype=np.float32)
    found = build("tensor", "x").describe(values)
    np.testing.assert_allclose(found["x.mean"], [1.5, 2, np.nan])
    np.testing.assert_allclose(found["x.std"], [np.std([1, 2, 0, 3]), 2, np.nan])
    np.testing.assert_allclose(found["x.min"], [0, 0, np.nan])
    np.testing.assert_allclose(found["x.max"], [3, 4, np.nan])
    np.testing.assert_allclose(found["x.nan_share"], [0, 0.25, 1])
    np.testing.assert_allclose(found["x.inf_share"], [0, 0.25, 0])
    np.testing.assert_allclose(found["x.zero_share"], [0.25, 0.25, 0])


def test_a_varying_shape_is_a_category_when_asked_for():
    made = build("tensor", "x", {"shape": True})
    assert made.describe(np.zeros((2, 3, 5)))["x.shape"].tolist() == ["3×5", "3×5"]
    assert made.columns(np.zeros((2, 3)))[-1].type is ColumnType.CATEGORICAL


def test_a_large_row_is_looked_at_all_over():
    # Each column of the picture has its own value: a step that divides the width would see one.
    values = np.tile(np.arange(64.0), (2, 3 * 4 * LOOK_AT // 64, 1))
    found = build("tensor", "x").describe(values)
    np.testing.assert_allclose(found["x.mean"], values.mean(axis=(1, 2)), rtol=0.01)
    np.testing.assert_allclose(found["x.std"], values.std(axis=(1, 2)), rtol=0.01)
    assert found["x.max"].tolist() == [63, 63]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, bool])
def test_numbers_of_any_type_have_moments(dtype):
    values = np.array([[0, 1, 1, 1]]).astype(dtype)
    assert build("tensor", "x").describe(values)["x.mean"].tolist() == [0.75]


def test_texts_have_no_moments():
    with pytest.raises(ValueError, match="x: values of string have no moments"):
        build("tensor", "x").describe(np.array([["a"]]))


def test_logits_are_what_scipy_says():
    logits = VALUES["class_scores"].astype(np.float64) * 5
    found = build("class_scores", "y").describe(logits)
    shares = np.sort(special.softmax(logits, axis=1), axis=1)
    assert found["y.class"].tolist() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(found["y.top"], shares[:, -1])
    np.testing.assert_allclose(found["y.margin"], shares[:, -1] - shares[:, -2])
    np.testing.assert_allclose(found["y.entropy"], stats.entropy(shares, axis=1))
    np.testing.assert_allclose(found["y.logsumexp"], special.logsumexp(logits, axis=1))


def test_probabilities_are_taken_as_they_are():
    shares = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    found = build("class_scores", "y", {"scores": "probabilities"}).describe(shares)
    assert "y.logsumexp" not in found
    np.testing.assert_allclose(found["y.margin"], [0.5, 1.0])
    np.testing.assert_allclose(found["y.entropy"], [stats.entropy(shares[0]), 0], atol=1e-15)


def test_huge_infinite_and_missing_logits_have_their_say():
    logits = np.array([[1e308, 0.0], [np.inf, 0.0], [np.nan, 0.0], [-np.inf, 0.0]])
    found = build("class_scores", "y").describe(logits)
    assert found["y.class"].tolist() == [0, 0, -1, 1]
    np.testing.assert_array_equal(found["y.top"], [1, 1, np.nan, 1])
    np.testing.assert_array_equal(found["y.entropy"], [0, 0, np.nan, 0])


def test_one_score_is_no_choice():
    with pytest.raises(ValueError, match="class scores are"):
        build("class_scores", "y").describe(np.zeros((3, 1)))


def test_an_embedding_is_seen_from_the_centroid_and_along_its_main_axes():
    rng = np.random.default_rng(5)
    widths = np.array([9.0, 5.0, 3.0, 1.0, 1.0, 1.0])
    values = rng.normal(size=(900, 6)) * widths + 4
    found = build("embedding", "e", {"components": 3}).fit(values).describe(values)
    np.testing.assert_allclose(found["e.norm"], np.linalg.norm(values, axis=1))
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    centroid = units.mean(axis=0)
    np.testing.assert_allclose(found["e.cosine"], units @ centroid / np.linalg.norm(centroid))
    axes = np.linalg.eigh(np.cov(values.T))[1][:, ::-1]
    for at in range(3):
        expected = (values - values.mean(axis=0)) @ axes[:, at]
        similar = np.corrcoef(found[f"e.pc{at + 1}"], expected)[0, 1]
        assert abs(similar) > 0.999
        assert np.std(found[f"e.pc{at + 1}"]) == pytest.approx(np.std(expected), rel=0.01)


def test_an_embedding_must_be_fitted_and_of_the_same_width():
    made = build("embedding", "e")
    with pytest.raises(ValueError, match="fit the embeddings on a reference first"):
        made.describe(np.zeros((2, 6)))
    with pytest.raises(ValueError, match="0 finite embeddings are too few"):
        made.fit(np.full((9, 6), np.nan))
    with pytest.raises(ValueError, match="of width 5; the reference's are 12 wide"):
        made.fit(VALUES["embedding"]).describe(np.zeros((2, 5)))


def test_an_image_is_its_brightness_contrast_and_channels():
    first = VALUES["image"]
    found = build("image", "i").describe(first)
    np.testing.assert_allclose(found["i.brightness"], first.mean(axis=(1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found["i.contrast"], first.std(axis=(1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found["i.channel1"], first[:, 1].mean(axis=(1, 2)), rtol=1e-6)
    last = build("image", "i", {"channels": "last"}).describe(np.moveaxis(first, 1, -1))
    for name, column in last.items():
        np.testing.assert_allclose(column, found[name], rtol=1e-12)
    assert "i.channel1" not in build("image", "i").describe(first[:, 0])


def test_features_take_the_names_and_types_that_the_user_gives():
    made = build("features", "f", {"names": ["age", "code"], "categorical": ["code"]})
    values = np.array([[31.5, 2], [40.0, 3]])
    assert made.describe(values)["f.code"].tolist() == [2, 3]
    assert [(c.name, str(c.type)) for c in made.columns(values)] == [
        ("f.age", "numeric"),
        ("f.code", "categorical"),
    ]
    with pytest.raises(ValueError, match="2 names for 3 features"):
        made.describe(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="must hold whole numbers"):
        made.describe(np.array([[1.0, 2.5]]))
    with pytest.raises(ValueError, match="no feature 'x' to be a category"):
        build("features", "f", {"categorical": ["x"]}).describe(values)


@pytest.mark.parametrize(
    "broken", [{}, {"kind": "tensor"}, [], {**build("tensor", "x").to_plain(), "learnt": {"a": 1}}]
)
def test_what_is_not_a_stored_descriptor_is_refused(broken):
    with pytest.raises(ValueError, match=r"not a stored descriptor|learns nothing"):
        from_plain(broken)


def test_a_stored_embedding_is_checked():
    plain = descriptors.build("embedding", "e").fit(VALUES["embedding"]).to_plain()
    with pytest.raises(ValueError, match="not what an embedding learnt"):
        from_plain({**plain, "learnt": {**plain["learnt"], "mean": [1.0]}})
