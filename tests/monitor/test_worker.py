"""The worker's loop: what goes wrong in one batch stays in it."""

from __future__ import annotations

import logging
import random
import threading

import numpy as np
import pytest

from sidecar.clock import SystemClock
from sidecar.monitor import worker as worker_module
from sidecar.monitor.budget import Budget
from sidecar.monitor.casebook import Casebook
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.ingest import Ingest
from sidecar.monitor.mirror import Stopped
from sidecar.monitor.mirror_protocol import Answer, CopyInfo, Outcome
from sidecar.monitor.worker import Worker
from tests.e2e.support import until
from tests.monitor import making

LOOSE = {"outputs": {"y": {"kind": "tensor", "limits": {"max_abs": 0.5}}}}
CRASH, FAULT = 1e6, 2e6


class Mirror:
    """Answers y = x at once, in this process; magic inputs do harm."""

    lives = 1

    def __init__(self) -> None:
        self.copies = {"m:2/ref": CopyInfo("m:2/ref", making.signature())}
        self.batches: list[int] = []
        self.closed = False
        self.on_submit = lambda: None

    def submit(self, jobs):
        if self.closed:
            raise Stopped
        self.batches.append(len(jobs))
        self.on_submit()
        outcomes = []
        for job in jobs:
            magic = float(job.inputs["x"].flat[0])
            if magic == FAULT:
                message = "a fault of ours"
                raise RuntimeError(message)
            if magic == CRASH:
                outcomes.append(Outcome(set_aside="m:2/ref ended (signal 11)", culprit="m:2/ref"))
                continue
            answers = [Answer({"y": job.inputs["x"]}, compute_ns=1000) for _ in job.runs]
            outcomes.append(Outcome(answers))
        return outcomes


@pytest.fixture
def bench():
    return Bench()


class Bench:
    def __init__(self) -> None:
        clock = SystemClock()
        self.mirror = Mirror()
        self.evidence = Evidence("now", clock)
        self.ingest = Ingest(queue_bytes=2**30, clock=clock)
        self.crashes: list[str] = []
        config = making.model(
            ("2", "ref", ["reference"]), ("2", "new", ["serving"]), validation=LOOSE
        )
        self.plan = making.plan(config)
        self.worker = Worker(
            self.ingest, self.mirror, self.evidence, {"m": self.plan}, Casebook(None),
            Budget(lambda: 0.0, 1.0, clock), noise_rate=0.5, flush_s=60, clock=clock,
            on_crash=lambda item: self.crashes.append(item.culprit), rng=random.Random(1),
        )  # fmt: skip
        self.thread = threading.Thread(target=self.worker.run)

    def offer(self, number, value=None):
        x = np.full((1, 4), number if value is None else value, np.float32)
        body, answer = making.request(x), making.response(y=x)
        self.ingest.offer(making.exchange(f"r{number}", request=body, response=answer))

    def finish(self):
        """Run until the queue is empty."""
        self.thread.start()
        self.ingest.close()
        self.worker.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def requests(self):
        [pair] = self.plan.pairs
        keys = [key for key in self.evidence.all_keys() if key.metric == "disagrees"]
        assert all(key.policy == pair.policies.hashes["y"] for key in keys)
        return sum(self.evidence.cells(key)["n"] for key in keys)


def test_what_waits_is_compared_before_it_ends(bench):
    for number in range(200):
        bench.offer(number)
    bench.finish()
    assert (bench.requests(), bench.worker.compared) == (200, 200)
    assert max(bench.mirror.batches) <= worker_module.BATCH_ITEMS
    noise = [key for key in bench.evidence.all_keys() if key.metric == "noise"]
    assert 50 < sum(bench.evidence.cells(key)["n"] for key in noise) < 150


