"""What the monitor found out while the demo's digits went through: is int8 as good as fp32, and is
there a conversion that is not?"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from sidecar.clock import Clock
from sidecar.demo.export import VERSIONS
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.view import Coverage, MonitorStatus, OutputStatus
from validators.verdict import Verdict

MODEL = "digits"
#: Variant of the newest version → the verdict that it deserves.
EXPECTED = {"int8": Verdict.PASS, "broken": Verdict.FAIL}
_POLL_S = 0.25
_CALL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one candidate.

    Attributes:
        candidate: ``model:version/name``.
        expected: the verdict it deserves.
        verdict: the monitor's; ``None`` before it compared anything.
        after_s: seconds of traffic until it said so; ``None``: it has not.
        requests: compared until the verdict; without one, until now.
        rate: of those that disagree; ``None`` without any.
        bound: upper bound of it, valid at every look, at the level ``alpha``.
        limit: what the model's class allows.
        noise: how often the reference disagrees with itself; ``None``: not known.
    """

    candidate: str
    expected: str
    verdict: str | None = None
    after_s: float | None = None
    requests: int = 0
    rate: float | None = None
    bound: float | None = None
    limit: float | None = None
    alpha: float | None = None
    noise: float | None = None

    @property
    def decided(self) -> bool:
        """The monitor has said yes or no."""
        return self.after_s is not None

    @property
    def is_right(self) -> bool:
        """And it is what the candidate deserves."""
        return self.verdict == self.expected


class VerdictWatch:
    """Asks the monitor again and again, beside the load.

    Args:
        address: of the monitor's service.
        clock: the load's.
    """

    def __init__(self, address: str, clock: Clock) -> None:
        self._client = MonitorClient(address, timeout_s=_CALL_TIMEOUT_S)
        self._clock = clock
        self._start_ns = clock.monotonic_ns()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-verdicts", daemon=True)
        self._lock = threading.Lock()
        self._coverage: Coverage | None = None
        self._findings = {
            _key(name): Finding(_key(name), expected.value) for name, expected in EXPECTED.items()
        }

    def is_watching(self) -> bool:
        """The monitor has loaded its copies: what is sent from now on is mirrored."""
        try:
            status = self._client.status()
        except MonitorCallError:
            return False
        return status.state == "running" and status.child.state in {"ready", "busy"}

    def start(self) -> None:
        """Begin to ask; the traffic begins now."""
        self._start_ns = self._clock.monotonic_ns()
        self._thread.start()

    def close(self) -> None:
        """Stop asking. Idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    def all_decided(self) -> bool:
        """Every candidate has its verdict."""
        return all(finding.decided for finding in self.findings())

    def findings(self) -> list[Finding]:
        """What is known now."""
        with self._lock:
            return list(self._findings.values())

    def coverage(self) -> Coverage | None:
        """Of the requests, how many were really compared; ``None``: the monitor never answered."""
        with self._lock:
            return self._coverage

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                self._read(self._client.status())
            except MonitorCallError:
                continue  # it is started, or started again, beside the server

    def _read(self, status: MonitorStatus) -> None:
        elapsed_s = (self._clock.monotonic_ns() - self._start_ns) / 1e9
        pairs = [pair for model in status.models if model.model == MODEL for pair in model.pairs]
        with self._lock:
            self._coverage = status.coverage
            for pair in pairs:
                before = self._findings.get(pair.candidate)
                if before is None or pair.purpose != "certificate" or not pair.outputs:
                    continue
                self._findings[pair.candidate] = _finding(before, pair.outputs[0], elapsed_s)


def _key(name: str) -> str:
    return f"{MODEL}:{VERSIONS[-1]}/{name}"


def _finding(before: Finding, output: OutputStatus, elapsed_s: float) -> Finding:
    """What one look shows. A verdict keeps its time and its figures: it speaks of the requests
    until then, and a disagreement that comes afterwards would seem to contradict it.
    """
    certificate = output.certificate
    if certificate is None or (before.decided and before.verdict == certificate.verdict):
        return before
    decided = certificate.verdict in {Verdict.PASS, Verdict.FAIL}
    after_s = elapsed_s if decided else None
    return Finding(
        candidate=before.candidate,
        expected=before.expected,
        verdict=certificate.verdict.value,
        after_s=after_s,
        requests=output.requests,
        rate=output.rate,
        bound=certificate.bound,
        limit=certificate.limit,
        alpha=certificate.alpha,
        noise=None if output.noise is None else output.noise.rate,
    )


def in_words(finding: Finding) -> str:
    """Return the sentence that says it."""
    name = finding.candidate
    if finding.rate is None or finding.limit is None or finding.bound is None:
        return f"{name}: nothing was compared"
    seen = f"{finding.rate:.2%} of {finding.requests:,} mirrored requests disagree with the "
    seen += "reference"
    sure = f"{1 - (finding.alpha or 0):.0%} sure"
    if not finding.decided:
        return f"{name}: no verdict yet: {seen}"
    when = f"after {finding.after_s:.1f} s"
    if finding.verdict == Verdict.PASS:
        text = f"{name}: certified {when}: at most {finding.limit:.0%} of requests disagree, {sure}"
        return f"{text} ({seen}; bound {finding.bound:.2%})"
    return f"{name}: found broken {when}: {seen}, {finding.limit:.0%} is allowed ({sure})"
