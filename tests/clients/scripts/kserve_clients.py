"""KServe's Python clients (asyncio): InferenceGRPCClient and InferenceRESTClient, protocol v2."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from typing import Any

import grpc
import harness
import httpx
import numpy as np
from harness import Target, equal, holds, refused
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    InferResponse,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput

PAIR = np.arange(16, dtype=np.int32).reshape(1, 16), np.full((1, 16), 3, np.int32)

#: KServe maps these; it knows no BF16, and its numpy table calls UINT8… by the protocol's names.
DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
             "FP16", "FP32", "FP64", "BYTES")  # fmt: skip


def grpc_client(target: Target) -> InferenceGRPCClient:
    if target.ca is None:
        return InferenceGRPCClient(target.grpc)
    return InferenceGRPCClient(
        target.grpc, use_ssl=True, root_certificates=target.ca, private_key=target.key,
        certificate_chain=target.certificate,
    )  # fmt: skip


def rest_client(target: Target) -> InferenceRESTClient:
    if target.ca is None:
        return InferenceRESTClient(RESTConfig(protocol="v2"))
    context = ssl.create_default_context(cafile=target.ca)
    if target.certificate is not None:
        context.load_cert_chain(target.certificate, target.key)
    return InferenceRESTClient(RESTConfig(protocol="v2", verify=context))


def base(target: Target) -> str:
    return f"{'http' if target.ca is None else 'https'}://{target.http}"


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def request(model: str, *inputs: InferInput, **options: Any) -> InferRequest:
    return InferRequest(model, list(inputs), request_id="my id", **options)


def pair(*, binary: bool = True, **options: Any) -> InferRequest:
    inputs = (
        tensor("INPUT0", PAIR[0], "INT32", binary=binary),
        tensor("INPUT1", PAIR[1], "INT32", binary=binary),
    )
    return request("add_sub", *inputs, **options)


def answer(response: InferResponse, name: str) -> np.ndarray:
    found = response.get_output_by_name(name)
    holds(found is not None, f"no output {name}")
    return found.as_numpy()


def expect_sums(response: InferResponse, what: str) -> None:
    equal(answer(response, "OUTPUT0"), PAIR[0] + PAIR[1], f"sum, {what}")
    equal(answer(response, "OUTPUT1"), PAIR[0] - PAIR[1], f"difference, {what}")
    equal((response.model_name, response.id), ("add_sub", "my id"), f"head, {what}")


def grpc_status(error: Any) -> str:
    return str(error.code().name)


def http_status(error: Any) -> str:
    return str(error.response.status_code)


# --- gRPC ----------------------------------------------------------------------------------------


async def check_grpc_health(target: Target) -> None:
    async with grpc_client(target) as c:
        equal(await c.is_server_live(), True, "live")
        equal(await c.is_server_ready(), True, "ready")
        equal(await c.is_model_ready("add_sub"), True, "model ready")
        equal(await c.is_model_ready("nonesuch"), False, "nonesuch ready")


async def check_grpc_infer(target: Target) -> None:
    async with grpc_client(target) as c:
        expect_sums(await c.infer(pair()), "raw contents")
        expect_sums(await c.infer(pair(binary=False)), "typed contents")
        result = await c.infer(pair(request_outputs=[RequestedOutput("OUTPUT1")]))
        equal([output.name for output in result.outputs], ["OUTPUT1"], "requested outputs")
        result = await c.infer(pair(parameters={"mine": "text"}, model_version="1"))
        expect_sums(result, "with parameters and a version")


async def check_grpc_datatypes(target: Target) -> None:
    arrays = harness.samples(np.float16)  # BF16 is left out below
    async with grpc_client(target) as c:
        for datatype in DATATYPES:
            sent = request(
                f"identity_{datatype.lower()}", tensor("INPUT", arrays[datatype], datatype)
            )
            equal(answer(await c.infer(sent), "OUTPUT"), arrays[datatype], datatype)


async def check_grpc_many_at_once(target: Target) -> None:
    rows = np.random.default_rng(5).normal(size=(100, 32)).astype(np.float32)
    expected = harness.mlp(rows)
    async with grpc_client(target) as c:
        sent = (request("mlp", tensor("INPUT", rows[n : n + 1], "FP32")) for n in range(100))
        results = await asyncio.gather(*map(c.infer, sent))
    for n, result in enumerate(results):
        got = answer(result, "OUTPUT")
        np.testing.assert_allclose(got, expected[n : n + 1], rtol=1e-4, atol=1e-3)


async def check_grpc_errors(target: Target) -> None:
    async with grpc_client(target) as c:
        with refused(grpc.RpcError, "NOT_FOUND", about="nonesuch", status=grpc_status):
            await c.infer(request("nonesuch", tensor("INPUT0", PAIR[0], "INT32")))
        with refused(grpc.RpcError, "INVALID_ARGUMENT", about="INPUT1", status=grpc_status):
            await c.infer(request("add_sub", tensor("INPUT0", PAIR[0], "INT32")))
        wrong = tensor("INPUT0", PAIR[0].astype(np.float32), "FP32")
        with refused(grpc.RpcError, "INVALID_ARGUMENT", about="INPUT0", status=grpc_status):
            await c.infer(request("add_sub", wrong, tensor("INPUT1", PAIR[1], "INT32")))
        slow = request("slow", tensor("STEPS", np.array([5000], np.int64), "INT64"))
        with refused(grpc.RpcError, "DEADLINE_EXCEEDED", status=grpc_status):
            await c.infer(slow, timeout=0.1)


# --- REST ----------------------------------------------------------------------------------------


async def check_rest_health(target: Target) -> None:
    """This client reads ``live`` and ``ready`` from a JSON body, where Triton sends none."""
    async with rest_client(target) as c:
        equal(await c.is_server_live(base(target)), True, "live")
        equal(await c.is_server_ready(base(target)), True, "ready")
        equal(await c.is_model_ready(base(target), "add_sub"), True, "model ready")
        equal(await c.is_model_ready(base(target), "nonesuch"), False, "nonesuch ready")


async def check_rest_infer(target: Target) -> None:
    async with rest_client(target) as c:

        async def infer(sent: InferRequest) -> InferResponse:
            return await c.infer(base(target), sent, model_name="add_sub")

        expect_sums(await infer(pair(binary=False)), "JSON both ways")
        expect_sums(await infer(pair()), "binary there, JSON back")
        back = {"binary_data_output": True}
        expect_sums(await infer(pair(parameters=back)), "binary both ways")
        expect_sums(await infer(pair(binary=False, parameters=back)), "JSON there, binary back")
        one = [RequestedOutput("OUTPUT1", parameters={"binary_data": True})]
        result = await infer(pair(request_outputs=one))
        equal([output.name for output in result.outputs], ["OUTPUT1"], "requested outputs")
        equal(answer(result, "OUTPUT1"), PAIR[0] - PAIR[1], "difference")
        plain = {
            "id": "my id",
            "inputs": [
                {"name": name, "shape": [1, 16], "datatype": "INT32", "data": array.tolist()}
                for name, array in zip(("INPUT0", "INPUT1"), PAIR, strict=True)
            ],
        }
        expect_sums(await c.infer(base(target), plain, model_name="add_sub"), "a plain dict")


async def check_rest_datatypes(target: Target) -> None:
    arrays = harness.samples(np.float16)
    # This client turns binary answers into text, so strings must be UTF-8.
    arrays["BYTES"] = np.array([["", "abc"], ["žluť", "\n"]], object)
    back = {"binary_data_output": True}
    async with rest_client(target) as c:
        for datatype in DATATYPES:
            model, array = f"identity_{datatype.lower()}", arrays[datatype]
            sent = request(model, tensor("INPUT", array, datatype), parameters=dict(back))
            equal(answer(await c.infer(base(target), sent, model), "OUTPUT"), array, datatype)


async def check_rest_errors(target: Target) -> None:
    async with rest_client(target) as c:
        sent = request("nonesuch", tensor("INPUT0", PAIR[0], "INT32"))
        with refused(httpx.HTTPStatusError, "404", about="nonesuch", status=http_status):
            await c.infer(base(target), sent, "nonesuch")
        sent = request("add_sub", tensor("INPUT0", PAIR[0], "INT32", binary=False))
        with refused(httpx.HTTPStatusError, "400", about="INPUT1", status=http_status):
            await c.infer(base(target), sent, "add_sub")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # it logs each failure that these checks provoke
    harness.main(dict(vars(sys.modules["__main__"])))
