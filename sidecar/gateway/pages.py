"""Counters in shared memory: one page a worker, written on the path, read by anyone.

A page outlives its process: the supervisor makes it (``memfd``, so it is no named segment that a
client could register), hands it to the worker and to whoever sums the workers up. Counts are never
lost with a monitor, and a restarted worker goes on in the same page.

Layout: 64-bit words, little-endian. A header, the calls of no model (unknown, refused, or not to be
read), then one slot a variant, all of the same size. Only the worker that owns a page writes to it;
readers may see a request half counted, never a torn word.

Calls are counted by transport and by how they ended, each with a histogram of its own, because that
is how their duration is told (``monitor/measures.py``).
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

MAGIC = 0x4D5343_50414745
LAYOUT_VERSION = 3
_WORD = 8

#: Upper bounds of the latency buckets, nanoseconds; the last bucket is everything above.
BUCKETS_NS: tuple[int, ...] = tuple(
    int(ms * 1e6)
    for ms in (
        0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000,
    )
)  # fmt: skip
_HIST = len(BUCKETS_NS) + 1

#: (count, nanoseconds) pairs, in the order of the page. (Successes are in the calls.)
DURATIONS: tuple[str, ...] = (
    "fail",
    "queue",
    "decode",
    "execute",
    "encode",
    "cache_hit",
    "cache_miss",
    "cancel",
)
#: Plain counters.
COUNTERS: tuple[str, ...] = (
    "inferences", "executions", "last_inference_ms", "fallbacks", "late_answers", "bytes_in",
    "bytes_out",
)  # fmt: skip
#: Histograms: the stages. (The whole request has one for each transport and outcome.)
STAGES: tuple[str, ...] = ("decode", "queue", "execute", "encode")
#: How a request comes.
TRANSPORTS: tuple[str, ...] = ("grpc", "stream", "http")
#: What a request ends with that is none of ours: a fault of the server, or of HTTP alone. The name
#: is OpenTelemetry's for an ``error.type`` that is not told.
OTHER = "_OTHER"
#: How a request ends: answered, or with an error of ``sidecar/errors.py``, by its class.
OUTCOMES: tuple[str, ...] = (
    "", "InvalidRequestError", "NotFoundError", "ConflictError", "OverloadedError",
    "UnavailableError", "DeadlineError", "CancelledError", "UnsupportedError",
    "PermissionDeniedError", "UnauthenticatedError", "ExecutionError", "UpstreamError", OTHER,
)  # fmt: skip
#: Distinct batch sizes that are counted apart; more are counted with the largest.
BATCH_ROWS = 64
_BATCH_WORDS = 5  # size, executions, input ns, execute ns, output ns

#: Of one transport and outcome: nanoseconds, and the histogram.
_CALL_WORDS = 1 + _HIST
_CALLS_WORDS = len(OUTCOMES) * len(TRANSPORTS) * _CALL_WORDS

_NO_MODEL_AT = 64
_HEADER_WORDS = _NO_MODEL_AT + _CALLS_WORDS
_DURATION_AT = 0
_COUNTER_AT = _DURATION_AT + 2 * len(DURATIONS)
_HIST_AT = _COUNTER_AT + len(COUNTERS)
_BATCH_AT = _HIST_AT + _HIST * len(STAGES)
_CALLS_AT = _BATCH_AT + BATCH_ROWS * _BATCH_WORDS
_LAST_BATCH_AT = _CALLS_AT - _BATCH_WORDS
SLOT_WORDS = _CALLS_AT + _CALLS_WORDS

#: Server-wide counters, in the header behind magic, version, slots, pid, incarnation, id, and two
#: words of ``page_files.py``.
#: Those of the tap (``tap.py``) are counted for sampled exchanges alone, and add up: sampled =
#: sent + dropped_… + not mirrored (shared_memory, sequence, too_large, unclear) + still waiting.
SERVER_COUNTERS: tuple[str, ...] = (
    "refused_requests", "refused_bytes", "refused_streams", "timing_dropped", "unknown_model",
    "tap_sampled", "tap_sent", "tap_dropped_full", "tap_dropped_no_monitor", "tap_dropped_lost",
    "tap_shared_memory", "tap_sequence", "tap_too_large", "tap_unclear", "spans_dropped",
    "logs_dropped", "route_damaged", "route_missing",
)  # fmt: skip
_SERVER_AT = 8
_ID_AT = 5

_DURATION_INDEX = {name: _DURATION_AT + 2 * i for i, name in enumerate(DURATIONS)}
_COUNTER_INDEX = {name: _COUNTER_AT + i for i, name in enumerate(COUNTERS)}
_STAGE_INDEX = {name: _HIST_AT + _HIST * i for i, name in enumerate(STAGES)}
_SERVER_INDEX = {name: _SERVER_AT + i for i, name in enumerate(SERVER_COUNTERS)}
_ERRORS = frozenset(OUTCOMES[1:-1])
#: Within the calls of a slot, or of no model.
_CALL_INDEX = {
    (transport, outcome): i * _CALL_WORDS
    for i, (outcome, transport) in enumerate(product(OUTCOMES, TRANSPORTS))
}
#: transport → its answered calls, within a slot: the first of all, so that a sum finds them there.
_ANSWERED = {transport: _CALLS_AT + _CALL_INDEX[transport, ""] for transport in TRANSPORTS}
_SUMMED_WORDS = _CALLS_AT + len(TRANSPORTS) * _CALL_WORDS

FAIL, CANCEL = _DURATION_INDEX["fail"], _DURATION_INDEX["cancel"]
QUEUE, DECODE = _DURATION_INDEX["queue"], _DURATION_INDEX["decode"]
EXECUTE, ENCODE = _DURATION_INDEX["execute"], _DURATION_INDEX["encode"]
_INFERENCES = _COUNTER_INDEX["inferences"]
_EXECUTIONS = _COUNTER_INDEX["executions"]
_LAST = _COUNTER_INDEX["last_inference_ms"]
_BYTES_IN, _BYTES_OUT = _COUNTER_INDEX["bytes_in"], _COUNTER_INDEX["bytes_out"]
_DECODE_HIST, _QUEUE_HIST = _STAGE_INDEX["decode"], _STAGE_INDEX["queue"]
_EXECUTE_HIST, _ENCODE_HIST = _STAGE_INDEX["execute"], _STAGE_INDEX["encode"]


def page_bytes(slots: int) -> int:
    """Size of a page with so many slots."""
    return (_HEADER_WORDS + slots * SLOT_WORDS) * _WORD


def create_page(slots: int) -> int:
    """Make an empty page; return its file descriptor, to be inherited by workers."""
    descriptor = os.memfd_create("sidecar-page", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, page_bytes(slots))
    return descriptor


@dataclass(slots=True)
class Timing:
    """One request's way through the stages, in nanoseconds, as ``Page.record`` takes it."""

    decode_ns: int = 0
    queue_ns: int = 0
    execute_ns: int = 0
    encode_ns: int = 0
    rows: int = 1
    executed: bool = True  # this request caused an execution of its own (no batch, no cache)
    cached: bool = False


