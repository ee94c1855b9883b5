"""tritonclient over gRPC: the blocking client, and its callbacks."""

from __future__ import annotations

import queue
import sys
from typing import Any

import harness
import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
from harness import Target, equal, holds, refused
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

PAIR = np.arange(16, dtype=np.int32).reshape(1, 16), np.full((1, 16), 3, np.int32)


def client(target: Target) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(target.grpc)


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def pair(first: np.ndarray = PAIR[0], second: np.ndarray = PAIR[1]) -> list[triton.InferInput]:
    return [tensor("INPUT0", first, "INT32"), tensor("INPUT1", second, "INT32")]


def code(name: str) -> str:
    return f"StatusCode.{name}"


# --- health and descriptions ---------------------------------------------------------------------


def check_health(target: Target) -> None:
    with client(target) as c:
        equal(c.is_server_live(), True, "live")
        equal(c.is_server_ready(), True, "ready")
        equal(c.is_model_ready("add_sub"), True, "add_sub ready")
        equal(c.is_model_ready("versions", "2"), True, "versions:2 ready")
        equal(c.is_model_ready("versions", "99"), False, "versions:99 ready")
        equal(c.is_model_ready("nonesuch"), False, "nonesuch ready")


def check_server_metadata(target: Target) -> None:
    with client(target) as c:
        metadata = c.get_server_metadata()
    holds(metadata.name, "the server has no name")
    holds(metadata.version, "the server has no version")
    offered = set(metadata.extensions)
    for name in ("binary_tensor_data", "classification", "model_configuration",
                 "model_repository", "statistics", "system_shared_memory", "trace", "logging",
                 "parameters"):  # fmt: skip
        holds(name in offered, f"extension {name} is not listed: {sorted(offered)}")
    holds("cuda_shared_memory" not in offered, "cuda_shared_memory is listed, but not offered")


def check_model_metadata(target: Target) -> None:
    with client(target) as c:
        metadata = c.get_model_metadata("add_sub", as_json=True)
        equal(metadata["name"], "add_sub", "name")
        holds(metadata["platform"], "no platform")
        described = [(t["name"], t["datatype"], t["shape"]) for t in metadata["inputs"]]
        equal(
            described, [("INPUT0", "INT32", ["-1", "16"]), ("INPUT1", "INT32", ["-1", "16"])], "in"
        )
        described = [(t["name"], t["datatype"], t["shape"]) for t in metadata["outputs"]]
        equal(
            described,
            [("OUTPUT0", "INT32", ["-1", "16"]), ("OUTPUT1", "INT32", ["-1", "16"])],
            "out",
        )
        equal(sorted(c.get_model_metadata("versions").versions), ["1", "2"], "versions")
        for datatype in harness.samples(ml_dtypes.bfloat16):
            metadata = c.get_model_metadata(f"identity_{datatype.lower()}")
            equal(metadata.inputs[0].datatype, datatype, "datatype")
        with refused(InferenceServerException, code("NOT_FOUND"), about="nonesuch"):
            c.get_model_metadata("nonesuch")


def check_model_config(target: Target) -> None:
    with client(target) as c:
        config = c.get_model_config("mlp").config
        equal(config.name, "mlp", "name")
        equal(config.backend, "onnxruntime", "backend")
        holds(config.max_batch_size > 1, f"max_batch_size {config.max_batch_size}")
        equal(list(config.input[0].dims), [32], "dims (without the batch)")
        equal(config.input[0].data_type, triton.model_config_pb2.TYPE_FP32, "data_type")
        equal(config.WhichOneof("scheduling_choice"), "dynamic_batching", "scheduling")
        equal(config.dynamic_batching.max_queue_delay_microseconds, 500, "max delay")
        config = c.get_model_config("add_sub").config
        equal(config.WhichOneof("scheduling_choice"), None, "scheduling without batching")
        config = c.get_model_config("identity_bytes").config
        equal(config.input[0].data_type, triton.model_config_pb2.TYPE_STRING, "data_type")
        # as_json goes through MessageToJson: names must be known to the client's own schema.
        equal(c.get_model_config("mlp", "1", as_json=True)["config"]["name"], "mlp", "as_json")
        with refused(InferenceServerException, code("NOT_FOUND"), about="nonesuch"):
            c.get_model_config("nonesuch")


