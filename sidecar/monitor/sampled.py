"""Of which models requests are sampled, and which are watched for drift.

The gateway asks it of a configuration without types (``config_plain``), so nothing heavy is
imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.config import ModelConfig, SidecarConfig


def sampled_models(config: SidecarConfig) -> frozenset[str] | None:
    """Names of the models whose requests the monitor is to hear of; ``None``: all.

    Those that have a candidate, those to be watched for drift, and those that take labels. A
    monitor that was asked for without any of them hears of everything.
    """
    names = frozenset(
        m.name for m in config.models if m.is_watched or m.drift.wanted or m.labels is not None
    )
    return None if not names and config.monitor.enabled is True else names


def drift_models(config: SidecarConfig) -> list[ModelConfig]:
    """The models to watch for drift: all that are sampled, unless they say no."""
    if config.monitor.enabled is False:
        return []
    sampled = sampled_models(config)
    return [
        model
        for model in config.models
        if model.drift.enabled is not False and (sampled is None or model.name in sampled)
    ]