class Page:
    """A worker's page, mapped. Methods that write are for its owner, from any of its threads.

    Args:
        owner: this process counts in it, from now on.
        read_only: it cannot: whoever only reads must not be able to spoil a count.

    Raises:
        ValueError: the page is smaller than one with so many slots; or, of one that is only read,
            its layout is another one.
    """

    def __init__(
        self, descriptor: int, slots: int, *, owner: bool = False, read_only: bool = False
    ) -> None:
        access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
        self._map = mmap.mmap(descriptor, page_bytes(slots), access=access)
        self.words = memoryview(self._map).cast("Q")
        self.slots = slots
        # Of each slot apart: with the page's own words each index would be an addition more.
        self._slot_words = [self.words[at : at + SLOT_WORDS] for at in map(self.base, range(slots))]
        # One lock for all slots: a `+= 1` on a word is a read and a write, and another thread may
        # run in between. Uncontended it costs 60 ns; rows a thread would need a sum on each read.
        self._lock = threading.Lock()
        if owner:
            self.words[0], self.words[1], self.words[2] = MAGIC, LAYOUT_VERSION, slots
            self.words[3] = os.getpid()
            self.words[4] += 1  # incarnation
            if not self.words[_ID_AT]:  # of the page, not of the process that counts in it now
                self.words[_ID_AT] = secrets.randbits(63) | 1
        elif read_only and (header := self.words[:3].tolist()) != [MAGIC, LAYOUT_VERSION, slots]:
            self.close()
            text = f"no page of layout {LAYOUT_VERSION} with {slots} slots: its header is {header}"
            raise ValueError(text)

    def base(self, slot: int) -> int:
        """The first word of a slot."""
        return _HEADER_WORDS + slot * SLOT_WORDS

    def record(
        self,
        slot: int,
        timing: Timing,
        total_ns: int,
        now_ms: int,
        bytes_in: int,
        bytes_out: int,
        transport: str = "grpc",
    ) -> None:
        """Count one answered request: durations, histograms, rows, bytes.

        One that was answered from the cache is a success, but no inference, and has no stages of
        computing: so say the protocol's statistics.
        """
        words, call = self._slot_words[slot], _ANSWERED[transport]
        decode_ns, queue_ns = timing.decode_ns, timing.queue_ns
        execute_ns, encode_ns = timing.execute_ns, timing.encode_ns
        with self._lock:
            words[QUEUE] += 1
            words[QUEUE + 1] += queue_ns
            words[_QUEUE_HIST + bisect_left(BUCKETS_NS, queue_ns)] += 1
            if not timing.cached:
                words[DECODE] += 1
                words[DECODE + 1] += decode_ns
                words[EXECUTE] += 1
                words[EXECUTE + 1] += execute_ns
                words[ENCODE] += 1
                words[ENCODE + 1] += encode_ns
                words[_INFERENCES] += timing.rows
                words[_DECODE_HIST + bisect_left(BUCKETS_NS, decode_ns)] += 1
                words[_EXECUTE_HIST + bisect_left(BUCKETS_NS, execute_ns)] += 1
                words[_ENCODE_HIST + bisect_left(BUCKETS_NS, encode_ns)] += 1
            words[_LAST] = now_ms
            words[_BYTES_IN] += bytes_in
            words[_BYTES_OUT] += bytes_out
            words[call] += total_ns
            words[call + 1 + bisect_left(BUCKETS_NS, total_ns)] += 1
            if timing.executed:
                _count_batch(words, timing.rows, decode_ns, execute_ns, encode_ns)

    def record_failure(
        self, slot: int | None, transport: str, error: BaseException, total_ns: int
    ) -> None:
        """Count one request that failed, or that its caller gave up.

        ``slot`` is ``None`` where it got to no model: none of that name, refused, unreadable.
        """
        outcome = outcome_of(error)
        at = _CALL_INDEX[transport, outcome]
        words, at = (
            (self.words, _NO_MODEL_AT + at)
            if slot is None
            else (self._slot_words[slot], _CALLS_AT + at)
        )
        with self._lock:
            if slot is not None:
                duration = CANCEL if outcome == "CancelledError" else FAIL
                words[duration] += 1
                words[duration + 1] += total_ns
            words[at] += total_ns
            words[at + 1 + bisect_left(BUCKETS_NS, total_ns)] += 1

    def record_batch(
        self, slot: int, rows: int, input_ns: int, execute_ns: int, output_ns: int
    ) -> None:
        """Count one execution of a joined batch (its requests are counted by ``record``)."""
        with self._lock:
            _count_batch(self._slot_words[slot], rows, input_ns, execute_ns, output_ns)

    def add_duration(self, slot: int, name: str, ns: int) -> None:
        """Count one duration (``cache_hit``, ``cache_miss``)."""
        words, at = self._slot_words[slot], _DURATION_INDEX[name]
        with self._lock:
            words[at] += 1
            words[at + 1] += ns

    def add(self, slot: int, counter: str, amount: int = 1) -> None:
        """Add to one of ``COUNTERS``."""
        with self._lock:
            self._slot_words[slot][_COUNTER_INDEX[counter]] += amount

    def add_server(self, counter: str, amount: int = 1) -> None:
        """Add to one of ``SERVER_COUNTERS``."""
        with self._lock:
            self.words[_SERVER_INDEX[counter]] += amount

    @property
    def id(self) -> int:
        """Of the page since it was made: counts of two ids are never the same counts."""
        return self.words[_ID_AT]

    def server_counters(self) -> dict[str, int]:
        """All of ``SERVER_COUNTERS``."""
        return {name: self.words[at] for name, at in _SERVER_INDEX.items()}

    def close(self) -> None:
        """Unmap; the page itself lives while any descriptor or mapping does."""
        for words in (*self._slot_words, self.words):
            words.release()
        self._map.close()


