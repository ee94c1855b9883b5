"""What the monitor and its mirror child say to each other: frames, and one shared page.

Frames (``sidecar/frames.py``), one batch of jobs under way at a time::

    monitor → child   BOOT {variants: {key: tree}, keep: [key, …]}
                      JOBS {inputs, jobs: [[[key, composition], …], …]} + bundled inputs
    child → monitor   COPY {key, signature, device, memory_bytes} or {key, error}
                      READY {} · RESULTS {outputs, runs} + bundled outputs

The page says what the child is doing at this moment. It is read when the child is dead or hangs:
frames of a process that was killed would be lost or late.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.runtimes.base import Array, Signature, TensorSpec

BOOT, COPY, READY, JOBS, RESULTS = range(1, 6)
#: Between processes of ours, both within the monitor's memory limit.
FRAME_BYTES_MAX = 4 * 2**30

_WORDS = 8
_JOB, _RUN, _SINCE_NS, _LOADING, _DONE = range(5)


#: Kinds of failure: that say what the answer would have been (none), and all that are a version's.
ERRORS = frozenset({"error", "crash"})
FAILURES = ERRORS | {"timeout"}


@dataclass(frozen=True, slots=True)
class Composition:
    """The batch that a job's rows stand in, other than alone; the answer is that of its own rows.

    Attributes:
        others: jobs of the same batch whose rows are joined with them (the same may come twice).
        before: so many of the others come first.
        times: with no others, its own rows are repeated so often.
    """

    others: tuple[int, ...] = ()
    before: int = 0
    times: int = 1

    def to_plain(self) -> list[Any]:
        """As JSON values."""
        return [list(self.others), self.before, self.times]

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> Composition:
        """The inverse of ``to_plain``."""
        return cls(tuple(plain[0]), plain[1], plain[2])


@dataclass(frozen=True, slots=True)
class Run:
    """One execution: a variant key (``model:version/name``), and the batch it happens in."""

    variant: str
    composition: Composition | None = None


@dataclass(slots=True)
class Job:
    """One exchange's inputs, and what to execute on them, in this order.

    Attributes:
        inputs: name → array of the declared dtype and a shape that fits the signature.
    """

    inputs: Mapping[str, Array]
    runs: list[Run]


@dataclass(slots=True)
class Answer:
    """What became of one run.

    Attributes:
        outputs: name → array; ``None`` when it failed.
        failure: empty, or ``error`` (the model raised), ``timeout`` (it ran too long and was
            ended), ``crash`` (it ended the process), ``absent`` (there is no copy, or it is
            suspended): nothing is known of it.
        error: what was wrong, for people.
        compute_ns: monotonic time around the runtime's ``infer`` alone.
        started_ns: monotonic, when it began; 0: it never did, or nobody knows.
    """

    outputs: dict[str, Array] | None = None
    failure: str = ""
    error: str = ""
    compute_ns: int = 0
    started_ns: int = 0


@dataclass(slots=True)
class Outcome:
    """What became of one job.

    Attributes:
        answers: one a run, in the order of the job's runs; empty when nothing is known.
        set_aside: why the exchange is set aside: a variant ended the child on it, and is never
            given it again. (The others are: whose error it was can be told by their answers only.)
        culprit: the variant that was executing when the child ended.
    """

    answers: list[Answer] = field(default_factory=list)
    set_aside: str = ""
    culprit: str = ""


@dataclass(frozen=True, slots=True)
class CopyInfo:
    """A copy in the child; ``signature`` is ``None`` where it could not be loaded (``error``).

    With no device it was loaded for its signature only.
    """

    variant: str
    signature: Signature | None
    device: str = ""
    memory_bytes: int = 0
    error: str = ""


class Page:
    """Eight words of shared memory: written by the child, read by the monitor."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, _WORDS * 8)
        self._words = memoryview(self._map).cast("Q")

    @staticmethod
    def create() -> int:
        """Make an empty page; return its file descriptor."""
        descriptor = os.memfd_create("sidecar-mirror", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _WORDS * 8)
        return descriptor

    def begin(self, job: int, run: int, now_ns: int) -> None:
        """(Child) A run starts."""
        words = self._words
        # The job last: who reads in between sees no run rather than one with another's start.
        words[_RUN], words[_SINCE_NS], words[_JOB] = run, now_ns, job + 1

    def end(self) -> None:
        """(Child) The run is over."""
        self._words[_JOB] = 0
        self._words[_DONE] += 1

    def loading(self, index: int | None) -> None:
        """(Child) The copy with this number is being loaded; ``None``: none is."""
        self._words[_LOADING] = 0 if index is None else index + 1

    def clear(self) -> None:
        """(Monitor) Forget the child that died."""
        for word in range(_WORDS):
            self._words[word] = 0

    def executing(self) -> tuple[int, int, int] | None:
        """(Monitor) Job, run and monotonic start of what executes now; ``None``: nothing does."""
        words = self._words
        before = words[_DONE], words[_JOB]
        found = (words[_JOB] - 1, words[_RUN], words[_SINCE_NS])
        # The child writes on while this reads: two equal looks are one run.
        if not before[1] or before != (words[_DONE], words[_JOB]):
            return None
        return found

    def loads(self) -> int | None:
        """(Monitor) The number of the copy that is being loaded now."""
        return self._words[_LOADING] - 1 if self._words[_LOADING] else None

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._map.close()


def signature_to_plain(signature: Signature) -> dict[str, Any]:
    """As JSON values."""

    def plain(specs: tuple[TensorSpec, ...]) -> list[list[Any]]:
        return [[spec.name, spec.datatype, list(spec.shape), spec.optional] for spec in specs]

    return {
        "inputs": plain(signature.inputs),
        "outputs": plain(signature.outputs),
        "max_batch_size": signature.max_batch_size,
        "platform": signature.platform,
        "backend": signature.backend,
    }


def signature_from_plain(plain: Mapping[str, Any]) -> Signature:
    """The inverse of ``signature_to_plain``."""

    def specs(rows: list[list[Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, kind, tuple(shape), opt) for name, kind, shape, opt in rows)

    return Signature(
        specs(plain["inputs"]),
        specs(plain["outputs"]),
        plain["max_batch_size"],
        plain["platform"],
        plain["backend"],
    )
