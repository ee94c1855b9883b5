"""Sends digits, and tells the monitor a moment later what they were."""

from __future__ import annotations

import itertools
import queue
import threading
import uuid
from collections import Counter

from sidecar.demo.client import CallFailedError, GrpcClient
from sidecar.demo.export import INPUT, OUTPUT
from sidecar.demo.train import Split
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.label_intake import Label

MODEL = "digits"
_IN_FLIGHT = 2
_LABELS_AT_ONCE = 64
#: Labels come late: so long after the answer at least.
_LABEL_PAUSE_S = 0.2
#: Between two requests of a client: evidence is to be seen growing, and it takes a few hundred.
_PAUSE_S = 0.02
#: A server that fails everything is not asked without end.
_AFTER_FAILURE_S = 0.25
_CALL_TIMEOUT_S = 5.0


class LabellingClients:
    """Clients of one model, and whoever looks at its answers later.

    Args:
        grpc: address of the gateway; ``monitor``: of the monitor, which takes the labels.

    Attributes:
        answered: version → answers; ``right``: of them right.
        sent, failures: requests; ``labels``: that the monitor has taken.
        problem: the first thing that went wrong, empty otherwise.
    """

    def __init__(self, grpc: str, monitor: str, digits: Split) -> None:
        self._grpc, self._monitor, self._digits = grpc, monitor, digits
        self._lock = threading.Lock()
        self._turn = itertools.count()
        self._stop = threading.Event()
        self._told: queue.SimpleQueue[Label] = queue.SimpleQueue()
        self._threads = [
            *(threading.Thread(target=self._send, daemon=True) for _ in range(_IN_FLIGHT)),
            threading.Thread(target=self._label, daemon=True),
        ]
        self.answered: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        self.sent = self.failures = self.labels = 0
        self.problem = ""

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the requests in flight. Idempotent."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def versions(self) -> dict[str, int]:
        """Version → answers so far."""
        with self._lock:
            return dict(self.answered)

    def _send(self) -> None:
        with GrpcClient(self._grpc) as client:
            while not self._stop.wait(_PAUSE_S):
                with self._lock:
                    digit = next(self._turn) % len(self._digits.labels)
                    self.sent += 1
                self._send_one(client, digit)

    def _send_one(self, client: GrpcClient, digit: int) -> None:
        identity = uuid.uuid4().hex
        image, label = self._digits.images[digit : digit + 1], int(self._digits.labels[digit])
        try:
            answer = client.infer(MODEL, {INPUT: image}, metadata={"x-request-id": identity})
        except CallFailedError as error:
            with self._lock:
                self.failures += 1
                self.problem = self.problem or f"a request failed: {error}"
            self._stop.wait(_AFTER_FAILURE_S)
            return
        with self._lock:
            self.answered[answer.model_version] += 1
            self.right[answer.model_version] += int(answer.outputs[OUTPUT][0].argmax()) == label
        self._told.put(Label(MODEL, identity, (label,)))

    def _label(self) -> None:
        with MonitorClient(self._monitor, timeout_s=_CALL_TIMEOUT_S) as client:
            while not self._stop.wait(_LABEL_PAUSE_S):
                while labels := self._take():
                    try:
                        counts = client.put_labels(MODEL, labels, timeout_s=_CALL_TIMEOUT_S)
                    except MonitorCallError as error:
                        self.problem = self.problem or f"labels could not be told: {error}"
                        break
                    self.labels += counts.matched + counts.early

    def _take(self) -> list[Label]:
        labels: list[Label] = []
        while len(labels) < _LABELS_AT_ONCE:
            try:
                labels.append(self._told.get_nowait())
            except queue.Empty:
                break
        return labels