def outcome_of(error: BaseException) -> str:
    """How an error is counted: one of ``OUTCOMES``."""
    for kind in type(error).__mro__:
        if kind.__name__ in _ERRORS:
            return kind.__name__
    return OTHER


def _count_batch(
    words: memoryview[int], rows: int, input_ns: int, execute_ns: int, output_ns: int
) -> None:
    """Count an execution in a slot's ``words``, whose page is locked."""
    words[_EXECUTIONS] += 1
    at = _BATCH_AT
    # A place is taken once it has a count: a size may be 0, for a batch without rows.
    while words[at] != rows and words[at + 1] != 0 and at < _LAST_BATCH_AT:
        at += _BATCH_WORDS
    words[at] = max(words[at], rows)
    words[at + 1] += 1
    words[at + 2] += input_ns
    words[at + 3] += execute_ns
    words[at + 4] += output_ns


@dataclass(slots=True)
class SlotSum:
    """One slot summed over pages.

    Attributes:
        durations: name → (count, nanoseconds), with ``success``: all that were answered.
        counters: name → count (``last_inference_ms``: the latest).
        histograms: stage → counts for each bucket of ``BUCKETS_NS`` and one above.
        batches: batch size → (executions, input ns, execute ns, output ns).
    """

    durations: dict[str, tuple[int, int]]
    counters: dict[str, int]
    histograms: dict[str, list[int]]
    batches: dict[int, tuple[int, int, int, int]]


