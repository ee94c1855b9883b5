"""What ``check-config`` finds about drift without running anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.config import ModelConfig, SidecarConfig


def drift_notes(config: SidecarConfig) -> list[str]:
    """Settings that would keep a model from being watched as they say."""
    found = []
    for model in config.models:
        if model.drift.enabled is False:
            continue
        if model.drift.wanted and not config.monitored:
            found.append(f"nobody watches {model.name} for drift: monitor.enabled is false")
        found += [f"{model.name}: {text}" for text in (*_tensors(model), *_reference(model))]
    return found


def _tensors(model: ModelConfig) -> list[str]:
    """Names that no variant has, where variants declare their tensors."""
    found = []
    serving = [variant for variant in model.variants if "serving" in variant.roles]
    for side in ("inputs", "outputs"):
        declared = [getattr(variant, side) for variant in serving]
        if any(one is None for one in declared):
            continue
        known = {spec.name for one in declared for spec in one}
        for name in getattr(model.drift, side) or {}:
            if name not in known:
                listed = ", ".join(sorted(known))
                found.append(f"drift.{side} names {name!r}; the variants declare {listed}")
    return found


def _reference(model: ModelConfig) -> list[str]:
    path = model.drift.reference
    if path is None:
        return []
    from sidecar.monitor.drift_reference import ReferenceFileError, misfit, read

    try:
        registered = read(path)
    except ReferenceFileError as error:
        return [f"not watched for drift: {error}"]
    wrong = misfit(registered, model, str(path))
    return [f"not watched for drift: {wrong}"] if wrong else []
