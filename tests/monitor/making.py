"""Exchanges, pairs and clocks for tests of the monitor's parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from sidecar.config import ModelConfig
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.exchanges import Item
from sidecar.monitor.mirror_protocol import Answer, CopyInfo, Job
from sidecar.monitor.plan import ModelPlan, make_plan
from sidecar.monitor.policies import Precisions
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import Signature, TensorSpec


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.ns = 10**9

    def now_ns(self) -> int:
        return self.ns

    def monotonic_ns(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


def exchange(
    request_id: str = "r", *, variant: str = "m:2/new", size: int = 0, **changes: Any
) -> Exchange:
    """One whose request has ``size`` bytes of nothing, unless ``changes`` say otherwise."""
    fields: dict[str, Any] = {
        "request_id": request_id, "traceparent": "", "model": variant.partition(":")[0],
        "variant": variant, "transport": "grpc", "request": bytes(size), "response": b"",
        "request_header_bytes": None, "response_header_bytes": None, "outcome": "OK",
        "start_ns": 1, "end_ns": 2, "execute_ns": 1, "wall_ns": 10**18, "worker": 1,
    }  # fmt: skip
    return Exchange(**{**fields, **changes})


def request(x: np.ndarray, *, outputs: tuple[str, ...] = ()) -> bytes:
    """A ``ModelInferRequest`` with one FP32 input ``x``."""
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype="FP32")
    tensor.shape.extend(x.shape)
    message.raw_input_contents.append(x.astype(np.float32).tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    return message.SerializeToString()


def response(**outputs: np.ndarray) -> bytes:
    """A ``ModelInferResponse`` of FP32 outputs."""
    message = pb.ModelInferResponse(model_name="m")
    for name, array in outputs.items():
        tensor = message.outputs.add(name=name, datatype="FP32")
        tensor.shape.extend(array.shape)
        message.raw_output_contents.append(array.astype(np.float32).tobytes())
    return message.SerializeToString()


def signature(
    outputs: tuple[str, ...] = ("y",), *, batch: int = 64, width: int = 4, inputs: Any = None
) -> Signature:
    """x FP32 [-1, width] → outputs FP32 [-1, width]; without a batch dimension for ``batch=0``."""
    first = -1 if batch else 1
    given = inputs or (TensorSpec("x", "FP32", (first, width)),)
    specs = tuple(TensorSpec(name, "FP32", (first, width)) for name in outputs)
    return Signature(given, specs, batch, "test", "test")


def model(*variants: tuple[str, str, list[str]], **settings: Any) -> ModelConfig:
    """``m`` with variants (version, name, roles) on servers that nobody calls."""
    return ModelConfig.model_validate(
        {
            "name": "m",
            "variants": [
                {
                    "version": version, "name": name, "roles": roles,
                    "runtime": {"kind": "remote", "address": f"127.0.0.1:{index + 1}"},
                }
                for index, (version, name, roles) in enumerate(variants)
            ],
            **settings,
        }
    )  # fmt: skip


def plan(config: ModelConfig, **signatures: Signature | str) -> ModelPlan:
    """The plan when every variant has a copy; by name another signature, or why there is none."""
    copies = {}
    for variant in config.variants:
        given = signatures.get(variant.name, signature())
        key = f"m:{variant.key}"
        refused = isinstance(given, str)
        copies[key] = CopyInfo(key, None, error=given) if refused else CopyInfo(key, given)
    return make_plan(config, copies, Precisions())


def item(
    served: ModelPlan,
    variant: str,
    answer: dict[str, np.ndarray] | None,
    answers: dict[str, Any],
    *,
    wanted: frozenset[str] | None = None,
    rows: int | None = None,
    request_id: str = "",
) -> Item:
    """An exchange that ``variant`` answered, and what the child gave for other variants.

    ``answers``: variant → outputs, or an ``Answer``.
    """
    some = answer or next(
        (given for given in answers.values() if isinstance(given, dict)), {"y": np.zeros((1, 4))}
    )
    count = len(next(iter(some.values()))) if rows is None else rows
    inputs = {"x": np.zeros((count, 4), np.float32)}
    made = Item(
        exchange(request_id, variant=variant), served.served[variant], inputs, count, answer,
        wanted, Job(inputs, []),
    )  # fmt: skip
    for key, given in answers.items():
        made.answers[key] = given if isinstance(given, Answer) else Answer(given, compute_ns=10**6)
    return made
