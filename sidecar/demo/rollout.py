"""The demo's last act: a version that is worse is rolled out, found out, and taken back.

Version 3 was trained on wrong labels for one digit. It fails nothing and is as fast as version 2;
what gives it away is that its answers turn out wrong where those of version 2 were right, pair by
pair, as the labels come in.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sidecar.clock import Clock
from sidecar.demo.evidence import chart, leading, share
from sidecar.demo.export import OUTPUT, VERSIONS, WORSE_FILE, file_name
from sidecar.demo.labelling import MODEL, LabellingClients
from sidecar.demo.process import ServeProcess, free_addresses
from sidecar.demo.receiver import AlertReceiver
from sidecar.demo.train import WORSE, Split
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.view_rollback import DecisionView, RollbackView

CONFIG_FILE, LOG_FILE, STATE_FOLDER = "rollout.yaml", "rollout.log", "rollout-state"

NEW, PREVIOUS = WORSE.version, VERSIONS[-1]
LIMIT_S = 120.0
#: Answered by the previous version after the switch, before the story is over.
AFTERWARDS = 200
_POLL_S = 0.15
_LINE_EVERY = 8
_CALL_TIMEOUT_S = 5.0

_CONFIG = """\
# Version {new} replaces version {previous}, and is worse. Serve it yourself: sidecar serve {name}
models:
  - name: {model}
    variants:
      - name: onnx
        version: "{previous}"
        roles: [previous]  # held warm: what can be gone back to at once
        runtime: {{kind: onnxruntime, path: {previous_file}}}
      - name: onnx
        version: "{new}"
        roles: [serving]
        runtime: {{kind: onnxruntime, path: {new_file}}}
    validation:
      outputs: {{{output}: {{kind: class_scores}}}}
    drift: {{enabled: false}}
    labels: {{}}  # told later, by request id
    rollback:
      interval_s: 0.25  # a demo is short
      action: {{kind: switch}}  # the default only observes
gateway:
  grpc: {{address: "{grpc}"}}
  http: {{address: "{http}"}}
  drain: {{delay_s: 0, timeout_s: 10}}
monitor:
  grpc: "{monitor}"
  state_dir: {state}
  mirror: {{sample_rate: 1, cpu_share: 0.6}}
alerts:
  channels:
    - {{kind: log}}
    - {{kind: cloudevents, url: "{receiver}"}}  # the demo itself listens there
"""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What became of it.

    Attributes:
        requests: sent; ``failures``: of them without an answer.
        labels: told to the monitor.
        decided_after: requests, and ``decided_s`` seconds, until the version was found worse.
        switched_s: from the decision until clients had the previous version again.
        alert: the summary that arrived at the receiver.
        decision: the monitor's own words.
        accuracy: version → share of the requests it answered right.
        versions_after: version → requests it answered after the switch.
        problem: why it could not be seen, empty otherwise.
    """

    requests: int = 0
    failures: int = 0
    labels: int = 0
    state: str = ""
    metric: str = ""
    decided_after: int | None = None
    decided_s: float | None = None
    switched_s: float | None = None
    alert: str = ""
    decision: str = ""
    accuracy: dict[str, float] = field(default_factory=dict)
    versions_after: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def is_good(self) -> bool:
        """Found, told, taken back, and nobody had to notice."""
        told = self.state == "rolled_back" and bool(self.alert) and not self.problem
        return told and not self.failures and set(self.versions_after) == {PREVIOUS}

    def in_words(self) -> list[str]:
        """The few lines that say it."""
        if self.problem:
            return [f"rollback: {self.problem}"]
        if self.decided_s is None or self.decided_after is None:
            return [f"rollback: version {NEW} was not found worse ({self.state})"]
        right = ", ".join(f"version {v} {share:.1%}" for v, share in sorted(self.accuracy.items()))
        lines = [
            f"rollback: version {NEW}, trained on wrong labels for one digit, was found worse "
            f"after {self.decided_after:,} requests ({self.decided_s:.1f} s), by its {self.metric}",
            f"       right answers: {right}",
            f"       the alert: {self.alert or 'did not arrive'}",
        ]
        if self.switched_s is not None:
            after = sum(self.versions_after.values())
            lines.append(
                f"       version {PREVIOUS} answers again {self.switched_s:.1f} s after the "
                f"decision: all of the next {after:,} requests; {self.failures} of "
                f"{self.requests:,} failed"
            )
        return lines


def write_config(folder: Path, receiver: str) -> tuple[Path, dict[str, str]]:
    """Write ``rollout.yaml`` beside the artifacts; returns it and its addresses."""
    addresses = dict(zip(("grpc", "http", "monitor"), free_addresses(3), strict=True))
    text = _CONFIG.format(
        name=CONFIG_FILE, model=MODEL, new=NEW, previous=PREVIOUS, new_file=WORSE_FILE,
        previous_file=file_name(PREVIOUS, "onnx"), output=OUTPUT, state=STATE_FOLDER,
        receiver=receiver, **addresses,
    )  # fmt: skip
    path = folder / CONFIG_FILE
    path.write_text(text, encoding="utf-8")
    return path, addresses


