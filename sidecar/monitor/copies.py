"""Which copies of the models the mirror child is to have, and where they live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.config import SidecarConfig
from sidecar.monitor.mirror_protocol import CopyInfo
from sidecar.monitor.plan import wanted_copies


def copies_to_load(
    config: SidecarConfig,
) -> tuple[dict[str, dict[str, Any]], dict[str, CopyInfo], set[str]]:
    """What the child is to load (key → plain tree), what it cannot, and what of it is executed."""
    device = config.monitor.mirror.device
    trees: dict[str, dict[str, Any]] = {}
    refused: dict[str, CopyInfo] = {}
    keep: set[str] = set()
    for model in config.models:
        wanted = wanted_copies(model)
        for variant in model.variants:
            if variant.key not in wanted:
                continue
            key = f"{model.name}:{variant.key}"
            tree = variant.model_dump(mode="json")
            why = _place(tree["runtime"], device)
            if why:
                refused[key] = CopyInfo(key, None, error=why)
                continue
            trees[key] = tree
            if wanted[variant.key]:
                keep.add(key)
    return trees, refused, keep


def loaded_copies(config: SidecarConfig, copies: Mapping[str, CopyInfo]) -> list[dict[str, Any]]:
    """What the child has loaded, or could not, for people."""
    variants = {
        f"{model.name}:{variant.key}": (model.name, variant)
        for model in config.models
        for variant in model.variants
    }
    rows = []
    for key, info in copies.items():
        model, variant = variants[key]
        rows.append(
            {
                "model": model,
                "variant": variant.key,
                "kind": variant.runtime.kind,
                "roles": list(variant.roles),
                "device": info.device,
                "memory_bytes": info.memory_bytes,
                "error": info.error,
            }
        )
    return rows


def _place(runtime: dict[str, Any], device: str | None) -> str:
    """Set where the monitor's copy lives; returns why it cannot, or an empty text."""
    if "device" not in runtime:  # another server's
        return ""
    if device is None:
        if runtime["device"] == "cpu":
            return ""
        # A mirror's memory and time on the device that serves would starve the service.
        return "it is on a GPU: choose with monitor.mirror.device where the monitor's copy lives"
    if device == "cpu" and runtime["kind"].startswith("tensorrt"):
        return "TensorRT has no CPU, and monitor.mirror.device is cpu"
    runtime["device"] = device
    return ""