def test_an_exchange_that_crashes_is_set_aside_and_told(bench):
    for number in range(10):
        bench.offer(number, value=CRASH if number == 5 else None)
    bench.finish()
    assert (bench.worker.set_aside, bench.worker.compared) == (1, 9)
    assert bench.requests() == 9
    assert bench.crashes == ["m:2/ref"]
    assert sum(bench.worker.dropped.values()) == 0


def test_a_fault_of_ours_costs_its_batch_and_is_said_once(bench, caplog):
    with caplog.at_level(logging.ERROR, "sidecar.monitor.worker"):
        for number in range(64 * 3):
            bench.offer(number, value=FAULT if number in {3, 70} else None)
        bench.finish()
    assert bench.worker.dropped["fault"] + bench.worker.compared == 64 * 3
    assert 0 < bench.worker.dropped["fault"] <= 128
    assert [record.getMessage() for record in caplog.records] == [
        f"{bench.mirror.batches[0]} exchanges could not be compared"
    ]


def test_batches_shrink_when_they_take_long_and_grow_again(bench, monkeypatch):
    monkeypatch.setattr(worker_module, "_BATCH_S", -1.0)  # whatever they take is too long
    for number in range(200):
        bench.offer(number)
    bench.thread.start()
    until(lambda: bench.mirror.batches[-1:] == [1], "one at a time")
    batches = list(bench.mirror.batches)
    assert sorted(batches, reverse=True) == batches
    monkeypatch.setattr(worker_module, "_BATCH_S", 1e9)
    for number in range(200, 600):
        bench.offer(number)
    until(lambda: max(bench.mirror.batches[-3:]) > 8, "they grow")
    bench.ingest.close()
    bench.worker.stop()
    bench.thread.join(60)
    assert bench.requests() == 600


def test_it_ends_when_the_mirror_is_closed(bench):
    bench.mirror.closed = True
    bench.offer(1)
    bench.thread.start()
    bench.thread.join(60)
    assert not bench.thread.is_alive()


def test_the_extra_run_of_the_previous_version_is_nobody_elses_answer():
    clock = SystemClock()
    evidence, ingest, mirror = (
        Evidence("now", clock), Ingest(queue_bytes=2**30, clock=clock), Mirror(),
    )  # fmt: skip
    numbered = iter(range(10**6))

    def submit(jobs):
        # Each run takes another time, so that it can be told which was taken for which.
        return [
            Outcome([
                Answer({"y": job.inputs["x"]}, compute_ns=10**6 * (1 + next(numbered) % 3))
                for _ in job.runs
            ])
            for job in jobs
        ]  # fmt: skip

    mirror.submit = submit
    plan = making.plan(
        making.model(
            ("1", "old", ["previous"]), ("2", "new", ["serving"]), validation=LOOSE,
            rollback={"calibration": {"rate": 1.0}},
        )
    )  # fmt: skip
    worker = Worker(
        ingest, mirror, evidence, {"m": plan}, Casebook(None), Budget(lambda: 0.0, 1.0, clock),
        noise_rate=0, flush_s=60, clock=clock, on_crash=lambda item: None, rng=random.Random(1),
    )  # fmt: skip
    x = np.zeros((1, 4), np.float32)
    batch = [
        making.exchange(f"r{n}", request=making.request(x), response=making.response(y=x))
        for n in range(60)
    ]
    worker.process(batch)
    found = {
        (key.candidate, key.metric): evidence.cells(key)
        for key in evidence.all_keys()
        if key.metric in {"slow", "calibration", "error"}
    }
    # 1, 2, 3 ms: previous, new, previous; the new one is quicker than the run after it.
    assert found["m:2/new", "slow"] == {"n11": 0, "n10": 0, "n01": 40, "n00": 0}
    assert found["m:1/old", "calibration"]["pairs"] == 40
    beside_itself = found["m:1/old", "slow"]
    assert beside_itself["n10"] + beside_itself["n01"] == 40
    assert 5 < beside_itself["n10"] < 35
    assert found["m:2/new", "error"]["n00"] == worker.compared == 60
