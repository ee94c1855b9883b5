"""The monitor's side of the mirror child: jobs in, outcomes out, whatever the child does.

A copy may hang, raise, or take its process with it. None of that is passed on as an exception: a
run that takes too long is that version's timeout, an exchange that ended the child is set aside and
never tried again, and the child is started anew while the rest of its batch waits.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.clock import Clock
from sidecar.frames import Frame
from sidecar.monitor import mirror_protocol as protocol
from sidecar.monitor.bundle import pack_many, unpack_many
from sidecar.monitor.mirror_link import Link
from sidecar.monitor.mirror_protocol import Answer, CopyInfo, Job, Outcome, Page
from sidecar.monitor.suspension import Suspensions
from sidecar.monitor.view import ChildStatus

logger = logging.getLogger("sidecar.monitor.mirror")

_MEMORY_POLL_S = 1.0
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 30.0
#: A child that lived so long gets a fresh back-off.
_HEALTHY_AFTER_S = 60.0
#: Building a TensorRT engine takes minutes; longer than this is a hang.
_LOAD_TIMEOUT_S = 1800.0
#: Children that one batch may cost: then what is left of it is given up.
_CHILDREN_A_BATCH = 16


class Stopped(Exception):  # noqa: N818 - not an error: the monitor is asked to end
    """The mirror was closed while something waited for it."""


@dataclass(slots=True)
class _Work:
    """What is left of a batch: the jobs, and the answers they have so far by run.

    ``crashed``: index of a job → what ended the child on it, and the variant.
    """

    jobs: list[Job]
    outcomes: list[Outcome | None]
    known: list[dict[int, Answer]]
    crashed: dict[int, tuple[str, str]] = field(default_factory=dict)


class MirrorProcess:
    """Owns the mirror child. ``submit`` is for one thread; ``status`` and ``close`` for any.

    Args:
        variants: key (``model:version/name``) → the variant's plain tree, as the child loads it.
        keep: those that are executed; of the others only the signature is wanted.
        timeout_s: an execution that takes longer is ended.
        memory_max_bytes: resident memory of the child beyond which it is started anew.
        clock: monotonic time; the child compares with the same clock of the machine.
    """

    def __init__(
        self,
        variants: Mapping[str, Any],
        *,
        keep: Collection[str],
        timeout_s: float,
        memory_max_bytes: int | None,
        clock: Clock,
    ) -> None:
        self._variants = dict(variants)
        self._keep = frozenset(keep)
        self._timeout_ns = int(timeout_s * 1e9)
        self._memory_max = memory_max_bytes
        self._clock = clock
        self._page_fd = Page.create()
        self._page = Page(self._page_fd)
        self._child: Link | None = None
        self._stop = threading.Event()
        self._backoff_s = _FIRST_BACKOFF_S
        self._state, self._message = "stopped", ""
        self._ended_cpu_s = 0.0
        self._hung: tuple[int, int, int] | None = None
        self.copies: dict[str, CopyInfo] = {}
        #: Children that were ready so far.
        self.lives = 0
        self.suspensions = Suspensions(clock)
        #: crashes, timeouts, memory, failures_to_start
        self.counters: dict[str, int] = {}

    # --- for the monitor ----------------------------------------------------------------------

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to load: a monitor may only have to tell."""
        return bool(self._variants)

    def start(self) -> None:
        """Load the copies; wait until they are there. What cannot be loaded is in ``copies``.

        Raises:
            Stopped: ``close`` was called meanwhile.
        """
        self._ensure()

    def submit(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Execute; one outcome a job, in order. Takes as long as it takes, restarts included.

        Raises:
            Stopped: ``close`` was called meanwhile.
        """
        work = _Work(list(jobs), [None] * len(jobs), [{} for _ in jobs])
        for index, job in enumerate(work.jobs):
            self._answer_absent(work, index, job)
        culpritless = 0
        for _ in range(_CHILDREN_A_BATCH):
            left = [i for i, outcome in enumerate(work.outcomes) if outcome is None]
            if not left:
                break
            self._ensure()
            culprit_known = self._attempt(work, left)
            culpritless += not culprit_known
            if culpritless > 1:
                break
        for index, outcome in enumerate(work.outcomes):
            if outcome is None:
                work.outcomes[index] = Outcome(set_aside="the mirror child could not be kept alive")
        return [outcome for outcome in work.outcomes if outcome is not None]

    def status(self) -> ChildStatus:
        """How the child is."""
        child = self._child
        memory = 0
        if child is not None and self._state in {"ready", "busy"}:
            memory = child.resident_bytes()
        restarts = sum(self.counters.values())
        pid = child.pid if child is not None else 0
        return ChildStatus(pid, restarts, self._state, self._message, memory)

    def memory_bytes(self, variant: str) -> int:
        """Of one copy; 0: not known."""
        info = self.copies.get(variant)
        return info.memory_bytes if info is not None else 0

    def cpu_s(self) -> float:
        """Processor time that all children so far have used, seconds."""
        child = self._child
        return self._ended_cpu_s + (child.cpu_s() if child is not None else 0.0)

    def close(self) -> None:
        """End the child, at once. Idempotent."""
        self._stop.set()
        child = self._child
        if child is not None:
            child.kill()

    def join(self) -> None:
        """After ``close``, and when nothing is being submitted any more: free what is held."""
        self._end("stopped")
        self._page.close()
        os.close(self._page_fd)

    # --- the child's life ---------------------------------------------------------------------

    def _ensure(self) -> None:
        """Have a child with its copies loaded."""
        while self._child is None:
            if self._stop.is_set():
                raise Stopped
            self._spawn()
            if self._load():
                self._state = "ready"
                self.lives += 1
                return
            self._pause()

    def _spawn(self) -> None:
        self._state = "starting"
        self._page.clear()
        self._child = Link(self._page_fd, self._clock.monotonic_ns())

    def _load(self) -> bool:
        """Boot the child; ``False``: it ended, and is gone."""
        child = self._child
        assert child is not None
        wanted = {
            key: tree
            for key, tree in self._variants.items()
            if key not in self.copies or not self.copies[key].error
        }
        keep = [key for key in wanted if key in self._keep]
        if not child.send(protocol.BOOT, {"variants": wanted, "keep": keep}):
            return self._not_started(wanted, "it could not be told what to load")
        deadline_ns = self._clock.monotonic_ns() + int(_LOAD_TIMEOUT_S * 1e9)
        while True:
            frame = self._next(child)
            if frame == "none":
                if self._clock.monotonic_ns() > deadline_ns:
                    return self._not_started(wanted, f"it took over {_LOAD_TIMEOUT_S:g} s")
                continue
            if not isinstance(frame, Frame):
                return self._not_started(wanted, "")
            if frame.kind == protocol.READY:
                return True
            self._note_copy(frame.fields)

    def _note_copy(self, fields: Mapping[str, Any]) -> None:
        key = fields["key"]
        if "error" in fields:
            self.copies[key] = CopyInfo(key, None, error=fields["error"])
            logger.warning("the monitor has no copy of %s: %s", key, fields["error"])
            return
        signature = protocol.signature_from_plain(fields["signature"])
        self.copies[key] = CopyInfo(key, signature, fields["device"], fields["memory_bytes"])

    def _not_started(self, wanted: Mapping[str, Any], why: str) -> bool:
        """The child died, or hangs, while it loaded: the copy it was loading is not tried again."""
        index = self._page.loads()
        assert self._child is not None
        how = why or self._child.how_it_ended()
        if index is not None and not self._stop.is_set():
            key = list(wanted)[index]
            self.copies[key] = CopyInfo(key, None, error=f"loading it ended the process ({how})")
            logger.error("the monitor has no copy of %s: loading it ended the process", key)
        self._end("restarting", "failures_to_start", f"ended while it loaded ({how})")
        return False

    def _end(self, state: str, counter: str = "", message: str = "") -> None:
        """Kill the child if need be, and forget it."""
        child, self._child = self._child, None
        self._state = state
        if child is None:
            return
        self._ended_cpu_s += child.cpu_s()
        child.close()
        if self._stop.is_set():
            return
        if counter:
            self.counters[counter] = self.counters.get(counter, 0) + 1
            self._message = message
            logger.warning("the mirror child is started anew: %s", message)
        if self._clock.monotonic_ns() - child.started_ns > _HEALTHY_AFTER_S * 1e9:
            self._backoff_s = _FIRST_BACKOFF_S

    def _pause(self) -> None:
        self._stop.wait(self._backoff_s)
        self._backoff_s = min(self._backoff_s * 2, _MAX_BACKOFF_S)

    # --- a batch ------------------------------------------------------------------------------

    def _answer_absent(self, work: _Work, index: int, job: Job) -> None:
        """Answer the runs for which there is no copy, or none that may be used now."""
        for number, run in enumerate(job.runs):
            info = self.copies.get(run.variant)
            why = ""
            if info is None or info.signature is None:
                why = info.error if info is not None else "there is no copy of it"
            elif self.suspensions.is_suspended(run.variant):
                why = "suspended: it hung or ended the process several times in a row"
            if why:
                work.known[index][number] = Answer(failure="absent", error=why)
        self._settle(work, index)

    def _settle(self, work: _Work, index: int) -> None:
        known, runs = work.known[index], work.jobs[index].runs
        if work.outcomes[index] is None and len(known) == len(runs):
            answers = [known[number] for number in range(len(runs))]
            work.outcomes[index] = Outcome(answers, *work.crashed.get(index, ("", "")))

    def _attempt(self, work: _Work, left: list[int]) -> bool:
        """Let the child work on what is left; ``False``: it ended, and nobody knows by what."""
        child = self._child
        assert child is not None
        position = {index: place for place, index in enumerate(left)}
        plain: list[list[list[Any]]] = []
        numbers: list[list[int]] = []
        for index in left:
            runs = work.jobs[index].runs
            open_runs = [n for n in range(len(runs)) if n not in work.known[index]]
            numbers.append(open_runs)
            plain.append([[runs[n].variant, _moved(runs[n], position)] for n in open_runs])
        described, parts = pack_many([work.jobs[index].inputs for index in left])
        self._state = "busy"
        sent = child.send(protocol.JOBS, {"inputs": described, "jobs": plain}, parts)
        result = self._wait(child) if sent else "ended"
        if isinstance(result, Frame):
            self._state = "ready"
            self._take(work, left, numbers, result)
            return True
        return self._blame(work, left, numbers, result)

    def _take(self, work: _Work, left: list[int], numbers: list[list[int]], frame: Frame) -> None:
        outputs = iter(unpack_many(frame.fields["outputs"], frame.parts))
        for index, open_runs, rows in zip(left, numbers, frame.fields["runs"], strict=True):
            for number, (failure, error, *times_ns) in zip(open_runs, rows, strict=True):
                arrays = None if failure else next(outputs)
                work.known[index][number] = Answer(arrays, failure, error, *times_ns)
                self.suspensions.forgive(work.jobs[index].runs[number].variant)
            self._settle(work, index)

    def _blame(self, work: _Work, left: list[int], numbers: list[list[int]], why: str) -> bool:
        """The child is gone, or must go: settle the job that was executing."""
        if self._stop.is_set():
            raise Stopped
        # Of a run that is too long, what was seen then: it may have ended just after.
        assert self._child is not None
        now = self._hung if why == "timeout" else self._page.executing()
        if why == "memory":
            self._end("restarting", "memory", "it was over memory_max_bytes")
            self._pause()
            return False
        if now is None or now[0] >= len(left) or now[1] >= len(numbers[now[0]]):
            how = self._child.how_it_ended()
            self._end("restarting", "crashes", f"it ended between two runs ({how})")
            self._pause()
            return False
        index = left[now[0]]
        number = numbers[now[0]][now[1]]
        variant = work.jobs[index].runs[number].variant
        if why == "timeout":
            text = f"no answer within {self._timeout_ns / 1e9:g} s"
            work.known[index][number] = Answer(
                None, "timeout", text, self._clock.monotonic_ns() - now[2], now[2]
            )
            self._settle(work, index)
            self._end("restarting", "timeouts", f"{variant}: {text}")
        else:
            how = self._child.how_it_ended()
            text = f"{variant} ended ({how})"
            if self._child.was_killed():  # for want of memory, or by somebody: not by what it ran
                work.outcomes[index] = Outcome(set_aside=text, culprit=variant)
            else:
                work.known[index][number] = Answer(None, "crash", text, started_ns=now[2])
                work.crashed[index] = text, variant
                self._settle(work, index)
            self._end("restarting", "crashes", f"{variant} ended it ({how})")
        if self.suspensions.blame(variant):
            logger.error("%s hung or ended the mirror child again: suspended for a while", variant)
            for other in left:
                if work.outcomes[other] is None:
                    self._answer_absent(work, other, work.jobs[other])
        self._pause()
        return True

    def _wait(self, child: Link) -> Frame | str:
        """The batch's results; or ``ended``, ``timeout``, ``memory``."""
        memory_at_ns = 0
        while True:
            frame = self._next(child)
            if frame != "none":
                return frame
            now_ns = self._clock.monotonic_ns()
            executing = self._page.executing()
            if executing is not None and now_ns - executing[2] > self._timeout_ns:
                self._hung = executing
                return "timeout"
            if self._memory_max is not None and now_ns > memory_at_ns:
                memory_at_ns = now_ns + int(_MEMORY_POLL_S * 1e9)
                if child.resident_bytes() > self._memory_max:
                    return "memory"

    def _next(self, child: Link) -> Frame | str:
        frame = child.next()
        if frame == "none" and self._stop.is_set():
            child.kill()  # it was spawned while it was asked to end
        return frame


def _moved(run: protocol.Run, position: Mapping[int, int]) -> list[Any] | None:
    """The run's composition, with jobs numbered as they are sent now."""
    composition = run.composition
    if composition is None:
        return None
    others = [index for index in composition.others if index in position]
    if composition.others and not others:  # the others are done or set aside
        return protocol.Composition(times=2).to_plain()
    before = sum(index in position for index in composition.others[: composition.before])
    moved = protocol.Composition(
        tuple(position[index] for index in others), before, composition.times
    )
    return moved.to_plain()
