"""The 32→64→10 network as a model of a peer server. Runs in that server's environment, not in ours.

The arithmetic is numpy's, which for so small a model costs less than any runtime: what is left is
the server. ``python peer_models.py GRPC_PORT HTTP_PORT`` is KServe; MLServer imports ``Mlp``.
"""

from __future__ import annotations

import sys

import numpy as np

_RNG = np.random.default_rng(0)
_FIRST, _SECOND = (_RNG.normal(size=size).astype(np.float32) for size in ((32, 64), (64, 10)))


def forward(x: np.ndarray) -> np.ndarray:
    """FP32 [n, 32] → [n, 10]."""
    return np.maximum(x @ _FIRST, 0) @ _SECOND


def mlserver_model() -> type:
    """MLServer's class of it, with its codec for arrays."""
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, InferenceResponse

    class Made(MLModel):
        async def predict(self, payload: InferenceRequest) -> InferenceResponse:
            y = forward(NumpyCodec.decode_input(payload.inputs[0]))
            output = NumpyCodec.encode_output("y", y)
            return InferenceResponse(model_name=self.name, outputs=[output])

    return Made


def kserve_main(grpc_port: int, http_port: int) -> None:
    """Serve it by KServe's own server until killed."""
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

    class Made(Model):
        def __init__(self) -> None:
            super().__init__("m")
            self.ready = True

        def predict(self, payload: InferRequest, headers: object = None) -> InferResponse:
            y = forward(payload.inputs[0].as_numpy())
            output = InferOutput("y", list(y.shape), "FP32")
            output.set_data_from_numpy(y, binary_data=True)
            return InferResponse(payload.id or "", "m", [output])

    ModelServer(http_port=http_port, grpc_port=grpc_port).start([Made()])


if __name__ == "__main__":
    kserve_main(int(sys.argv[1]), int(sys.argv[2]))
elif "mlserver" in sys.modules:
    Mlp = mlserver_model()
