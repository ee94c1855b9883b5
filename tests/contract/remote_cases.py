"""The cases of ``remote``: each has a server of its own, on loopback, while it is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sidecar.config import VariantConfig
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import TensorSpec
from tests.contract.cases import Case
from tests.support import models
from tests.support.upstream import Infer, Model, Upstream, remote_variant


def _serve(
    model: Model, infer: Infer | None = None
) -> Callable[[pytest.FixtureRequest, Path], VariantConfig]:
    def make(request: pytest.FixtureRequest, _folder: Path) -> VariantConfig:
        upstream = Upstream(model)
        if infer is not None:
            upstream.infer = infer
        request.addfinalizer(upstream.stop)
        return remote_variant(upstream.address)

    return make


def _identity_case(datatype: str) -> Case:
    inputs = (TensorSpec("x", datatype, (-1, 3)),)
    outputs = (TensorSpec("y", datatype, (-1, 3)),)
    return Case(
        id=f"remote-identity-{datatype}",
        kind="remote",
        make=_serve(Model(inputs=inputs, outputs=outputs, max_batch_size=16)),
        inputs=inputs,
        outputs=outputs,
        max_batch_size=16,
        expected=lambda arrays: {"y": arrays["x"]},
    )


def _mlp(body: bytes, _context: object) -> bytes:
    request = pb.ModelInferRequest.FromString(body)
    x = np.frombuffer(request.raw_input_contents[0], np.float32)
    y = models.mlp_expected(x.reshape(request.inputs[0].shape)).astype(np.float32)
    answer = pb.ModelInferResponse(model_name="there", raw_output_contents=[y.tobytes()])
    answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
    return answer.SerializeToString()


_X = (TensorSpec("x", "FP32", (-1, 32)),)
_Y = (TensorSpec("y", "FP32", (-1, 10)),)

REMOTE_CASES = [
    *(_identity_case(datatype) for datatype in BY_NAME),
    Case(
        id="remote-mlp",
        kind="remote",
        make=_serve(Model(inputs=_X, outputs=_Y, max_batch_size=64), _mlp),
        inputs=_X,
        outputs=_Y,
        max_batch_size=64,
        expected=lambda arrays: {"y": models.mlp_expected(arrays["x"])},
        rtol=1e-5,
    ),
]
