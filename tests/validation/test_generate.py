"""Generated rows: of every datatype, in range, from one seed."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.protocol.datatypes import BY_NAME
from sidecar.runtimes.base import TensorSpec
from sidecar.validation.generate import Maker, batch_sizes
from sidecar.validation.layout import Layout, rows_in

FLOATS = {"FP16", "FP32", "FP64", "BF16"}


def maker(datatype="FP32", shape=(-1, 3), *, seed=0, accepts=lambda _rows: True, batched=True,
          largest=64, **options):  # fmt: skip
    layout = Layout((TensorSpec("x", datatype, shape),), batched, largest)
    return Maker(layout, seed, accepts, **options)


def sets(made):
    random = made.random()
    return {data.name: data for data in [random, *made.batches(random), *made.others()]}


@pytest.mark.parametrize("datatype", BY_NAME)
def test_every_datatype_has_rows_that_fit(datatype):
    made = sets(maker(datatype))
    kinds = {"random", "batch", "edges"} | (
        {"extremes", "nonfinite"} if datatype in FLOATS else set()
    )
    assert made.keys() == kinds
    for data in made.values():
        assert data.seed == 0
        for block in data.blocks:
            assert block["x"].dtype == BY_NAME[datatype].numpy
            assert block["x"].shape[1:] == (3,)
        if datatype == "BYTES":
            assert all(type(value) is bytes for b in data.blocks for value in b["x"].ravel())
    assert made["random"].rows == 64
    assert [data.decides for data in made.values()] == [True, True, *[False] * (len(made) - 2)]
    # Random is random.
    first = made["random"].blocks[0]["x"]
    assert len(set(first.ravel().tolist())) > 1


def test_edges_are_what_they_say():
    edges = sets(maker("FP16"))["edges"]
    rows = dict(zip(edges.row_names, edges.blocks[0]["x"], strict=True))
    info = np.finfo(np.float16)
    assert (rows["zeros"] == 0).all()
    assert np.signbit(rows["minus zero"]).all()
    assert (rows["ones"] == 1).all()
    assert (rows["largest"] == info.max).all()
    assert (rows["smallest"] == info.min).all()
    assert (rows["denormal"] == info.smallest_subnormal).all()
    assert (rows["denormal"] > 0).all()
    assert (rows["least normal"] == info.smallest_normal).all()
    edges = sets(maker("INT16"))["edges"]
    rows = dict(zip(edges.row_names, edges.blocks[0]["x"][:, 0].tolist(), strict=True))
    assert rows == {"zeros": 0, "ones": 1, "largest": 32767, "smallest": -32768}
    edges = sets(maker("BYTES"))["edges"]
    rows = dict(zip(edges.row_names, edges.blocks[0]["x"][:, 0].tolist(), strict=True))
    assert rows["zeros"] == b""
    assert len(rows["long texts"]) == 10_000
    rows["not ASCII"].decode()


def test_on_a_gpu_wide_integers_stay_in_range():
    edges = sets(maker("INT64", wild_integers=False))["edges"]
    assert edges.blocks[0]["x"].max() <= 127
    assert edges.blocks[0]["x"].min() >= 0


def test_extremes_span_their_magnitudes():
    extremes = sets(maker("FP32", (-1, 1000)))["extremes"]
    scales = np.abs(extremes.blocks[0]["x"]).mean(axis=1)
    assert scales == pytest.approx(np.repeat([8e-7, 8e-4, 80, 8e3], 4), rel=0.1)
    assert len(extremes.row_names) == extremes.rows == 16


def test_nonfinite_rows_are_of_their_own_kind():
    nonfinite = sets(maker())["nonfinite"]
    assert nonfinite.only_masks
    rows = dict(zip(nonfinite.row_names, nonfinite.blocks[0]["x"], strict=True))
    assert np.isnan(rows["all NaN"]).all()
    assert np.isposinf(rows["all +inf"]).all()
    assert np.isneginf(rows["all -inf"]).all()
    assert np.isnan(rows["one NaN"]).sum() == 1


def test_one_seed_gives_one_set_of_rows():
    one, again, other = (sets(maker(seed=seed)) for seed in (7, 7, 8))
    for name, data in one.items():
        for a, b in zip(data.blocks, again[name].blocks, strict=True):
            assert a["x"].tobytes() == b["x"].tobytes(), name
    assert one["random"].blocks[0]["x"].tobytes() != other["random"].blocks[0]["x"].tobytes()


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (4, [1, 2, 3, 4]),
        (8, [1, 2, 3, 5, 8]),
        (10, [1, 2, 3, 5, 8, 10]),
        (1024, [1, 2, 3, 5, 8, 13, 21, 34, 55, 64]),
    ],
)
def test_batches_grow_to_the_largest(largest, sizes):
    assert batch_sizes(largest) == sizes
    made = maker(largest=largest)
    source = made.random(10)
    found = made.batches(source)
    if largest == 1:
        assert found == []
        return
    assert [rows_in(block) for block in found[0].blocks] == sizes
    rows = np.concatenate([block["x"] for block in found[0].blocks])
    assert np.array_equal(rows, source.blocks[0]["x"][found[0].origin_rows])


def test_a_model_without_batch_has_no_batches():
    assert "batch" not in sets(maker(batched=False, shape=(2, 3)))


def test_dynamic_dimensions_take_the_first_size_that_is_accepted():
    def at_least_32(rows):
        return rows["x"].shape[2] >= 32 and rows["x"].shape[2] == rows["x"].shape[3]

    made = maker(shape=(-1, 3, -1, -1), accepts=at_least_32).random()
    assert [block["x"].shape[1:] for block in made.blocks] == [(3, 32, 32), (3, 64, 64)]
    exactly_8 = maker(shape=(-1, -1), accepts=lambda rows: rows["x"].shape[1] == 8).random()
    assert [block["x"].shape[1:] for block in exactly_8.blocks] == [(8,), (8,)]
    nothing = maker(shape=(-1, -1), accepts=lambda _rows: False).random()
    assert nothing.rows == 64, "the reference's refusal is what is then reported"


def test_integers_take_the_widest_range_that_is_accepted():
    made = maker("INT64", accepts=lambda rows: rows["x"].max() < 16).random()
    values = np.concatenate([block["x"].ravel() for block in made.blocks])
    assert (values.min(), values.max()) == (0, 15)
    assert "integers 0 to 15" in made.source
    whole = maker("UINT8", (-1, 300), accepts=lambda rows: rows["x"].max() < 16).random()
    assert whole.blocks[0]["x"].max() == 255, "bytes are used whole"


def test_few_rows_are_few():
    assert maker().random(1).rows == 1
    assert maker().random(5).rows == 5
