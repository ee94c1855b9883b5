"""``sidecar infer`` against a running server, over both transports."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from sidecar.cli import run
from tests.cli.conftest import sidecar
from tests.support.models import mlp_expected

X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)


@pytest.fixture(params=["grpc", "http", "url"])
def where(request, server):
    """The arguments that name the server: once over gRPC, twice over HTTP."""
    return {
        "grpc": (server.grpc,),
        "http": (server.http, "--http"),
        "url": (f"http://{server.http}/",),
    }[request.param]


def infer(where, model, *arguments, stdin=b""):
    found = sidecar("infer", where[0], model, *where[1:], *arguments, stdin=stdin)
    assert found.returncode == 0, found.stderr
    return found.stdout


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def answer(text: str) -> dict[str, np.ndarray]:
    outputs = json.loads(text)["outputs"]
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in outputs}


def test_without_an_input_the_model_is_described(where):
    text = infer(where, "mlp")
    assert text.split()[:4] == ["mlp", "versions", "1,", "2"]
    rows = [line.split() for line in text.splitlines()]
    assert ["input", "x", "FP32", "[any,", "32]"] in rows
    assert ["output", "y", "FP32", "[any,", "10]"] in rows
    info = json.loads(infer(where, "many", "--json"))
    assert info["inputs"][1] == {"name": "b", "datatype": "FP32", "shape": [-1, 2]}


def test_npz_in_and_npz_out(where, tmp_path):
    (tmp_path / "in.npz").write_bytes(npz(x=X))
    target = tmp_path / "out.npz"
    assert infer(where, "mlp", "-i", str(tmp_path / "in.npz"), "-o", str(target)) == ""
    with np.load(target) as found:
        assert found["y"].dtype == np.float32
        np.testing.assert_allclose(found["y"], mlp_expected(X), rtol=1e-4, atol=1e-5)


def test_npy_and_float64_are_sent_as_the_model_takes_them(where):
    buffer = io.BytesIO()
    np.save(buffer, X.astype(np.float64))
    text = infer(where, "mlp", "--input", "-", "--json", stdin=buffer.getvalue())
    np.testing.assert_allclose(answer(text)["y"], mlp_expected(X), rtol=1e-4, atol=1e-5)


def test_plain_json_takes_its_datatypes_from_the_model(where):
    data = json.dumps({"a": [[1, 2]], "b": [[3, 4.5]]}).encode()
    found = answer(infer(where, "many", "-i", "-", "--json", stdin=data))
    assert found["sum"].tolist() == [[4, 6.5]]
    assert found["weight"].tolist() == [1, 2, 3]
    assert found["total"].shape == ()


def test_a_request_of_the_protocol(where):
    tensor = {"name": "x", "datatype": "INT8", "shape": [1, 3], "data": [-128, 0, 127]}
    data = json.dumps({"inputs": [tensor]}).encode()
    text = infer(where, "int8", "-i", "-", "--json", "--version", "1", "--id", "7", stdin=data)
    assert json.loads(text)["model_version"] == "1"
    assert answer(text)["y"].tolist() == [[-128, 0, 127]]


def test_text_and_half_precision_go_both_ways(where, tmp_path):
    words = json.dumps({"x": [["Grüße", "", "a\u0000b"]]}).encode()
    found = answer(infer(where, "text", "-i", "-", "--json", stdin=words))
    assert found["y"].tolist() == [["Grüße", "", "a\0b"]]
    halves = json.dumps({"x": [[0.5, -1, 65504]]}).encode()
    assert answer(infer(where, "half", "-i", "-", "--json", stdin=halves))["y"].tolist() == [
        [0.5, -1, 65504]
    ]
    target = tmp_path / "out.npz"
    infer(where, "text", "-i", "-", "-o", str(target), stdin=npz(x=np.array([["ä", "bc", ""]])))
    with np.load(target) as loaded:
        assert loaded["y"].tolist() == [["ä".encode(), b"bc", b""]]


def test_a_table_for_people_and_one_output_alone(where):
    data = npz(a=np.ones((1, 2), np.float32), b=np.ones((1, 2), np.float32))
    text = infer(where, "many", "-i", "-", "--want", "sum", stdin=data)
    assert ["sum", "FP32", "[1,", "2]", "[[2.,", "2.]]"] in [t.split() for t in text.splitlines()]
    assert "weight" not in text


@pytest.mark.parametrize(
    ("model", "arguments", "data", "said"),
    [
        ("none", (), b"", "none"),
        ("mlp", ("--version", "9"), b"", "9"),
        ("mlp", ("-i", "in"), b"", "in: the input (no npz or npy, so read as JSON) is broken"),
        ("mlp", ("-i", "in"), b"[1]", "error: in: the input must be a JSON object"),
        ("mlp", ("-i", "in"), b'{"z": [1]}', "the model has no input 'z'; its inputs: x"),
        ("mlp", ("-i", "in"), b'{"x": [[1, 2], [3]]}', "input 'x'"),
        ("mlp", ("-i", "in"), b'{"x": [["a"]]}', "input 'x'"),
        ("mlp", ("-i", "in"), b'{"x": 3}', "input 'x': data must be a list"),
        ("mlp", ("-i", "in"), b'{"inputs": [{"name": "x"}]}', "needs name, datatype"),
        ("mlp", ("-i", "in"), b'{"inputs": [3]}', "needs name, datatype, shape and data"),
        ("mlp", ("-i", "in"), b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [3], '
         b'"data": [1]}]}', "input 'x': 1 values do not make the shape [3]"),
        ("mlp", ("-i", "in"), b"PK\x03\x04 and then nothing", "is not a npz or npy file"),
        ("mlp", ("-i", "in"), npz(x=np.array([object()])), "is not a npz or npy file"),
        ("mlp", ("-i", "in"), npz(x=np.ones((1, 32), complex)), "no datatype for complex128"),
        ("mlp", ("-i", "in"), npz(x=np.ones((1, 31), np.float32)), "31"),
        ("int8", ("-i", "in"), npz(x=np.full((1, 3), 300)), "INT"),
        ("mlp", ("-i", "no-such-file"), b"", "no-such-file cannot be read: No such file"),
        ("mlp", ("-i", "in", "-o", "out.txt"), b"", "a file that ends in .npz or .json"),
        ("mlp", ("-i", "in", "-o", "no/such/out.npz"), npz(x=X), "cannot be written"),
        ("text", ("-i", "in", "-o", "out.npz"), b'{"x": [["a\\u0000", "", ""]]}', "NUL"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    server, model, arguments, data, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_bytes(data)
    # In this process: twenty interpreters would take longer than all other tests of the commands.
    assert run(["infer", server.grpc, model, *arguments]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert said in found.err


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "UNAVAILABLE"),
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://127.0.0.1:port", "is not an address"),
        ("ftp://127.0.0.1", "write host:port"),
    ],
)
def test_a_server_that_is_not_there(address, said, capsys):
    assert run(["infer", address, "m", "--timeout", "5"]) == 1
    assert said in capsys.readouterr().err
