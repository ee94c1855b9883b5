"""Models that a real MLServer serves in the tests. Runs in MLServer's environment, not in ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, RequestOutput, ResponseOutput
from mlserver.utils import extract_headers, insert_headers


class Identity(MLModel):
    """Answers each input ``x…`` as the output ``y…``, data and datatype as they came."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        outputs = [
            ResponseOutput(
                name="y" + tensor.name[1:],
                datatype=tensor.datatype,
                shape=tensor.shape,
                data=tensor.data,
            )
            for tensor in payload.inputs
        ]
        answer = InferenceResponse(
            model_name=self.name, model_version=self.version, outputs=outputs
        )
        headers = extract_headers(payload) or {}
        seen = {f"seen-{key}": value for key, value in headers.items() if key.startswith("x-")}
        insert_headers(answer, seen)
        return answer

    async def predict_stream(
        self, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        async for payload in payloads:
            yield await self.predict(payload)


class Affine(MLModel):
    """``y = 2 x + 1``: answers by a codec, as MLServer's own runtimes do. Describes nothing."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        if np.any(x == 99):
            message = "x may not be 99"
            raise InferenceError(message)
        if np.any(x == 77):
            await asyncio.sleep(30)  # longer than any caller waits
        output = self.encode(
            2 * x + 1, request_output=RequestOutput(name="y"), default_codec=NumpyCodec
        )
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
