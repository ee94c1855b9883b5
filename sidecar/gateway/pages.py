"""Counters in shared memory: one page a worker, written on the path, read by anyone.

A page outlives its process: the supervisor makes it (``memfd``, so it is no named segment that a
client could register), hands it to the worker and to whoever sums the workers up. Counts are never
lost with a monitor, and a restarted worker goes on in the same page.

Layout: 64-bit words, little-endian. A header, then one slot a variant, all of the same size. Only
the worker that owns a page writes to it; readers may see a request half counted, never a torn word.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

MAGIC = 0x4D5343_50414745
LAYOUT_VERSION = 2
_WORD = 8

#: Upper bounds of the latency buckets, nanoseconds; the last bucket is everything above.
BUCKETS_NS: tuple[int, ...] = tuple(
    int(ms * 1e6)
    for ms in (
        0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000,
    )
)  # fmt: skip
_HIST = len(BUCKETS_NS) + 1

#: (count, nanoseconds) pairs, in the order of the page.
DURATIONS: tuple[str, ...] = (
    "success", "fail", "queue", "decode", "execute", "encode", "cache_hit", "cache_miss", "cancel",
)  # fmt: skip
#: Plain counters.
COUNTERS: tuple[str, ...] = (
    "inferences", "executions", "last_inference_ms", "fallbacks", "late_answers", "bytes_in",
    "bytes_out",
)  # fmt: skip
#: Histograms: the stages, and the whole request.
STAGES: tuple[str, ...] = ("decode", "queue", "execute", "encode", "total")
#: Distinct batch sizes that are counted apart; more are counted with the largest.
BATCH_ROWS = 64
_BATCH_WORDS = 5  # size, executions, input ns, execute ns, output ns

_HEADER_WORDS = 32
_DURATION_AT = 0
_COUNTER_AT = _DURATION_AT + 2 * len(DURATIONS)
_HIST_AT = _COUNTER_AT + len(COUNTERS)
_BATCH_AT = _HIST_AT + _HIST * len(STAGES)
SLOT_WORDS = _BATCH_AT + BATCH_ROWS * _BATCH_WORDS
_LAST_BATCH_AT = SLOT_WORDS - _BATCH_WORDS

#: Server-wide counters, in the header behind magic, version, slots, pid, incarnation.
#: Those of the tap (``tap.py``) are counted for sampled exchanges alone, and add up: sampled =
#: sent + dropped_… + not mirrored (shared_memory, sequence, too_large, unclear) + still waiting.
SERVER_COUNTERS: tuple[str, ...] = (
    "refused_requests", "refused_bytes", "refused_streams", "timing_dropped", "unknown_model",
    "tap_sampled", "tap_sent", "tap_dropped_full", "tap_dropped_no_monitor", "tap_dropped_lost",
    "tap_shared_memory", "tap_sequence", "tap_too_large", "tap_unclear",
)  # fmt: skip
_SERVER_AT = 8

_DURATION_INDEX = {name: _DURATION_AT + 2 * i for i, name in enumerate(DURATIONS)}
_COUNTER_INDEX = {name: _COUNTER_AT + i for i, name in enumerate(COUNTERS)}
_STAGE_INDEX = {name: _HIST_AT + _HIST * i for i, name in enumerate(STAGES)}
_SERVER_INDEX = {name: _SERVER_AT + i for i, name in enumerate(SERVER_COUNTERS)}

SUCCESS, FAIL = _DURATION_INDEX["success"], _DURATION_INDEX["fail"]
QUEUE, DECODE = _DURATION_INDEX["queue"], _DURATION_INDEX["decode"]
EXECUTE, ENCODE = _DURATION_INDEX["execute"], _DURATION_INDEX["encode"]
_INFERENCES = _COUNTER_INDEX["inferences"]
_EXECUTIONS = _COUNTER_INDEX["executions"]
_LAST = _COUNTER_INDEX["last_inference_ms"]
_BYTES_IN, _BYTES_OUT = _COUNTER_INDEX["bytes_in"], _COUNTER_INDEX["bytes_out"]
_DECODE_HIST, _QUEUE_HIST = _STAGE_INDEX["decode"], _STAGE_INDEX["queue"]
_EXECUTE_HIST, _ENCODE_HIST = _STAGE_INDEX["execute"], _STAGE_INDEX["encode"]
_TOTAL_HIST = _STAGE_INDEX["total"]


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
    """A worker's page, mapped. Methods that write are for its owner, from any of its threads."""

    def __init__(self, descriptor: int, slots: int, *, owner: bool = False) -> None:
        self._map = mmap.mmap(descriptor, page_bytes(slots))
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

    def base(self, slot: int) -> int:
        """The first word of a slot."""
        return _HEADER_WORDS + slot * SLOT_WORDS

    def record(
        self, slot: int, timing: Timing, total_ns: int, now_ms: int, bytes_in: int, bytes_out: int
    ) -> None:
        """Count one answered request: durations, histograms, rows, bytes.

        One that was answered from the cache is a success, but no inference, and has no stages of
        computing: so say the protocol's statistics.
        """
        words = self._slot_words[slot]
        decode_ns, queue_ns = timing.decode_ns, timing.queue_ns
        execute_ns, encode_ns = timing.execute_ns, timing.encode_ns
        with self._lock:
            words[SUCCESS] += 1
            words[SUCCESS + 1] += total_ns
            words[QUEUE] += 1
            words[QUEUE + 1] += queue_ns
            if not timing.cached:
                words[DECODE] += 1
                words[DECODE + 1] += decode_ns
                words[EXECUTE] += 1
                words[EXECUTE + 1] += execute_ns
                words[ENCODE] += 1
                words[ENCODE + 1] += encode_ns
                words[_INFERENCES] += timing.rows
            words[_LAST] = now_ms
            words[_BYTES_IN] += bytes_in
            words[_BYTES_OUT] += bytes_out
            words[_DECODE_HIST + bisect_left(BUCKETS_NS, decode_ns)] += 1
            words[_QUEUE_HIST + bisect_left(BUCKETS_NS, queue_ns)] += 1
            words[_EXECUTE_HIST + bisect_left(BUCKETS_NS, execute_ns)] += 1
            words[_ENCODE_HIST + bisect_left(BUCKETS_NS, encode_ns)] += 1
            words[_TOTAL_HIST + bisect_left(BUCKETS_NS, total_ns)] += 1
            if timing.executed:
                _count_batch(words, timing.rows, decode_ns, execute_ns, encode_ns)

    def record_batch(
        self, slot: int, rows: int, input_ns: int, execute_ns: int, output_ns: int
    ) -> None:
        """Count one execution of a joined batch (its requests are counted by ``record``)."""
        with self._lock:
            _count_batch(self._slot_words[slot], rows, input_ns, execute_ns, output_ns)

    def add_duration(self, slot: int, name: str, ns: int) -> None:
        """Count one duration (``fail``, ``cancel``, ``cache_hit``, ``cache_miss``)."""
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

    def server_counters(self) -> dict[str, int]:
        """All of ``SERVER_COUNTERS``."""
        return {name: self.words[at] for name, at in _SERVER_INDEX.items()}

    def close(self) -> None:
        """Unmap; the page itself lives while any descriptor or mapping does."""
        for words in (*self._slot_words, self.words):
            words.release()
        self._map.close()


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
        durations: name → (count, nanoseconds).
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
    durations = dict.fromkeys(DURATIONS, (0, 0))
    counters = dict.fromkeys(COUNTERS, 0)
    histograms = {stage: [0] * _HIST for stage in STAGES}
    batches: dict[int, tuple[int, int, int, int]] = {}
    for page, slot in product(pages, slots):
        base = page.base(slot)
        words = page.words[base : base + SLOT_WORDS].tolist()
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
        for at in range(_BATCH_AT, SLOT_WORDS, _BATCH_WORDS):
            size = words[at]
            if words[at + 1]:
                old = batches.get(size, (0, 0, 0, 0))
                new = words[at + 1 : at + 5]
                batches[size] = (
                    old[0] + new[0], old[1] + new[1], old[2] + new[2], old[3] + new[3],
                )  # fmt: skip
    return SlotSum(durations, counters, histograms, dict(sorted(batches.items())))