# --- inference -----------------------------------------------------------------------------------


def check_infer(target: Target) -> None:
    with client(target) as c:
        result = c.infer("add_sub", pair(), request_id="my id")
    equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum")
    equal(result.as_numpy("OUTPUT1"), PAIR[0] - PAIR[1], "difference")
    response = result.get_response()
    equal(
        (response.model_name, response.model_version, response.id),
        ("add_sub", "1", "my id"),
        "head",
    )
    equal(result.as_numpy("OUTPUT9"), None, "an output that does not exist")


def check_infer_without_id_echoes_none(target: Target) -> None:
    with client(target) as c:
        equal(c.infer("add_sub", pair()).get_response().id, "", "id")


def check_versions(target: Target) -> None:
    rows = np.array([[1.5, -2.0]], np.float32)
    with client(target) as c:
        for asked, answered, factor in (("1", "1", 1), ("2", "2", 2), ("", "2", 2)):
            result = c.infer("versions", [tensor("INPUT", rows, "FP32")], model_version=asked)
            equal(result.get_response().model_version, answered, f"version for {asked!r}")
            equal(result.as_numpy("OUTPUT"), rows * np.float32(factor), f"answer of {asked!r}")


def check_all_datatypes(target: Target) -> None:
    with client(target) as c:
        for datatype, array in harness.samples(ml_dtypes.bfloat16).items():
            result = c.infer(f"identity_{datatype.lower()}", [tensor("INPUT", array, datatype)])
            output = result.get_output("OUTPUT")
            equal((output.datatype, list(output.shape)), (datatype, [2, 3]), "output")
            equal(result.as_numpy("OUTPUT"), array, datatype)


def check_strings_that_are_not_utf8(target: Target) -> None:
    """ONNX Runtime's strings are UTF-8: others must be refused, not replaced."""
    with client(target) as c:
        sent = tensor("INPUT", np.array([[b"ok", b"\x00\xff"]], object), "BYTES")
        with refused(InferenceServerException, code("INVALID_ARGUMENT"), about="UTF-8"):
            c.infer("identity_bytes", [sent])


def check_typed_contents_are_answered_raw(target: Target) -> None:
    fields = {
        "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
        "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
        "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
        "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
    }  # fmt: skip
    with client(target) as c:
        for datatype, field in fields.items():
            array = harness.samples(ml_dtypes.bfloat16)[datatype]
            request = service_pb2.ModelInferRequest(model_name=f"identity_{datatype.lower()}")
            added = request.inputs.add(name="INPUT", datatype=datatype, shape=array.shape)
            getattr(added.contents, field).extend(array.ravel().tolist())
            response = c._client_stub.ModelInfer(request)
            equal(len(response.raw_output_contents), 1, f"{datatype}: raw outputs")
            equal(triton.InferResult(response).as_numpy("OUTPUT"), array, datatype)


def check_shapes(target: Target) -> None:
    with client(target) as c:
        for shape in ((1, 1), (7, 1), (1, 5), (64, 33), (0, 3)):
            array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            result = c.infer("identity_fp32", [tensor("INPUT", array, "FP32")])
            equal(result.as_numpy("OUTPUT"), array, f"shape {shape}")


def check_nan_is_served(target: Target) -> None:
    rows = np.full((2, 32), np.nan, np.float32)
    with client(target) as c:
        answer = c.infer("mlp", [tensor("INPUT", rows, "FP32")]).as_numpy("OUTPUT")
    holds(answer.shape == (2, 10) and np.isnan(answer).all(), f"got {answer}")


