"""tritonclient over gRPC: streams, with callbacks and with asyncio; and its asyncio client."""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import AsyncIterator
from typing import Any

import harness
import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from harness import Target, equal, holds, refused
from tritonclient.utils import InferenceServerException

Answers = queue.Queue[tuple[Any, Any]]


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def pair(n: int = 0) -> list[triton.InferInput]:
    first, second = np.full((1, 16), n, np.int32), np.full((1, 16), 3, np.int32)
    return [tensor("INPUT0", first, "INT32"), tensor("INPUT1", second, "INT32")]


def sums(n: int) -> np.ndarray:
    return np.full((1, 16), n + 3, np.int32)


def opened(c: triton.InferenceServerClient, **options: Any) -> Answers:
    answers: Answers = queue.Queue()
    c.start_stream(lambda result, error: answers.put((result, error)), **options)
    return answers


# --- streams with callbacks ----------------------------------------------------------------------


def check_stream(target: Target) -> None:
    with triton.InferenceServerClient(target.grpc) as c:
        answers = opened(c)
        for n in range(100):
            c.async_stream_infer("add_sub", pair(n), request_id=str(n))
        seen = set()
        for _ in range(100):
            result, error = answers.get(timeout=30)
            holds(error is None, f"error: {error}")
            n = int(result.get_response().id)
            equal(result.as_numpy("OUTPUT0"), sums(n), f"answer {n}")
            seen.add(n)
        equal(seen, set(range(100)), "answers")
        c.stop_stream()
        holds(answers.empty(), "more answers than requests")


def check_stream_of_several_models(target: Target) -> None:
    with triton.InferenceServerClient(target.grpc) as c:
        answers = opened(c)
        arrays = harness.samples(ml_dtypes.bfloat16)
        for datatype, array in arrays.items():
            inputs = [tensor("INPUT", array, datatype)]
            c.async_stream_infer(f"identity_{datatype.lower()}", inputs, request_id=datatype)
        for _ in arrays:
            result, error = answers.get(timeout=30)
            holds(error is None, f"error: {error}")
            datatype = result.get_response().id
            equal(result.as_numpy("OUTPUT"), arrays[datatype], datatype)


def check_stream_goes_on_after_an_error(target: Target) -> None:
    with triton.InferenceServerClient(target.grpc) as c:
        answers = opened(c)
        c.async_stream_infer("nonesuch", pair(), request_id="bad")
        result, error = answers.get(timeout=30)
        holds(result is None and "nonesuch" in str(error), f"got {result}, {error}")
        c.async_stream_infer("add_sub", pair()[:1], request_id="bad")
        result, error = answers.get(timeout=30)
        holds(result is None and "INPUT1" in str(error), f"got {result}, {error}")
        c.async_stream_infer("add_sub", pair(4), request_id="good")
        result, error = answers.get(timeout=30)
        holds(error is None, f"error: {error}")
        equal(result.as_numpy("OUTPUT0"), sums(4), "sum")


