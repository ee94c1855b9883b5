"""Evidence of 32 replicas on one real PostgreSQL: each a process that writes and reads each second.

Every replica changes every count of three pairs of versions each second: all metrics of the digits
model, by pairs and by blocks, and its ten classes; and a histogram of either version's time. Pairs
are numbered over all replicas, so new stretches begin and old ones are joined all the while.
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.monitor import harms, shared_tables
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store import Store
from tests.benchmarks.tools import Row
from tests.support.postgres import postgres_server
from validators.sequential.paired import BLOCK, CELLS
from validators.sketches import LogHistogram

REPLICAS = 32
PAIRS = ("1", "2", "3")
PAIRS_A_SECOND = 20  # mirrored by each replica
CLASSES = 10
TARGET_MS = 100.0
_START_WITHIN_S = 240.0


def fleet_flush(rounds: int) -> list[Row]:
    """``rounds``: of 12 seconds each."""
    seconds = 12 * rounds
    with postgres_server() as server:
        url = server.make("fleet")
        Store.connect(StoreConfig(url=url), SystemClock()).close()
        told = _run(url, seconds)
        late = SharedEvidence("reader", SystemClock())
        store = Store.connect(StoreConfig(url=url), SystemClock())
        late.refresh(store)
        store.close()
    counted = sum(one["counted"] for one in told)
    read = sum(sum(late.cells(key).values()) for key in late.all_keys())
    assert abs(read - counted) < 1e-6 * counted, (read, counted)
    flushes = np.array([ms for one in told for ms in one["flush_ms"]])
    refreshes = np.array([ms for one in told for ms in one["refresh_ms"]])
    behind_s = max(max(one["behind_s"]) for one in told)
    rows = sum(one["rows"] for one in told) / seconds
    counts = sum(one["counts"] for one in told) / seconds
    p50, p99 = np.percentile(flushes, [50, 99])
    cpu = sum(one["cpu_s"] for one in told) / seconds / REPLICAS * 1000
    return [
        Row(
            f"{REPLICAS} replicas write each second for {seconds} s: a flush, p99",
            f"≤ {TARGET_MS:g} ms", f"{p99:.0f} ms", p99 <= TARGET_MS,
            f"median {p50:.0f} ms, {len(flushes)} flushes; {rows:.0f} rows a second with "
            f"{counts:.0f} counts; nothing lost",
        ),
        Row(
            "the same: the flush that began latest", "≤ 1 s late", f"{behind_s:.2f} s",
            behind_s <= 1.0, f"processor time of a replica: {cpu:.1f} ms a second",
        ),
        Row(
            "the same: reading what 31 others wrote, p99", "≤ 1 s",
            f"{np.percentile(refreshes, 99):.0f} ms", np.percentile(refreshes, 99) <= 1000,
            f"median {np.median(refreshes):.0f} ms",
        ),
    ]  # fmt: skip


def _run(url: str, seconds: int) -> list[dict[str, Any]]:
    # Forked: to start 32 interpreters takes longer than what is measured. Frozen: else the first
    # full collection in each would write to all that the benchmarks have imported, and copy it.
    gc.collect()
    gc.freeze()
    context = multiprocessing.get_context("fork")
    begin = context.Value("d", 0.0)
    ready, told = context.Queue(), context.Queue()
    processes = [
        context.Process(target=_replica, args=(url, number, seconds, begin, ready, told))
        for number in range(REPLICAS)
    ]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            ready.get(timeout=_START_WITHIN_S)
        begin.value = time.monotonic() + 1
        return [told.get(timeout=seconds + _START_WITHIN_S) for _ in processes]
    finally:
        gc.unfreeze()
        for process in processes:
            process.kill()
            process.join()


# --- one replica ----------------------------------------------------------------------------------


def _keys() -> tuple[list[EvidenceKey], list[EvidenceKey]]:
    """(counted in every stretch, of which there is one)."""
    by_pairs = [harms.ERROR, "slow", "slow_p50", "slow_p90", "slow_p95", "slow_p99"]
    metrics = [*by_pairs]
    metrics += [harms.by(name, length) for name in by_pairs for length in harms.BLOCK_LENGTHS]
    for name in (harms.FLIP, harms.ACCURACY, *(f"{harms.OUTPUT}{c}" for c in range(CLASSES))):
        metrics += [name, harms.by(name, harms.BLOCK_LENGTHS[0])]
    stretched, whole = [], []
    for version in PAIRS:
        new, old = f"digits:{version}/onnx", f"digits:{int(version) - 1}/onnx"
        policy = f"{version * 16}-{version * 16}"
        stretched += [EvidenceKey("digits", new, old, "", name, policy) for name in metrics]
        whole += [
            EvidenceKey("digits", new, f"digits:{version}/pytorch", output, name, policy)
            for output in ("", "scores")
            for name in ("disagrees", "noise")
        ]
    return stretched, whole


def _replica(
    url: str, number: int, seconds: int, begin: Any, ready: Any, out: Any
) -> None:  # fmt: skip
    store = Store.connect(StoreConfig(url=url, timeout_s=60), SystemClock(), f"replica-{number}")
    evidence = SharedEvidence(store.incarnation, SystemClock())
    evidence.become(store.incarnation)
    stretched, whole = _keys()
    told: dict[str, Any] = {"flush_ms": [], "refresh_ms": [], "behind_s": [], "rows": 0}
    told |= {"counts": 0, "counted": 0.0}
    write = shared_tables.write

    def counted_write(store: Store, flush: shared_tables.Flush) -> None:
        write(store, flush)
        told["rows"] += len(flush.packs) + len(flush.sketches)
        told["counts"] += sum(len(pack.layout.places) for pack in flush.packs)

    shared_tables.write = counted_write
    chance = random.Random(number)
    ready.put(number)
    while not (begin_s := begin.value):
        time.sleep(0.01)
    begin_s += chance.random()
    cpu_s = time.process_time()
    for second in range(seconds):
        block = int(PAIRS_A_SECOND * REPLICAS * second / BLOCK)
        told["counted"] += _count(evidence, stretched, whole, block)
        due_s = begin_s + second
        while (wait_s := due_s - time.monotonic()) > 0:
            time.sleep(min(wait_s, 0.05))
        told["behind_s"].append(time.monotonic() - due_s)
        at = time.perf_counter()
        evidence.share(store)
        told["flush_ms"].append(1000 * (time.perf_counter() - at))
        at = time.perf_counter()
        evidence.refresh(store)
        told["refresh_ms"].append(1000 * (time.perf_counter() - at))
    told["cpu_s"] = time.process_time() - cpu_s
    store.close()
    out.put(told)


def _count(
    evidence: SharedEvidence, stretched: Sequence[EvidenceKey], whole: Sequence[EvidenceKey],
    block: int,
) -> float:  # fmt: skip
    cells = dict(zip(CELLS, (1.0, 2.0, 3.0, 14.0), strict=True))
    for key in stretched:
        at = EvidenceKey(
            key.model, key.candidate, key.baseline, key.output, key.metric, key.policy, block
        )
        evidence.add(at, cells)
    for key in whole:
        evidence.add(key, {"n": 20.0, "k": 0.5, "rows": 20.0, "bad_rows": 1.0})
    times = LogHistogram()
    times.add(np.arange(1, 21) * 1e-3)
    for key in whole[::4]:
        for side in ("candidate", "baseline"):
            evidence.add_sketch(
                EvidenceKey("digits", key.candidate, key.baseline, "", side, key.policy), times
            )
    return 20.0 * len(stretched) + 41.5 * len(whole)