def check_numbers_of_a_network(target: Target) -> None:
    rows = np.random.default_rng(7).normal(size=(5, 32)).astype(np.float32)
    with client(target) as c:
        answer = c.infer("mlp", [tensor("INPUT", rows, "FP32")]).as_numpy("OUTPUT")
    np.testing.assert_allclose(answer, harness.mlp(rows), rtol=1e-4, atol=1e-3)


def check_requested_outputs(target: Target) -> None:
    asked = [triton.InferRequestedOutput("OUTPUT1"), triton.InferRequestedOutput("OUTPUT0")]
    with client(target) as c:
        result = c.infer("add_sub", pair(), outputs=asked)
        equal([o.name for o in result.get_response().outputs], ["OUTPUT1", "OUTPUT0"], "order")
        equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum")
        equal(result.as_numpy("OUTPUT1"), PAIR[0] - PAIR[1], "difference")
        result = c.infer("add_sub", pair(), outputs=asked[:1])
        equal([o.name for o in result.get_response().outputs], ["OUTPUT1"], "one output")
        equal(result.as_numpy("OUTPUT0"), None, "the output not asked for")


def check_classification(target: Target) -> None:
    scores = np.array([[0.1, 0.7, 0.2, 0.4], [3, -1, 2, 9]], np.float32)
    asked = [triton.InferRequestedOutput("OUTPUT", class_count=2)]
    with client(target) as c:
        result = c.infer("identity_fp32", [tensor("INPUT", scores, "FP32")], outputs=asked)
        output = result.get_output("OUTPUT")
        equal((output.datatype, list(output.shape)), ("BYTES", [2, 2]), "output")
        classes = [[item.decode().split(":") for item in row] for row in result.as_numpy("OUTPUT")]
        equal([[int(i) for _, i in row] for row in classes], [[1, 3], [3, 0]], "class indexes")
        values = np.array([[float(s) for s, _ in row] for row in classes])
        np.testing.assert_allclose(values, [[0.7, 0.4], [9, 3]], rtol=1e-5)
        # More classes than there are scores: as many as there are.
        asked = [triton.InferRequestedOutput("OUTPUT", class_count=50)]
        result = c.infer("identity_fp32", [tensor("INPUT", scores, "FP32")], outputs=asked)
        equal(result.as_numpy("OUTPUT").shape, (2, 4), "all classes")
        strings = np.array([[b"a", b"b"]], object)
        with refused(InferenceServerException, code("INVALID_ARGUMENT")):
            c.infer("identity_bytes", [tensor("INPUT", strings, "BYTES")], outputs=asked)


