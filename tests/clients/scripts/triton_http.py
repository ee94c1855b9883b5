"""tritonclient over HTTP: binary and JSON tensors, compression, asyncio, and bad input."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import harness
import ml_dtypes
import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from harness import Target, equal, holds, refused
from tritonclient.utils import InferenceServerException

PAIR = np.arange(16, dtype=np.int32).reshape(1, 16), np.full((1, 16), 3, np.int32)


def client(target: Target, **options: Any) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(target.http, **options)


def tensor(
    name: str, array: np.ndarray, datatype: str, *, binary: bool = True
) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def pair(*, first: np.ndarray = PAIR[0], binary: bool = True) -> list[triton.InferInput]:
    return [
        tensor("INPUT0", first, "INT32", binary=binary),
        tensor("INPUT1", PAIR[1], "INT32", binary=binary),
    ]


def asked(*names: str, binary: bool = True, **options: Any) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary, **options) for name in names]


# --- health and descriptions ---------------------------------------------------------------------


def check_health(target: Target) -> None:
    with client(target) as c:
        equal(c.is_server_live(), True, "live")
        equal(c.is_server_ready(), True, "ready")
        equal(c.is_model_ready("add_sub"), True, "add_sub ready")
        equal(c.is_model_ready("versions", "1"), True, "versions:1 ready")
        equal(c.is_model_ready("versions", "99"), False, "versions:99 ready")
        equal(c.is_model_ready("nonesuch"), False, "nonesuch ready")


def check_descriptions(target: Target) -> None:
    with client(target) as c:
        server = c.get_server_metadata()
        holds(server["name"] and server["version"], f"server: {server}")
        holds("binary_tensor_data" in server["extensions"], f"extensions: {server['extensions']}")
        model = c.get_model_metadata("add_sub")
        described = {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]}
        equal((model["name"], model["inputs"][0]), ("add_sub", described), "metadata")
        config = c.get_model_config("mlp")
        equal((config["name"], config["backend"]), ("mlp", "onnxruntime"), "config")
        equal(config["input"][0]["data_type"], "TYPE_FP32", "data_type")
        equal([int(size) for size in config["input"][0]["dims"]], [32], "dims")
        with refused(InferenceServerException, "404", about="nonesuch"):
            c.get_model_metadata("nonesuch")
        with refused(InferenceServerException, "404", about="99"):
            c.get_model_config("versions", "99")


# --- inference -----------------------------------------------------------------------------------


def check_infer_binary_and_json(target: Target) -> None:
    """Every mixture of how a tensor travels there and back."""
    with client(target) as c:
        for sent in (True, False):
            for back in (True, False):
                outputs = asked("OUTPUT0", "OUTPUT1", binary=back)
                result = c.infer("add_sub", pair(binary=sent), outputs=outputs, request_id="my id")
                what = f"sent binary={sent}, back binary={back}"
                equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], f"sum, {what}")
                equal(result.as_numpy("OUTPUT1"), PAIR[0] - PAIR[1], f"difference, {what}")
                is_binary = "data" not in result.get_output("OUTPUT0")
                equal(is_binary, back, f"binary answer, {what}")
                head = result.get_response()
                equal((head["model_name"], head["model_version"], head["id"]),
                      ("add_sub", "1", "my id"), "head")  # fmt: skip


def check_infer_mixed_forms(target: Target) -> None:
    with client(target) as c:
        inputs = [pair()[0], pair(binary=False)[1]]
        outputs = [*asked("OUTPUT1"), *asked("OUTPUT0", binary=False)]
        result = c.infer("add_sub", inputs, outputs=outputs)
        equal(
            [o["name"] for o in result.get_response()["outputs"]], ["OUTPUT1", "OUTPUT0"], "order"
        )
        equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum")
        equal(result.as_numpy("OUTPUT1"), PAIR[0] - PAIR[1], "difference")


def check_infer_without_outputs_is_binary(target: Target) -> None:
    with client(target) as c:
        result = c.infer("add_sub", pair())
        equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum")
        holds("id" not in result.get_response() or result.get_response()["id"] == "", "an id came")
        holds("data" not in result.get_output("OUTPUT0"), "answered as JSON")


def check_all_datatypes_binary(target: Target) -> None:
    with client(target) as c:
        for datatype, array in harness.samples(ml_dtypes.bfloat16).items():
            result = c.infer(f"identity_{datatype.lower()}", [tensor("INPUT", array, datatype)])
            equal(result.get_output("OUTPUT")["datatype"], datatype, "datatype")
            equal(result.as_numpy("OUTPUT"), array, datatype)


def check_all_datatypes_json(target: Target) -> None:
    arrays = harness.samples(ml_dtypes.bfloat16)
    for datatype in ("BF16", "FP16"):
        del arrays[datatype]  # the protocol has no JSON form for them
    arrays["FP32"] = np.array([[0.5, -2.25, 1e30], [0.1, -1e-30, 7]], np.float32)
    arrays["FP64"] = np.array([[0.5, -2.25, 1e300], [0.1, -1e-300, 7]], np.float64)
    arrays["BYTES"] = np.array([[b"", b"abc", b"\x00"], ["žluť".encode(), b"\n", b'"\\']], object)
    with client(target) as c:
        for datatype, array in arrays.items():
            inputs = [tensor("INPUT", array, datatype, binary=False)]
            outputs = asked("OUTPUT", binary=False)
            answer = c.infer(f"identity_{datatype.lower()}", inputs, outputs=outputs)
            got = answer.as_numpy("OUTPUT")
            if datatype == "BYTES":
                got = np.array([x.encode() if isinstance(x, str) else x for x in got.ravel()],
                               object).reshape(got.shape)  # fmt: skip
            equal(got, array, datatype)


def check_numbers_of_a_network(target: Target) -> None:
    rows = np.random.default_rng(7).normal(size=(5, 32)).astype(np.float32)
    with client(target) as c:
        for binary in (True, False):
            answer = c.infer("mlp", [tensor("INPUT", rows, "FP32", binary=binary)])
            np.testing.assert_allclose(
                answer.as_numpy("OUTPUT"), harness.mlp(rows), rtol=1e-4, atol=1e-3
            )


def check_versions(target: Target) -> None:
    rows = np.array([[1.5, -2.0]], np.float32)
    with client(target) as c:
        for wanted, answered, factor in (("1", "1", 1), ("2", "2", 2), ("", "2", 2)):
            result = c.infer("versions", [tensor("INPUT", rows, "FP32")], model_version=wanted)
            equal(result.get_response()["model_version"], answered, f"version for {wanted!r}")
            equal(result.as_numpy("OUTPUT"), rows * np.float32(factor), f"answer of {wanted!r}")


def check_classification(target: Target) -> None:
    scores = np.array([[0.1, 0.7, 0.2, 0.4], [3, -1, 2, 9]], np.float32)
    with client(target) as c:
        for binary in (True, False):
            outputs = asked("OUTPUT", binary=binary, class_count=2)
            result = c.infer("identity_fp32", [tensor("INPUT", scores, "FP32")], outputs=outputs)
            output = result.get_output("OUTPUT")
            equal((output["datatype"], output["shape"]), ("BYTES", [2, 2]), "output")
            rows = [[x if isinstance(x, str) else x.decode() for x in row]
                    for row in result.as_numpy("OUTPUT")]  # fmt: skip
            indexes = [[int(item.split(":")[1]) for item in row] for row in rows]
            equal(indexes, [[1, 3], [3, 0]], "class indexes")


def check_request_parameters(target: Target) -> None:
    with client(target) as c:
        result = c.infer(
            "add_sub", pair(), priority=1, timeout=10_000_000, sequence_id=42, sequence_start=True,
            sequence_end=True, parameters={"mine": "text", "flag": True, "n": 3, "x": 0.5},
            headers={"x-request-id": "mine-7"}, query_params={"a": "b"},
        )  # fmt: skip
        equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum")


def check_request_identity_is_returned(target: Target) -> None:
    body, length = triton.InferenceServerClient.generate_request_body(pair(), request_id="body")
    headers = {"Inference-Header-Content-Length": str(length), "x-request-id": "mine-7"}
    with client(target) as c:

        def identity() -> str | None:
            response = c._post("v2/models/add_sub/infer", body, headers, None)
            response.read()  # else the client's one connection may not be free for the next call
            return response.get("x-request-id")

        equal(identity(), "mine-7", "x-request-id")
        del headers["x-request-id"]
        made = [identity() for _ in range(2)]
        holds(made[0] and made[1] and made[0] != made[1], f"made ids: {made}")


def check_static_body_helpers(target: Target) -> None:
    """The bodies that the client makes and reads, on a connection that is not its own."""
    import httpx

    body, length = triton.InferenceServerClient.generate_request_body(pair(), request_id="r")
    headers = {"Inference-Header-Content-Length": str(length)}
    response = httpx.post(
        f"http://{target.http}/v2/models/add_sub/infer", content=body, headers=headers
    )
    equal(response.status_code, 200, "status")
    result = triton.InferenceServerClient.parse_response_body(
        response.content, header_length=int(response.headers["Inference-Header-Content-Length"])
    )
    equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum")


def check_async_infer(target: Target) -> None:
    with client(target, concurrency=8) as c:
        calls = [
            c.async_infer("add_sub", pair(first=np.full((1, 16), n, np.int32)), request_id=str(n))
            for n in range(100)
        ]
        for n, call in enumerate(calls):
            result = call.get_result(timeout=30)
            equal(result.get_response()["id"], str(n), "id")
            equal(result.as_numpy("OUTPUT0"), np.full((1, 16), n + 3, np.int32), f"answer {n}")


async def check_aio(target: Target) -> None:
    async with triton_aio.InferenceServerClient(target.http) as c:
        equal(await c.is_server_live(), True, "live")
        equal(await c.is_server_ready(), True, "ready")
        equal(await c.is_model_ready("add_sub"), True, "model ready")
        equal((await c.get_model_metadata("add_sub"))["name"], "add_sub", "metadata")
        results = await asyncio.gather(*(
            c.infer("add_sub", pair(first=np.full((1, 16), n, np.int32), binary=n % 2 == 0))
            for n in range(60)
        ))  # fmt: skip
        for n, result in enumerate(results):
            equal(result.as_numpy("OUTPUT0"), np.full((1, 16), n + 3, np.int32), f"answer {n}")
        for algorithm in ("gzip", "deflate"):
            result = await c.infer(
                "add_sub", pair(), request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )  # fmt: skip
            equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], algorithm)
        with refused(InferenceServerException, "404", about="nonesuch"):
            await c.infer("nonesuch", pair())


def check_compression(target: Target) -> None:
    array = np.zeros((1000, 100), np.float32)
    with client(target) as c:
        for there in (None, "gzip", "deflate"):
            for back in (None, "gzip", "deflate"):
                result = c.infer(
                    "identity_fp32", [tensor("INPUT", array, "FP32")],
                    request_compression_algorithm=there, response_compression_algorithm=back,
                )  # fmt: skip
                equal(result.as_numpy("OUTPUT"), array, f"there {there}, back {back}")


def check_compression_really_happens(target: Target) -> None:
    array = np.zeros((1000, 100), np.float32)
    body, length = triton.InferenceServerClient.generate_request_body(
        [tensor("INPUT", array, "FP32")]
    )
    headers = {"Inference-Header-Content-Length": str(length)}
    with client(target) as c:
        for name in ("gzip", "deflate"):
            headers["Accept-Encoding"] = name
            response = c._post("v2/models/identity_fp32/infer", body, headers, None)
            equal(response.get("content-encoding"), name, "content-encoding")
            sent = len(response.read())
            holds(sent < 10_000, f"{sent} bytes came")


def check_large_message(target: Target) -> None:
    array = np.arange(4 * 2**20, dtype=np.float32).reshape(4, -1)
    with client(target) as c:
        result = c.infer("identity_fp32", [tensor("INPUT", array, "FP32")])
        equal(result.as_numpy("OUTPUT"), array, "16 MiB")


def check_body_over_the_limit(target: Target) -> None:
    """The server may refuse by the length alone and close, so the client may see either."""
    array = np.zeros((1, 17 * 2**20), np.float32)
    try:
        with client(target) as c:
            c.infer("identity_fp32", [tensor("INPUT", array, "FP32")])
    except InferenceServerException as error:
        holds(error.status() in ("413", "429"), f"status {error.status()}: {error}")
    except OSError:
        pass
    else:
        raise harness.WrongError("68 MiB were accepted over the limit of 64 MiB")
    with client(target) as c:
        equal(c.is_server_live(), True, "live after a body over the limit")


# --- bad input -----------------------------------------------------------------------------------


def check_unknown_names(target: Target) -> None:
    with client(target) as c:
        with refused(InferenceServerException, "404", about="nonesuch"):
            c.infer("nonesuch", pair())
        with refused(InferenceServerException, "404", about="99"):
            c.infer("versions", pair(), model_version="99")
        with refused(InferenceServerException, "400", about="INPUT1"):
            c.infer("add_sub", pair()[:1])
        with refused(InferenceServerException, "400", about="OUTPUT7"):
            c.infer("add_sub", pair(), outputs=asked("OUTPUT7"))
        for response, status, what in (
            (lambda: c._get("v2/nothing/here", None, None), 404, "an unknown path"),
            (
                lambda: c._post("v2/models/add_sub/try", "{}", None, None),
                404,
                "an unknown call",
            ),
            (lambda: c._get("v2/models/add_sub/infer", None, None), 405, "GET infer"),
        ):
            answer = response()
            text = answer.read().decode()  # read, or the connection is not given back
            equal(answer.status_code, status, f"status of {what} ({text})")
            holds('"error"' in text, f"{what}: {text}")


def check_wrong_tensors(target: Target) -> None:
    cases = {
        "datatype": tensor("INPUT0", PAIR[0].astype(np.float32), "FP32"),
        "rank": tensor("INPUT0", PAIR[0].reshape(16), "INT32"),
        "dimension": tensor("INPUT0", np.zeros((1, 15), np.int32), "INT32"),
        "byte count": tensor("INPUT0", PAIR[0], "INT32").set_shape([2, 16]),
        "element count": tensor("INPUT0", PAIR[0], "INT32", binary=False).set_shape([2, 16]),
        "negative": tensor("INPUT0", PAIR[0], "INT32").set_shape([-1, 16]),
        "enormous": tensor("INPUT0", PAIR[0], "INT32").set_shape([2**61, 16]),
    }
    with client(target) as c:
        for what, first in cases.items():
            try:
                with refused(InferenceServerException, "400", about="INPUT0"):
                    c.infer("add_sub", [first, pair()[1]])
            except AssertionError as error:
                raise harness.WrongError(f"wrong {what}: {error}") from error
        equal(c.infer("add_sub", pair()).as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum after all")


def check_broken_bodies(target: Target) -> None:
    body, length = triton.InferenceServerClient.generate_request_body(pair())
    cases: dict[str, tuple[Any, dict[str, str]]] = {
        "not JSON": ("{", {}),
        "empty": ("", {}),
        "a list": ("[1]", {}),
        "no inputs": ("{}", {}),
        "inputs is a string": ('{"inputs": "x"}', {}),
        "header longer than the body": (body, {"Inference-Header-Content-Length": "99999"}),
        "header in the middle": (body, {"Inference-Header-Content-Length": str(length - 4)}),
        "header not a number": (body, {"Inference-Header-Content-Length": "many"}),
        "header negative": (body, {"Inference-Header-Content-Length": "-5"}),
        "truncated binary": (body[:-8], {"Inference-Header-Content-Length": str(length)}),
        "trailing binary": (body + b"xx", {"Inference-Header-Content-Length": str(length)}),
        "not gzip": (body, {"Content-Encoding": "gzip"}),
    }
    with client(target) as c:
        for what, (sent, headers) in cases.items():
            response = c._post("v2/models/add_sub/infer", sent, headers, None)
            text = response.read().decode()
            equal(response.status_code, 400, f"{what}: status ({text})")
            holds('"error"' in text and "Traceback" not in text, f"{what}: {text}")
        equal(c.infer("add_sub", pair()).as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum after all")


if __name__ == "__main__":
    harness.main(dict(vars(sys.modules["__main__"])))