def sum_slot(pages: Sequence[Page], *slots: int) -> SlotSum:
    """Add up the counts of a variant (or of several) over all workers."""
    durations = dict.fromkeys(("success", *DURATIONS), (0, 0))
    counters = dict.fromkeys(COUNTERS, 0)
    histograms = {stage: [0] * _HIST for stage in STAGES}
    batches: dict[int, tuple[int, int, int, int]] = {}
    for page, slot in product(pages, slots):
        base = page.base(slot)
        words = page.words[base : base + _SUMMED_WORDS].tolist()
        for at in _ANSWERED.values():
            count, ns = durations["success"]
            counts = words[at + 1 : at + _CALL_WORDS]
            durations["success"] = (count + sum(counts), ns + words[at])
        for name, at in _DURATION_INDEX.items():
            count, ns = durations[name]
            durations[name] = (count + words[at], ns + words[at + 1])
        for name, at in _COUNTER_INDEX.items():
            if name == "last_inference_ms":
                counters[name] = max(counters[name], words[at])
            else:
                counters[name] += words[at]
        for stage, at in _STAGE_INDEX.items():
            histograms[stage] = [
                a + b for a, b in zip(histograms[stage], words[at : at + _HIST], strict=True)
            ]
        for at in range(_BATCH_AT, _CALLS_AT, _BATCH_WORDS):
            size = words[at]
            if words[at + 1]:
                old = batches.get(size, (0, 0, 0, 0))
                new = words[at + 1 : at + 5]
                batches[size] = (
                    old[0] + new[0], old[1] + new[1], old[2] + new[2], old[3] + new[3],
                )  # fmt: skip
    return SlotSum(durations, counters, histograms, dict(sorted(batches.items())))


@dataclass(slots=True)
class CallSum:
    """Calls of one transport that ended in one way, summed over pages.

    Attributes:
        ns: how long they took together.
        counts: for each bucket of ``BUCKETS_NS``, and one above.
    """

    ns: int
    counts: list[int]


def sum_calls(pages: Sequence[Page], slot: int | None) -> dict[tuple[str, str], CallSum]:
    """The calls of a variant over all workers, ``None``: those that got to no model.

    Returns:
        (transport, outcome) → its calls; those that never happened are left out.
    """
    total = [0] * _CALLS_WORDS
    for page in pages:
        at = _NO_MODEL_AT if slot is None else page.base(slot) + _CALLS_AT
        words = page.words[at : at + _CALLS_WORDS].tolist()
        total = [a + b for a, b in zip(total, words, strict=True)]
    return {
        key: CallSum(total[at], counts)
        for key, at in _CALL_INDEX.items()
        if any(counts := total[at + 1 : at + _CALL_WORDS])
    }