class RolloutAct:
    """Serves version 3 beside version 2, sends digits and their labels, and shows what happens.

    Args:
        folder: where the artifacts lie; gets ``rollout.yaml`` and ``rollout.log``.
        say: prints a line.
    """

    def __init__(
        self,
        folder: Path,
        digits: Split,
        console: Console,
        clock: Clock,
        say: Callable[[str], object],
    ) -> None:
        self._folder, self._digits = folder, digits
        self._console, self._clock, self._say = console, clock, say
        self._start_ns = 0

    def run(self) -> RolledBack:
        """Do it.

        Raises:
            SidecarError: the server does not start, or ended.
        """
        with AlertReceiver() as receiver:
            config, addresses = write_config(self._folder, receiver.url)
            log = self._folder / LOG_FILE
            self._say(
                f"rollback: version {NEW} takes over; sidecar serve {config}  (its log: {log})"
            )
            with (
                ServeProcess(config, log) as server,
                MonitorClient(addresses["monitor"], timeout_s=_CALL_TIMEOUT_S) as monitor,
            ):
                server.wait_ready(lambda: _watches(monitor))
                clients = LabellingClients(addresses["grpc"], addresses["monitor"], self._digits)
                self._start_ns = self._clock.monotonic_ns()
                clients.start()
                try:
                    return self._watch(clients, monitor, receiver, server)
                except MonitorCallError as error:
                    return RolledBack(problem=f"the monitor did not answer: {error}")
                finally:
                    clients.stop()

    def _elapsed_s(self) -> float:
        return (self._clock.monotonic_ns() - self._start_ns) / 1e9

    def _watch(
        self,
        clients: LabellingClients,
        monitor: MonitorClient,
        receiver: AlertReceiver,
        server: ServeProcess,
    ) -> RolledBack:
        seen = _Seen()
        pause = threading.Event()
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while self._elapsed_s() < LIMIT_S and not seen.is_over(clients, receiver):
                pause.wait(_POLL_S)
                server.check_alive()
                seen.look(_pair(monitor), clients, self._elapsed_s())
                if self._console.is_terminal:
                    live.update(self._picture(seen, clients), refresh=True)
                elif len(seen.shares) % _LINE_EVERY == 1:
                    self._say(f"  {seen.line(clients.sent, self._elapsed_s())}")
        self._console.print(self._picture(seen, clients))
        clients.stop()
        return seen.result(clients, receiver)

    def _picture(self, seen: _Seen, clients: LabellingClients) -> Group:
        title = f"  evidence that version {NEW} is worse than version {PREVIOUS}, by its "
        title += seen.metric or "…"
        line = Text(f"  {seen.line(clients.sent, self._elapsed_s())}", "dim")
        return Group(chart(seen.shares, title), line)


class _Seen:
    """What the monitor has said so far."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.metric = ""
        self.view: RollbackView | None = None
        self.decided: tuple[int, float] | None = None
        self.switched_s: float | None = None
        self._before: dict[str, int] = {}

    def look(self, view: RollbackView | None, clients: LabellingClients, elapsed_s: float) -> None:
        """Take in one look."""
        if view is None:
            return
        self.view = view
        harm = leading(view)
        if self.decided is None:
            self.shares.append(0.0 if harm is None else share(harm))
            self.metric = harm.metric if harm is not None else ""
            if view.state in {"regressed", "rolled_back"}:
                self.decided = (clients.sent, elapsed_s)
                self.metric = view.decision.metric if view.decision else self.metric
        if self.switched_s is None and view.state == "rolled_back":
            self.switched_s = elapsed_s
            self._before = clients.versions()

    def afterwards(self, clients: LabellingClients) -> dict[str, int]:
        """Version → answers since the switch was seen."""
        if self.switched_s is None:
            return {}
        now = Counter(clients.versions())
        now.subtract(self._before)
        return {version: count for version, count in now.items() if count > 0}

    def is_over(self, clients: LabellingClients, receiver: AlertReceiver) -> bool:
        """Switched, told, and gone on for a while."""
        after = sum(self.afterwards(clients).values())
        return after >= AFTERWARDS and bool(_told(receiver))

    def line(self, sent: int, elapsed_s: float) -> str:
        """How it stands, in a line."""
        state = self.view.state.replace("_", " ") if self.view else "starting"
        now = self.shares[-1] if self.shares else 0.0
        metric = self.metric or "evidence"
        return (
            f"{elapsed_s:5.1f} s  {sent:6,} requests  {metric} {now:4.0%} of what it takes: {state}"
        )

    def result(self, clients: LabellingClients, receiver: AlertReceiver) -> RolledBack:
        """Everything, at the end."""
        decision: DecisionView | None = self.view.decision if self.view else None
        decided, decided_s = self.decided or (None, None)
        switched_s = None
        if self.switched_s is not None and decided_s is not None:
            switched_s = self.switched_s - decided_s
        return RolledBack(
            requests=clients.sent,
            failures=clients.failures,
            labels=clients.labels,
            state=self.view.state if self.view else "",
            metric=self.metric,
            decided_after=decided,
            decided_s=decided_s,
            switched_s=switched_s,
            alert=_told(receiver),
            decision=decision.text if decision else "",
            accuracy={
                version: clients.right[version] / count
                for version, count in clients.answered.items()
            },
            versions_after=self.afterwards(clients),
            problem=clients.problem,
        )


def _told(receiver: AlertReceiver) -> str:
    """The summary of the alert that says that the version is worse; empty: none has come."""
    for event in reversed(receiver.events()):
        data = event.get("data") or {}
        if data.get("name") == "ModelRollback":
            return str(data.get("summary", ""))
    return ""


def _watches(monitor: MonitorClient) -> bool:
    try:
        return monitor.status(timeout_s=2).state == "running" and _pair(monitor) is not None
    except MonitorCallError as error:
        if error.is_gone:
            return False
        raise


def _pair(monitor: MonitorClient) -> RollbackView | None:
    return next(iter(monitor.rollback(MODEL)), None)
