"""Tensors to columns as configured or inferred, rows for a reference, exchanges without a copy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sidecar.monitor.decode import NotComparableError, decode_inputs, decode_outputs, parse
from sidecar.monitor.drift_collect import Collector
from sidecar.monitor.drift_columns import Columns, ColumnsError, MisfitError, columns_of
from sidecar.monitor.self_described import looks_batched, signature_of
from sidecar.protocol.pb import inference_pb2 as pb
from tests.monitor.drifting import config
from tests.monitor.making import exchange, model, request, response


def float32(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def texts(rows: int) -> np.ndarray:
    found = np.empty(rows, dtype=object)
    found[:] = [f"t{at % 3}".encode() for at in range(rows)]
    return found


@pytest.mark.parametrize(
    ("side", "name", "array", "kind", "column"),
    [
        ("inputs", "x", float32(4, 3, 32, 32), "image", "x.channel2"),
        ("inputs", "x", float32(4, 32, 32, 3), "image", "x.channel2"),
        ("inputs", "x", float32(4, 8, 8), "image", "x.brightness"),
        ("inputs", "x", np.zeros((4, 32, 32, 3), np.uint8), "image", "x.contrast"),
        ("inputs", "x", float32(4, 7, 32, 32), "tensor", "x.mean"),
        ("inputs", "x", float32(4, 64), "features", "x.63"),
        ("inputs", "x", float32(4), "features", "x.0"),
        ("inputs", "x", float32(4, 65), "embedding", "x.norm"),
        ("inputs", "x", np.zeros((4, 65), np.int64), "tensor", "x.zero_share"),
        ("inputs", "x", np.zeros((4, 8), np.int64), "features", "x.7"),
        ("inputs", "x", np.zeros((4, 1), np.int32), "exact", "x.value"),
        ("inputs", "x", np.zeros(4, bool), "exact", "x.value"),
        ("inputs", "x", texts(4), "exact", "x.value"),
        ("outputs", "y", np.full((4, 10), 0.1, np.float32), "class_scores", "y.entropy"),
        ("outputs", "logits", float32(4, 10), "class_scores", "logits.logsumexp"),
        ("outputs", "embeddings", float32(4, 32), "embedding", "embeddings.pc4"),
        ("outputs", "y", float32(4, 10), "features", "y.9"),
        ("outputs", "y", float32(4, 8, 8), "tensor", "y.std"),
        ("outputs", "y", float32(4, 1), "features", "y.0"),
    ],
)
def test_what_is_inferred_and_said(side, name, array, kind, column):
    inputs, outputs = ({name: array}, {}) if side == "inputs" else ({}, {name: array})
    columns = columns_of(config(), inputs, outputs, batched=True)
    [source], [said] = columns.sources, columns.inferred
    assert source.descriptor.kind == kind
    assert f"watched as {kind}" in said
    assert f"drift.{side}.{name}.kind" in said
    collector = Collector(columns, 8, fit_rows=8)
    collector.add(columns.arrays(inputs, outputs))
    made, _, notes = collector.finish()
    assert column in {one.name for one in made} | {note.split("'")[1] for note in notes}


def test_the_kind_of_an_output_that_is_declared_for_comparing_counts():
    declared = model(
        ("1", "v", ["serving"]), validation={"outputs": {"y": {"kind": "class_scores"}}}
    )
    columns = columns_of(declared, {}, {"y": float32(4, 10)}, batched=True)
    assert columns.sources[0].descriptor.to_plain()["options"] == {"scores": "logits"}


def test_users_name_columns_and_tensors():
    named = config(
        inputs={"x": {"kind": "features", "options": {"names": ["age", "income"]}}}, outputs={}
    )
    inputs = {"x": float32(4, 2), "unnamed": float32(4, 2)}
    columns = columns_of(named, inputs, {"y": float32(4, 2)}, batched=True)
    rows = columns.describe(columns.arrays(inputs, None))
    assert list(rows) == ["x.age", "x.income"]
    assert columns.inferred == ()


@pytest.mark.parametrize(
    ("drift", "message"),
    [
        ({"inputs": {"z": {}}}, "drift.inputs names 'z', which is no input .* there is x"),
        ({"outputs": {"x": {}}}, "no output of the model; there is y"),
        ({"inputs": {"x": {"kind": "features", "options": {"names": ["a"]}}}}, "1 names for 2"),
        ({"inputs": {"x": {"kind": "class_scores", "options": {"scores": "odds"}}}}, "not 'odds'"),
        ({"inputs": {"x": {"kind": "image"}}}, r"drift.inputs.x: .*3- or 4-dimensional"),
    ],
)
def test_a_mistake_names_the_setting(drift, message):
    with pytest.raises(ColumnsError, match=message):
        columns_of(config(**drift), {"x": float32(4, 2)}, {"y": float32(4, 2)}, batched=True)


def test_too_many_columns_name_the_way_out():
    wide = config(inputs={"x": {"kind": "features"}}, outputs={})
    with pytest.raises(ColumnsError, match="600 columns, more than 512: name fewer"):
        columns_of(wide, {"x": float32(4, 600)}, {}, batched=True)


def test_several_texts_a_row_are_left_out_and_said():
    inputs = {"words": np.stack([texts(4)] * 3, axis=1), "x": float32(4, 2)}
    columns = columns_of(config(), inputs, {}, batched=True)
    assert [source.tensor for source in columns.sources] == ["x"]
    assert "'words' is left out: 3 texts a row are no category" in columns.inferred[0]
    with pytest.raises(ColumnsError, match="no tensor can be watched"):
        columns_of(config(), {"words": inputs["words"]}, {}, batched=True)


def test_an_input_and_an_output_of_one_name_are_two():
    x = float32(4, 2)
    columns = columns_of(config(), {"x": x}, {"x": x}, batched=True)
    rows = columns.describe(columns.arrays({"x": x}, {"x": x}))
    assert list(rows) == ["x.0", "x.1", "x (output).0", "x (output).1"]


def test_without_a_batch_dimension_an_exchange_is_a_row():
    x, y = float32(3, 8, 8), float32(5)
    assert not looks_batched({"x": x}, {"y": y})
    columns = columns_of(config(), {"x": x}, {"y": y}, batched=False)
    rows = columns.describe(columns.arrays({"x": x}, {"y": y}))
    assert {len(column) for column in rows.values()} == {1}
    assert "x.channel2" in rows


def test_embeddings_are_fitted_when_there_are_enough_and_keep_their_order():
    rng = np.random.default_rng(0)
    inputs = {"e": rng.normal(size=(300, 80)).astype(np.float32), "x": float32(300, 2)}
    columns = columns_of(config(), inputs, {}, batched=True)
    collector = Collector(columns, 250, fit_rows=100)
    for start in range(0, 300, 30):
        part = {name: array[start : start + 30] for name, array in inputs.items()}
        if start < 90:
            assert collector.parts() == []  # nothing that could be written yet
        collector.add(columns.arrays(part, {}))
    assert collector.is_full
    made, rows, _ = collector.finish()
    assert [column.name for column in made][:2] == ["e.norm", "e.cosine"]
    assert {len(column) for column in rows.values()} == {250}
    np.testing.assert_allclose(rows["e.norm"], np.linalg.norm(inputs["e"][:250], axis=1), rtol=1e-5)
    np.testing.assert_array_equal(rows["x.0"], inputs["x"][:250, 0].astype(np.float64))

    # What was learnt is in what is stored: another process describes alike.
    again = Columns.from_plain(json.loads(json.dumps(columns.to_plain())))
    one, other = (c.describe(c.arrays(inputs, {})) for c in (columns, again))
    for name, column in one.items():
        np.testing.assert_allclose(other[name], column)
    restored = Collector(again, 250)
    restored.restore(collector.parts())
    assert (restored.rows, restored.is_full) == (250, True)
    assert restored.finish()[0] == made


def test_rows_of_another_shape_are_not_collected():
    columns = columns_of(config(), {"x": float32(4, 8)}, {}, batched=True)
    collector = Collector(columns, 100)
    collector.add(columns.arrays({"x": float32(4, 8)}, {}))
    for wrong in ({"x": float32(4, 5)}, {"y": float32(4, 8)}):
        with pytest.raises(MisfitError):
            collector.add(columns.arrays(wrong, {}))
    assert collector.rows == 4


def test_a_column_without_a_finite_value_is_left_out_and_said():
    x = float32(50, 2)
    x[:, 1] = np.nan
    columns = columns_of(config(), {"x": x}, {}, batched=True)
    collector = Collector(columns, 50)
    collector.add(columns.arrays({"x": x}, {}))
    made, rows, notes = collector.finish()
    assert ([column.name for column in made], list(rows)) == (["x.0"], ["x.0"])
    assert notes == ["column 'x.1' has no finite value, and is not watched"]


@pytest.mark.parametrize(
    "broken", [{}, {"sources": [], "batched": True, "inferred": []}, {"sources": [{"side": "x"}]}]
)
def test_what_are_no_stored_columns_is_refused(broken):
    with pytest.raises(ValueError, match="stored columns"):
        Columns.from_plain({"batched": True, "inferred": [], **broken} if broken else broken)


# --- exchanges that nobody has a copy for -----------------------------------------------------


def test_grpc_exchanges_say_themselves_what_they_hold():
    x, y = float32(4, 3), float32(4, 2)
    element = pb.ModelStreamInferResponse()
    element.infer_response.ParseFromString(response(y=y))
    for transport, answer in (("grpc", response(y=y)), ("stream", element.SerializeToString())):
        seen = exchange(request=request(x), response=answer, transport=transport)
        parsed = parse(seen)
        signature = signature_of(seen, parsed)
        np.testing.assert_array_equal(decode_inputs(seen, signature, parsed=parsed)["x"], x)
        np.testing.assert_array_equal(decode_outputs(seen, signature, parsed=parsed)["y"], y)


def test_http_exchanges_say_themselves_what_they_hold():
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 2.0]}]}
    head = {
        "outputs": [
            {"name": "y", "datatype": "INT64", "shape": [2], "data": [3, 4]},
            {"name": "z", "datatype": "FP32", "shape": [2],
             "parameters": {"binary_data_size": 8}},
        ]
    }  # fmt: skip
    text = json.dumps(head).encode()
    seen = exchange(
        request=json.dumps(body).encode(), transport="http",
        response=text + np.array([5, 6], np.float32).tobytes(), response_header_bytes=len(text),
    )  # fmt: skip
    parsed = parse(seen)
    signature = signature_of(seen, parsed)
    assert decode_inputs(seen, signature, parsed=parsed)["x"].tolist() == [[1.0], [2.0]]
    found = decode_outputs(seen, signature, parsed=parsed)
    assert {name: array.tolist() for name, array in found.items()} == {"y": [3, 4], "z": [5, 6]}


def test_a_raw_body_says_nothing_of_itself():
    seen = exchange(
        request=np.zeros(3, np.float32).tobytes(), request_header_bytes=0, transport="http",
        response=b'{"outputs": []}',
    )  # fmt: skip
    with pytest.raises(NotComparableError) as caught:
        signature_of(seen, parse(seen))
    assert caught.value.reason == "raw_body"
