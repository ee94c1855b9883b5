"""tritonclient over gRPC with bad input: every mistake has its status and says what is wrong."""

from __future__ import annotations

import sys
from typing import Any

import harness
import numpy as np
import triton_grpc as calls
import tritonclient.grpc as triton
from harness import Target, equal, refused
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException


def check_unknown_names(target: Target) -> None:
    with calls.client(target) as c:
        with refused(InferenceServerException, calls.code("NOT_FOUND"), about="nonesuch"):
            c.infer("nonesuch", calls.pair())
        with refused(InferenceServerException, calls.code("NOT_FOUND"), about="99"):
            c.infer("versions", calls.pair(), model_version="99")
        wrong = [
            calls.tensor("INPUT0", calls.PAIR[0], "INT32"),
            calls.tensor("INPUT7", calls.PAIR[1], "INT32"),
        ]
        with refused(InferenceServerException, calls.code("INVALID_ARGUMENT"), about="INPUT7"):
            c.infer("add_sub", wrong)
        with refused(InferenceServerException, calls.code("INVALID_ARGUMENT"), about="INPUT1"):
            c.infer("add_sub", calls.pair()[:1])
        with refused(InferenceServerException, calls.code("INVALID_ARGUMENT"), about="OUTPUT7"):
            c.infer("add_sub", calls.pair(), outputs=[triton.InferRequestedOutput("OUTPUT7")])


def check_wrong_tensors(target: Target) -> None:
    cases = {
        "datatype": calls.tensor("INPUT0", calls.PAIR[0].astype(np.float32), "FP32"),
        "rank": calls.tensor("INPUT0", calls.PAIR[0].reshape(16), "INT32"),
        "dimension": calls.tensor("INPUT0", np.zeros((1, 15), np.int32), "INT32"),
        "byte count": calls.tensor("INPUT0", calls.PAIR[0], "INT32").set_shape([2, 16]),
        "negative": calls.tensor("INPUT0", calls.PAIR[0], "INT32").set_shape([-1, 16]),
        "enormous": calls.tensor("INPUT0", calls.PAIR[0], "INT32").set_shape([2**61, 16]),
    }
    with calls.client(target) as c:
        for what, first in cases.items():
            try:
                with refused(
                    InferenceServerException, calls.code("INVALID_ARGUMENT"), about="INPUT0"
                ):
                    c.infer("add_sub", [first, calls.pair()[1]])
            except AssertionError as error:
                raise harness.WrongError(f"wrong {what}: {error}") from error
        # Batches of different sizes in one request.
        with refused(InferenceServerException, calls.code("INVALID_ARGUMENT")):
            c.infer("add_sub", calls.pair(np.zeros((2, 16), np.int32)))
        with refused(InferenceServerException, calls.code("INVALID_ARGUMENT"), about="INPUT0"):
            c.infer("add_sub", [*calls.pair(), calls.tensor("INPUT0", calls.PAIR[0], "INT32")])
        equal(
            c.infer("add_sub", calls.pair()).as_numpy("OUTPUT0"),
            calls.PAIR[0] + calls.PAIR[1],
            "sum after all",
        )


def check_lying_bytes(target: Target) -> None:
    with calls.client(target) as c:
        for raw in (
            b"\x05\x00\x00\x00ab",
            b"\xff\xff\xff\xff",
            b"\x01\x00",
            b"\x00\x00\x00\x00" * 2,
        ):
            sent = calls.tensor("INPUT", np.array([[b"ab"]], object), "BYTES")
            sent._raw_content = raw
            with refused(InferenceServerException, calls.code("INVALID_ARGUMENT"), about="INPUT"):
                c.infer("identity_bytes", [sent])


def check_raw_and_typed_mixed(target: Target) -> None:
    def status(error: Any) -> str:
        return str(error.code())

    with calls.client(target) as c:
        request = service_pb2.ModelInferRequest(model_name="add_sub")
        for name in ("INPUT0", "INPUT1"):
            request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(calls.PAIR[0].tobytes())
        for typed in (False, True):  # one raw entry for two inputs; then one raw and one typed
            if typed:
                request.inputs[1].contents.int_contents.extend(range(16))
            error: type[Exception] = triton.grpc.RpcError
            with refused(error, calls.code("INVALID_ARGUMENT"), status=status):
                c._client_stub.ModelInfer(request)
        request = service_pb2.ModelInferRequest(model_name="add_sub")
        request.inputs.add(name="INPUT0", datatype="INT32", shape=[1, 16])
        request.parameters["triton_made_up"].bool_param = True
        with refused(error, calls.code("INVALID_ARGUMENT"), about="triton_made_up", status=status):
            c._client_stub.ModelInfer(request)


if __name__ == "__main__":
    harness.main(dict(vars(sys.modules["__main__"])))
