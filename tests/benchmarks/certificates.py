"""How often certificates are wrong, and what they cost: simulated traffic, looked at often."""

from __future__ import annotations

import time

import numpy as np

from tests.benchmarks.tools import Row
from tests.validators.sequential import simulate
from validators.sequential.certificate import certify_live, log_e

RUNS = 2000
LIMIT = 0.01
ALPHA = 0.05


def certificates(rounds: int) -> list[Row]:
    """``rounds`` times 2,000 runs of 20,000 requests, a look at every 100."""
    looks = simulate.looks_at(100, 20_000)
    rng = np.random.default_rng(7)

    def share(evidence: simulate.Evidence) -> float:
        def at_limit(count: int) -> np.ndarray:
            return rng.binomial(100, LIMIT, (RUNS, count))

        found = [
            simulate.requests_to_certify(evidence, at_limit, looks, ALPHA, LIMIT)
            for _ in range(rounds)
        ]
        return float(np.isfinite(found).mean())

    wrong, repeated = (
        share(evidence)
        for evidence in (simulate.e_process_evidence, simulate.clopper_pearson_evidence)
    )
    runs = f"{rounds * RUNS} runs at the limit of {LIMIT:.0%}"
    single, whole = cpu_ms(lambda: log_e(3.5, 5000, LIMIT)), cpu_ms(certify)
    return [
        Row("certified falsely, e-process", "≤ 5 %", f"{wrong:.1%}", wrong <= ALPHA, runs),
        Row(
            "certified falsely, Clopper-Pearson at each look",
            "baseline",
            f"{repeated:.1%}",
            repeated > wrong,
            "what looking again and again at a fixed-sample bound does",
        ),
        Row("evidence of one output", "< 1 ms", f"{single:.2f} ms", single < 1, "CPU time"),
        Row("its certificate with bounds", "< 20 ms", f"{whole:.2f} ms", whole < 20, "CPU time"),
    ]


def certify() -> object:
    return certify_live(3.5, 5000, LIMIT, ALPHA)


def cpu_ms(call) -> float:
    call()
    started = time.thread_time()
    for _ in range(50):
        call()
    return (time.thread_time() - started) / 50 * 1000
