"""A sidecar in front of another server, as a process of its own, and what the tests need for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import TensorSpec
from tests.e2e.support import SERVICE, Client, floats, onnx_times, variant
from tests.support.upstream import Model, Upstream

#: The name of the model on the other server, and here unless a test wants them to agree.
THERE, HERE = "there", "here"
#: What the fallback multiplies by; the other server answers its input as it is.
FALLBACK_TIMES = 10.0


def upstream(**settings: Any) -> Upstream:
    """The other server: ``y = x``, [batch, 1] as ``support.request`` sends it."""
    tensors = {
        "inputs": (TensorSpec("x", "FP32", (-1, 1)),),
        "outputs": (TensorSpec("y", "FP32", (-1, 1)),),
        "max_batch_size": 2**24,
    }
    return Upstream(Model(name=THERE, **tensors), **settings)


def remote(
    address: str, *, version: str = "2", roles: Sequence[str] = ("serving",), **runtime: Any
) -> dict:
    """A variant's tree."""
    settings = {"kind": "remote", "address": address, "connect_timeout_s": 20, **runtime}
    return {"name": "remote", "version": version, "roles": list(roles), "runtime": settings}


def in_front(address: str, name: str = HERE, **settings: Any) -> dict:
    """A model's tree with one remote variant, which is called otherwise there."""
    return {"name": name, "variants": [remote(address, model_name=THERE)], **settings}


def guarded(address: str, folder: Path, name: str = "guarded", **settings: Any) -> dict:
    """The same with a fallback in process: version 1, ``y = 10 x``."""
    path = onnx_times(folder, FALLBACK_TIMES, f"{name}.onnx")
    fallback = variant("onnx", path, version="1", roles=("fallback",))
    variants = [fallback, remote(address, model_name=THERE)]
    return {"name": name, "variants": variants, **settings}


def fell_back(response: pb.ModelInferResponse) -> bool:
    """Whether the fallback answered; it must say so, and the other server must not."""
    says = response.parameters["sidecar_fallback"].string_param
    assert says in ("", "1/onnx")
    assert response.model_version == ("1" if says else "2")
    return bool(says)


def answers(client: Client, model: str, value: float) -> bool:
    """The right answer of either variant; ``True``: it was the fallback's."""
    response = client.infer(model, value)
    fallen = fell_back(response)
    assert floats(response) == [value * (FALLBACK_TIMES if fallen else 1)]
    return fallen


def raw_call(client: Client, body: bytes, **options: Any) -> tuple[bytes, dict]:
    """Send bytes as they are; the answer's bytes and its trailing metadata."""
    method = client.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    answer, call = method.with_call(body, **{"timeout": 20, **options})
    return answer, dict(call.trailing_metadata())


def counted(client: Client, model: str, version: str = "2") -> dict[str, int]:
    """The figures of ``ModelStatistics``."""
    row = client.statistics(model, version)
    stats = row.inference_stats
    return {
        "success": stats.success.count, "fail": stats.fail.count,
        "inferences": row.inference_count, "executions": row.execution_count,
        "hits": stats.cache_hit.count, "misses": stats.cache_miss.count,
    }  # fmt: skip


class Counting:
    """What was counted for a model since this was made."""

    def __init__(self, client: Client, model: str, version: str = "2") -> None:
        self._client, self._model, self._version = client, model, version
        self._before = counted(client, model, version)

    def since(self) -> dict[str, int]:
        """The figures that grew, and by how much."""
        now = counted(self._client, self._model, self._version)
        return {name: now[name] - old for name, old in self._before.items() if now[name] != old}


def large(mebibytes: int) -> np.ndarray:
    """Random FP32 [rows, 1]."""
    count = mebibytes * 2**20 // 4
    return np.random.default_rng(0).normal(size=(count, 1)).astype(np.float32)