def check_request_parameters(target: Target) -> None:
    with client(target) as c:
        result = c.infer(
            "add_sub", pair(), priority=1, timeout=10_000_000, sequence_id=42, sequence_start=True,
            sequence_end=True, parameters={"mine": "text", "flag": True, "n": 3, "x": 0.5},
        )  # fmt: skip
        equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum")
        result = c.infer("add_sub", pair(), sequence_id="by name")
        equal(result.as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum")


def check_request_identity_is_returned(target: Target) -> None:
    request = triton._utils._get_inference_request(
        model_name="add_sub", inputs=pair(), model_version="", request_id="body", outputs=None,
        sequence_id=0, sequence_start=False, sequence_end=False, priority=0, timeout=None,
        parameters=None,
    )  # fmt: skip
    with client(target) as c:

        def identity(*metadata: tuple[str, str]) -> Any:
            response, call = c._client_stub.ModelInfer.with_call(request, metadata=metadata)
            equal(response.id, "body", "the body's id")
            sent = [*call.initial_metadata(), *call.trailing_metadata()]
            return [item.value for item in sent if item.key == "x-request-id"]

        equal(identity(("x-request-id", "mine-7")), ["mine-7"], "x-request-id")
        first, second = identity(), identity()
        holds(len(first) == len(second) == 1 and first != second, f"made ids: {first}, {second}")


def check_async_callbacks(target: Target) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with client(target) as c:
        for n in range(200):
            first = np.full((1, 16), n, np.int32)
            c.async_infer(
                "add_sub", pair(first), lambda result, error: answers.put((result, error)),
                request_id=str(n), client_timeout=30,
            )  # fmt: skip
        seen = set()
        for _ in range(200):
            result, error = answers.get(timeout=30)
            holds(error is None, f"error: {error}")
            n = int(result.get_response().id)
            equal(result.as_numpy("OUTPUT0"), np.full((1, 16), n + 3, np.int32), f"answer {n}")
            seen.add(n)
    equal(seen, set(range(200)), "answers")


def check_async_batched(target: Target) -> None:
    """Requests that the server joins must get their own rows back."""
    answers: queue.Queue[Any] = queue.Queue()
    rows = np.random.default_rng(3).normal(size=(300, 32)).astype(np.float32)
    expected = harness.mlp(rows)
    with client(target) as c:
        for n in range(0, 300, 3):
            size = 1 + n // 3 % 3
            c.async_infer(
                "mlp", [tensor("INPUT", rows[n : n + size], "FP32")],
                lambda result, error: answers.put((result, error)), request_id=f"{n} {size}",
                client_timeout=30,
            )  # fmt: skip
        for _ in range(100):
            result, error = answers.get(timeout=30)
            holds(error is None, f"error: {error}")
            n, size = (int(part) for part in result.get_response().id.split())
            answer = result.as_numpy("OUTPUT")
            equal(answer.shape, (size, 10), "shape")
            np.testing.assert_allclose(answer, expected[n : n + size], rtol=1e-4, atol=1e-3)


def check_async_error_reaches_the_callback(target: Target) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with client(target) as c:
        c.async_infer("nonesuch", pair(), lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=30)
        holds(result is None, "a result came with the error")
        equal(error.status(), code("NOT_FOUND"), "status")


def check_cancel(target: Target) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with client(target) as c:
        steps = np.array([5000], np.int64)
        call = c.async_infer(
            "slow", [tensor("STEPS", steps, "INT64")],
            lambda result, error: answers.put((result, error)),
        )  # fmt: skip
        call.cancel()
        _, error = answers.get(timeout=30)
        equal(error.status(), code("CANCELLED"), "status")
        equal(c.is_server_live(), True, "live after a cancelled call")


def check_deadline(target: Target) -> None:
    with client(target) as c:
        steps = np.array([5000], np.int64)
        with refused(InferenceServerException, code("DEADLINE_EXCEEDED")):
            c.infer("slow", [tensor("STEPS", steps, "INT64")], client_timeout=0.1)
        equal(c.infer("add_sub", pair()).as_numpy("OUTPUT0"), PAIR[0] + PAIR[1], "sum after it")


def check_compression(target: Target) -> None:
    array = np.zeros((1000, 100), np.float32)
    with client(target) as c:
        for algorithm in ("gzip", "deflate"):
            result = c.infer(
                "identity_fp32", [tensor("INPUT", array, "FP32")], compression_algorithm=algorithm
            )
            equal(result.as_numpy("OUTPUT"), array, algorithm)


def check_large_message(target: Target) -> None:
    """16 MiB each way: four times gRPC's own default limit."""
    array = np.arange(4 * 2**20, dtype=np.float32).reshape(4, -1)
    with client(target) as c:
        result = c.infer("identity_fp32", [tensor("INPUT", array, "FP32")])
        equal(result.as_numpy("OUTPUT"), array, "16 MiB")
        array = np.zeros((1, 17 * 2**20), np.float32)
        with refused(InferenceServerException, code("RESOURCE_EXHAUSTED")):
            c.infer("identity_fp32", [tensor("INPUT", array, "FP32")])  # over the limit of 64 MiB
        equal(c.is_server_live(), True, "live after a message over the limit")


if __name__ == "__main__":
    harness.main(dict(vars(sys.modules["__main__"])))