def check_stream_error_echoes_the_id(target: Target) -> None:
    """The client's callback hides the id of a failed request, so its stub is asked."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="nonesuch", id="bad 1")
    with triton.InferenceServerClient(target.grpc) as c:
        answers = list(c._client_stub.ModelStreamInfer(iter([request])))
    equal(len(answers), 1, "answers")
    holds("nonesuch" in answers[0].error_message, f"message: {answers[0].error_message}")
    equal(answers[0].infer_response.id, "bad 1", "id")


def check_stream_with_grpc_errors(target: Target) -> None:
    with triton.InferenceServerClient(target.grpc) as c:
        answers = opened(c, headers={"triton_grpc_error": "true"})
        c.async_stream_infer("add_sub", pair(1))
        result, error = answers.get(timeout=30)
        holds(error is None, f"error: {error}")
        c.async_stream_infer("nonesuch", pair())
        _, error = answers.get(timeout=30)
        equal(error.status(), "StatusCode.NOT_FOUND", "status")
        c.stop_stream()
        answers = opened(c)  # the client can begin another
        c.async_stream_infer("add_sub", pair(2))
        result, error = answers.get(timeout=30)
        holds(error is None, f"error: {error}")
        equal(result.as_numpy("OUTPUT0"), sums(2), "sum")


def check_empty_final_response(target: Target) -> None:
    with triton.InferenceServerClient(target.grpc) as c:
        answers = opened(c)
        c.async_stream_infer("add_sub", pair(1), request_id="a", enable_empty_final_response=True)
        finals = []
        while not (finals and finals[-1]):
            result, error = answers.get(timeout=30)
            holds(error is None, f"error: {error}")
            response = result.get_response()
            equal(response.id, "a", "id")
            holds("triton_final_response" in response.parameters, "no triton_final_response")
            finals.append(response.parameters["triton_final_response"].bool_param)
            if len(response.outputs):
                equal(result.as_numpy("OUTPUT0"), sums(1), "sum")
        c.stop_stream()
        holds(answers.empty(), "an answer after the final one")


def check_stream_compression_and_requested_output(target: Target) -> None:
    with triton.InferenceServerClient(target.grpc) as c:
        answers = opened(c, compression_algorithm="gzip")
        outputs = [triton.InferRequestedOutput("OUTPUT1")]
        c.async_stream_infer("add_sub", pair(9), outputs=outputs, model_version="1")
        result, error = answers.get(timeout=30)
        holds(error is None, f"error: {error}")
        equal([o.name for o in result.get_response().outputs], ["OUTPUT1"], "outputs")
        equal(result.as_numpy("OUTPUT1"), np.full((1, 16), 6, np.int32), "difference")


def check_stream_cancelled(target: Target) -> None:
    with triton.InferenceServerClient(target.grpc) as c:
        answers = opened(c)
        c.async_stream_infer("slow", [tensor("STEPS", np.array([5000], np.int64), "INT64")])
        c.stop_stream(cancel_requests=True)
        _, error = answers.get(timeout=30)
        holds("CANCELLED" in str(error.status()), f"status: {error.status()}")
        equal(c.infer("add_sub", pair(5)).as_numpy("OUTPUT0"), sums(5), "sum after it")


def check_stream_deadline(target: Target) -> None:
    with triton.InferenceServerClient(target.grpc) as c:
        answers = opened(c, stream_timeout=0.2)
        c.async_stream_infer("slow", [tensor("STEPS", np.array([20000], np.int64), "INT64")])
        _, error = answers.get(timeout=30)
        # Who notices first ends it: the client by its status, or, where the request has not been
        # begun in time, the server by an error element, for which tritonclient has no status.
        late = error.status() == "StatusCode.DEADLINE_EXCEEDED"
        holds(late or "deadline" in str(error).lower(), f"error: {error!r} {error.status()}")


def check_many_streams(target: Target) -> None:
    """Idle streams must not keep other calls waiting."""
    clients = [triton.InferenceServerClient(target.grpc) for _ in range(16)]
    try:
        queues = [opened(c) for c in clients]
        for n, c in enumerate(clients):
            c.async_stream_infer("add_sub", pair(n))
        for n, answers in enumerate(queues):
            result, error = answers.get(timeout=30)
            holds(error is None, f"error: {error}")
            equal(result.as_numpy("OUTPUT0"), sums(n), f"stream {n}")
        with triton.InferenceServerClient(target.grpc) as c:
            equal(
                c.infer("add_sub", pair(1), client_timeout=60).as_numpy("OUTPUT0"), sums(1), "infer"
            )
            equal(c.is_server_live(client_timeout=60), True, "live")
    finally:
        for c in clients:
            c.close()


# --- asyncio -------------------------------------------------------------------------------------


async def check_aio_calls(target: Target) -> None:
    async with triton_aio.InferenceServerClient(target.grpc) as c:
        equal(await c.is_server_live(), True, "live")
        equal(await c.is_server_ready(), True, "ready")
        equal(await c.is_model_ready("add_sub"), True, "model ready")
        equal((await c.get_model_metadata("add_sub")).name, "add_sub", "metadata")
        equal((await c.get_model_config("add_sub")).config.name, "add_sub", "config")
        statistics = await c.get_inference_statistics("add_sub")
        equal(statistics.model_stats[0].name, "add_sub", "statistics")
        holds(len((await c.get_model_repository_index()).models) > 5, "index")


async def check_aio_infer(target: Target) -> None:
    async with triton_aio.InferenceServerClient(target.grpc) as c:
        results = await asyncio.gather(
            *(c.infer("add_sub", pair(n), request_id=str(n)) for n in range(100))
        )
        for n, result in enumerate(results):
            equal(result.get_response().id, str(n), "id")
            equal(result.as_numpy("OUTPUT0"), sums(n), f"answer {n}")
        with refused(InferenceServerException, "StatusCode.NOT_FOUND", about="nonesuch"):
            await c.infer("nonesuch", pair())
        with refused(InferenceServerException, "StatusCode.DEADLINE_EXCEEDED"):
            steps = tensor("STEPS", np.array([5000], np.int64), "INT64")
            await c.infer("slow", [steps], client_timeout=0.1)


async def check_aio_stream(target: Target) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for n in range(20):
            yield {"model_name": "add_sub", "inputs": pair(n), "request_id": str(n)}
        yield {"model_name": "nonesuch", "inputs": pair(0)}

    seen, errors = set(), []
    async with triton_aio.InferenceServerClient(target.grpc) as c:
        async for result, error in c.stream_infer(requests()):
            if error is not None:
                errors.append(str(error))
                continue
            n = int(result.get_response().id)
            equal(result.as_numpy("OUTPUT0"), sums(n), f"answer {n}")
            seen.add(n)
    equal(seen, set(range(20)), "answers")
    holds(len(errors) == 1 and "nonesuch" in errors[0], f"errors: {errors}")


if __name__ == "__main__":
    harness.main(dict(vars(sys.modules["__main__"])))
