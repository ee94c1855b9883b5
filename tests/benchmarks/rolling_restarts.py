"""Rolling restarts of the chart's pods under load: how many requests fail.

Two replicas, each a pod of processes run as kubelet would (``tests/support/kubelet.py``), behind a
balancer that tries nothing again and asks for readiness every five seconds. Each restart is that of
a Deployment with ``maxUnavailable: 0``: a new pod, until the balancer has found it ready; then the
old one is deleted. The forms take turns, and so do a model container and the runtime in the
sidecar.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.tools import Row
from tests.support.balancer import Backend, Balancer, Load
from tests.support.kubelet import Pod
from tests.support.pods import BODY, pod, request

ASKS_EVERY_S = 5.0
#: Longer than the balancer takes to notice; connections are renewed so often; more is never needed.
CONFIG = {
    "gateway": {
        "grpc": {"address": "0.0.0.0:9000", "max_connection_age_s": 10},
        "drain": {"delay_s": ASKS_EVERY_S + 2, "timeout_s": 45},
    }
}
_START_WITHIN_S = 300
_ODD = ("Killed", "Unhealthy", "FailedPreStopHook")


def rolling_restarts(rounds: int) -> list[Row]:
    """Four restarts a round."""
    kinds = itertools.cycle(itertools.product(("native", "ordinary"), ("remote", "onnx")))
    took_s: list[float] = []
    odd: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="roll") as folder,
        contextlib.ExitStack() as stack,
        Balancer(every_s=ASKS_EVERY_S) as balancer,
    ):

        def start(number: int) -> tuple[Pod, Backend]:
            form, kind = next(kinds)
            made = pod(Path(folder) / f"p{number}", kind, form, config=CONFIG)
            stack.enter_context(made).start()
            _wait(lambda: made.passes, made)
            balancer.add(backend := Backend.of(made))
            _wait(lambda: backend.name in balancer.ready(), made)
            return made, backend

        replicas = [start(number) for number in range(2)]
        began_s = time.monotonic()
        with Load(balancer.addresses, request(), BODY) as load:
            for number in range(2, 2 + 4 * rounds):
                replicas.append(start(number))
                old, backend = replicas.pop(0)
                took_s.append(old.delete())
                balancer.remove(backend)
                odd += [f"{event.container}: {event.reason} {event.text}"
                        for event in old.events if event.reason in _ODD]  # fmt: skip
        lasted_s = time.monotonic() - began_s
    failures = [*load.failures, *odd]
    first = f"; first: {failures[0]}" if failures else ""
    return [
        Row(
            f"{4 * rounds} rolling restarts under load, native and ordinary in turn: failed "
            "requests",
            "0",
            str(len(load.failures)),
            not failures and balancer.refused == 0,
            f"{load.grpc.answered} answered by gRPC, {load.http.answered} by HTTP in "
            f"{lasted_s:.0f} s; from deletion to the pod's end {statistics.median(took_s):.1f} s, "
            f"at most {max(took_s):.1f} s; {balancer.refused} connections refused, {len(odd)} "
            f"containers killed or hooks failed{first}",
        )
    ]


def _wait(check: Any, made: Pod) -> None:
    deadline_s = time.monotonic() + _START_WITHIN_S
    while not check():
        if time.monotonic() > deadline_s:
            logs = {name: made.log(name)[-2000:] for name in made.containers}
            message = f"{made.folder.name} is not ready within {_START_WITHIN_S} s: {logs}"
            raise RuntimeError(message)
        time.sleep(0.05)
