"""Runtimes: one file each. A new one is a file and a line in ``BUILTIN``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from sidecar.errors import SidecarError
from sidecar.runtimes.warmup import warm_up

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Runtime

#: kind → module, whose ``build(variant) -> Runtime`` loads one copy. The modules are imported when
#: a config names their kind: torch and tensorrt cost seconds and hundreds of megabytes.
BUILTIN: dict[str, str] = {
    "onnxruntime": "sidecar.runtimes.onnxrt",
    "pytorch": "sidecar.runtimes.pytorch",
    "tensorrt": "sidecar.runtimes.trt",
    "tensorrt_rtx": "sidecar.runtimes.trt",
    "remote": "sidecar.runtimes.remote",
}


def build(variant: VariantConfig, *, largest_batch: int = 1) -> Runtime:
    """Load one copy of a variant, and warm it up as its ``warm_up`` setting says.

    Args:
        variant: its configuration.
        largest_batch: what the model's batching may join (``batching.max_size``).

    Raises:
        ArtifactError: the artifact is missing, corrupt, or of another kind.
        SidecarError: what the kind needs is not installed, or no such device exists.
    """
    kind = variant.runtime.kind
    try:
        module = import_module(BUILTIN[kind])
    except KeyError:
        known = ", ".join(sorted(BUILTIN))
        message = f"runtime kind {kind!r} is unknown; choose one of: {known}"
        raise SidecarError(message) from None
    builder: Callable[[VariantConfig], Runtime] = module.build
    runtime = builder(variant)
    try:
        warm_up(runtime, variant.runtime.warm_up, label=variant.key, largest_batch=largest_batch)
    except BaseException:
        runtime.close()
        raise
    return runtime
