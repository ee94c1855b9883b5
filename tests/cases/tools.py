"""What the tests of cases share: a clock that is set by hand, and exchanges to offer."""

from __future__ import annotations

import random

import numpy as np

from sidecar.cases import Arrays, CaseWriter, Offer
from sidecar.config_monitor import CasesConfig

SECOND_NS = 10**9
DAY_NS = 86400 * SECOND_NS
START_NS = 1_800_000_000 * SECOND_NS


class HandClock:
    """Stands still until it is moved."""

    def __init__(self, now_ns=START_NS):
        self.at_ns = now_ns

    def now_ns(self):
        return self.at_ns

    def monotonic_ns(self):
        return self.at_ns


def config(**changes):
    """No reservoir, no worst, no failures, unless asked for; inputs are kept."""
    return CasesConfig(
        **{"reservoir": 0, "worst": 0, "per_failure": 0, "inputs": "keep", **changes}
    )


def writer(folder, clock=None, seed=0, pending_bytes_max=2**24, **changes):
    return CaseWriter(
        folder, config(**changes), clock or HandClock(), random.Random(seed),
        pending_bytes_max=pending_bytes_max,
    )  # fmt: skip


def offer(**changes):
    return Offer(**{"model": "m", "candidate": "m:2/int8", "baseline": "m:1/fp32", **changes})


def arrays(value=1.0, size=4):
    """What an exchange holds: one input, one output of each variant."""
    x = np.full((1, size), value, np.float32)
    return Arrays({"x": x}, {"m:1/fp32": {"y": x + 1}, "m:2/int8": {"y": x + 2}})


def never():
    raise AssertionError("arrays were read although the case is not wanted")


def stored(folder):
    """The ids of the files, whatever the index says."""
    return {path.stem for path in (folder / "shards").glob("*.safetensors")}
