"""The load against a client that executes in this process: counting, ending, failing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
import pytest

from sidecar.clock import SystemClock
from sidecar.demo.client import Answer, CallFailedError, ModelInfo
from sidecar.demo.load import FAILURES_MAX, Load, Target
from sidecar.demo.train import Split
from sidecar.errors import SidecarError
from tests.demo.conftest import Trained

TARGETS = (Target("digits", "1", "onnx"), Target("digits", "2", "onnx"))


class InProcess:
    """Executes the trained models here; every ``fail_every``-th call is refused."""

    def __init__(self, trained: Trained, fail_every: int = 0) -> None:
        self._sessions = {
            version: onnxruntime.InferenceSession(trained.folder / f"digits-{version}.onnx")
            for version in ("1", "2")
        }
        self._fail_every = fail_every
        self._calls = 0
        self.closed = False

    def ready(self) -> bool:
        return True

    def metadata(self, model: str, version: str = "") -> ModelInfo:
        raise NotImplementedError

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
    ) -> Answer:
        self._calls += 1
        if self._fail_every and self._calls % self._fail_every == 0:
            message = "refused"
            raise CallFailedError(message, "RESOURCE_EXHAUSTED")
        scores = self._sessions[version].run(None, dict(inputs))[0]
        return Answer(model, version, {"scores": scores})

    def close(self) -> None:
        self.closed = True


def make_load(trained: Trained, clients: list[InProcess], **settings: float) -> Load:
    hold_out = trained.prepared.hold_out
    lock = threading.Lock()
    left = list(clients)

    def connect() -> InProcess:
        with lock:
            return left.pop()

    options = {"seconds": 0.0, "limit_s": 60.0, **settings}
    few = Split(hold_out.images[:40], hold_out.labels[:40])
    return Load(
        TARGETS,
        few,
        {"grpc": connect, "http": connect},
        in_flight=len(clients) // 2,
        clock=SystemClock(),
        **options,
    )


def test_one_pass_answers_every_digit_over_both_transports(trained: Trained):
    clients = [InProcess(trained) for _ in range(4)]
    load = make_load(trained, clients)
    load.start()
    assert load.wait(60)
    for target, tally in load.snapshot().items():
        expected = clients[0].infer(
            "digits", {"image": load.hold_out.images}, version=target.version
        )
        np.testing.assert_array_equal(
            tally.answers(), expected.outputs["scores"].argmax(axis=1), strict=False
        )
        assert tally.requests == {"grpc": 40, "http": 40}
        assert [len(values) for values in tally.latencies_ns.values()] == [40, 40]
        assert tally.failures == tally.differences == 0
    assert load.elapsed_s() > 0
    assert all(client.closed for client in clients)


def test_it_sends_for_as_long_as_was_asked(trained: Trained):
    load = make_load(trained, [InProcess(trained), InProcess(trained)], seconds=0.5)
    load.start()
    assert load.wait(60)
    assert load.elapsed_s() >= 0.4  # the latest answer may be a moment before the end
    assert sum(load.snapshot()[TARGETS[0]].requests.values()) > 80


def test_failures_are_counted_and_the_rest_goes_on(trained: Trained):
    load = make_load(trained, [InProcess(trained, fail_every=10), InProcess(trained)])
    load.start()
    assert load.wait(60)
    tallies = load.snapshot().values()
    assert sum(tally.failures for tally in tallies) == 8
    assert sum(sum(tally.requests.values()) for tally in tallies) == 160 - 8
    assert load.first_error is not None
    assert load.first_error.endswith("RESOURCE_EXHAUSTED: refused")


def test_a_server_that_fails_everything_is_not_asked_forever(trained: Trained):
    clients = [InProcess(trained, fail_every=1), InProcess(trained, fail_every=1)]
    load = make_load(trained, clients, seconds=3600)
    load.start()
    assert load.wait(60)
    failures = sum(tally.failures for tally in load.snapshot().values())
    assert FAILURES_MAX <= failures <= FAILURES_MAX + len(clients)


def test_an_answer_that_changes_is_seen(trained: Trained):
    load = make_load(trained, [InProcess(trained), InProcess(trained)])
    tally = load.tallies[TARGETS[1]]
    first = clients_answer(trained, load)
    tally.scores[0] = 0
    tally.scores[0, (first + 1) % 10] = 1
    load.start()
    assert load.wait(60)
    assert load.snapshot()[TARGETS[1]].differences == 1


def clients_answer(trained: Trained, load: Load) -> int:
    answer = InProcess(trained).infer(
        "digits", {"image": load.hold_out.images[:1]}, version=TARGETS[1].version
    )
    return int(answer.outputs["scores"].argmax())


def test_the_limit_and_stop_end_it(trained: Trained):
    load = make_load(trained, [InProcess(trained), InProcess(trained)], seconds=3600, limit_s=0.2)
    load.start()
    assert load.wait(60)
    load = make_load(trained, [InProcess(trained), InProcess(trained)], seconds=3600)
    load.start()
    assert not load.wait(0.05)
    load.stop()
    assert load.wait(0)


def test_a_broken_sender_is_told_and_stops_the_others(trained: Trained):
    load = make_load(trained, [InProcess(trained)] * 2, seconds=3600)
    load._connect["http"] = lambda: 1 / 0
    load.start()
    with pytest.raises(SidecarError, match="the demo's client broke: division by zero"):
        load.wait(60)
    load.stop()
