"""Of the live requests, how many were compared, as it is shown."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.config_monitor import MonitorConfig
from sidecar.monitor.budget import AdaptiveRate, Budget
from sidecar.monitor.ingest import Ingest
from sidecar.monitor.ledger import by_reason
from sidecar.monitor.view import Coverage


def coverage(
    counts: Mapping[str, int],
    settings: MonitorConfig,
    rate: AdaptiveRate,
    budget: Budget,
    ingest: Ingest,
) -> Coverage:
    """``counts``: of all lives, by the names of ``Ledger``."""
    dropped, not_mirrored = by_reason(counts)
    return Coverage(
        # The taps tell their counts once a second: what has arrived may be ahead of them.
        sampled=max(counts.get("tap_sampled", 0), counts.get("received", 0)),
        received=counts.get("received", 0),
        compared=counts.get("compared", 0),
        set_aside=counts.get("set_aside", 0),
        dropped=dict(sorted(dropped.items())),
        not_mirrored=dict(sorted(not_mirrored.items())),
        rate=rate.rate,
        cpu_share_used=budget.used,
        queue_bytes=ingest.queue_bytes,
        rate_wanted=rate.wanted,
        cpu_share=settings.mirror.cpu_share,
        queue_bytes_max=settings.channel.queue_bytes,
    )
