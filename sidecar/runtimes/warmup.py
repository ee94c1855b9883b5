"""Executions before a copy counts as ready: the first request should not pay for set-up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sidecar.errors import RequestError
from sidecar.runtimes.base import Runtime

if TYPE_CHECKING:
    from sidecar.config_runtime import WarmUpConfig

_log = logging.getLogger(__name__)


def warm_up(runtime: Runtime, config: WarmUpConfig, *, label: str, largest_batch: int = 1) -> int:
    """Execute a copy on zeros, ``config.runs`` times for each batch size.

    A model may rightly fail on zeros (an index of 0 rows, a division): that is logged and is not
    an error, since real input may be fine.

    Args:
        runtime: the copy.
        config: its ``warm_up`` setting.
        label: the variant's name, for the log.
        largest_batch: what the model's batching may join; warmed up besides 1 when the config
            names no batch sizes.

    Returns:
        How many executions succeeded.
    """
    done = 0
    limit = runtime.signature.max_batch_size
    for batch in config.batch_sizes or sorted({1, min(largest_batch, max(limit, 1))}):
        if batch > 1 and batch > limit:
            _log.warning("%s: not warmed up with batch %d, its limit is %d", label, batch, limit)
            continue
        inputs = runtime.example_inputs(batch)
        for _ in range(config.runs):
            try:
                runtime.infer(inputs)
            except RequestError as error:
                _log.warning("%s: warm-up with batch %d failed: %s", label, batch, error)
                break
            done += 1
    return done
