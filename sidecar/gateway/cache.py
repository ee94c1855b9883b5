"""The response cache: a request seen before gets the answer given before.

Keys are made of everything that decides the answer, so a hit is right whenever the model is a
function of its input. One cache serves all models that ask for it, bounded in bytes.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sidecar.runtimes.base import Array

_DIGEST_BYTES = 16  # 2^64 requests until two that differ are likely to share one

# What an entry takes besides the tensors' bytes: the objects around them, measured with tracemalloc
# (313 for an entry with one array).
_ENTRY_BYTES = 260  # the entry, its tuple, its key's place in the ordered dict
_ARRAY_BYTES = 120  # an ndarray with its dimensions and strides


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """What has happened so far, and what is held now."""

    hits: int
    misses: int
    inserts: int
    evictions: int  # pushed out by newer entries
    refused: int  # larger than the whole cache
    entries: int
    bytes: int


class _Entry:
    __slots__ = ("arrays", "nbytes")

    def __init__(self, arrays: tuple[Array, ...], nbytes: int) -> None:
        self.arrays = arrays
        self.nbytes = nbytes


def make_key(
    variant_key: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    parameters: Mapping[str, object],
) -> bytes:
    """Make the key of a request: ``variant_key``, a NUL, and a BLAKE2b digest of the rest.

    Inputs and parameters are ordered by name; the outputs' order counts, since the answer has it.
    A NaN's payload and a zero's sign count too: a model may tell them apart.

    Args:
        variant_key: which copy answers; without NUL. Readable in the key, so that ``clear`` finds
            what belongs to a model.
        inputs: name → array; BYTES are object arrays of ``bytes``.
        outputs: the names wanted.
        parameters: those that can change the answer (the caller leaves out ``timeout`` and such).
    """
    names = sorted(inputs)
    layout = [(n, inputs[n].dtype.str, inputs[n].dtype.num, inputs[n].shape) for n in names]
    # repr quotes and escapes, so that no two headers are alike by concatenation. dtype.num is
    # there because extension dtypes call themselves by their size only (bfloat16: "<V2").
    header = repr((layout, list(outputs), sorted(parameters.items()))).encode()
    digest = hashlib.blake2b(header, digest_size=_DIGEST_BYTES, usedforsecurity=False)
    # The header's length comes last: contents have the lengths that the header gives them, so the
    # whole can be split in one way only.
    for name in names:
        array = inputs[name]
        if array.dtype == np.object_:
            elements = array.reshape(-1).tolist()
            lengths = np.fromiter(map(len, elements), "<i8", len(elements))
            digest.update(lengths.tobytes())
            digest.update(b"".join(elements))
        else:
            # As uint8: bfloat16 and other dtypes from extensions do not export a buffer.
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    digest.update(len(header).to_bytes(8, "little"))
    return b"%b\0%b" % (variant_key.encode(), digest.digest())


class ResponseCache:
    """Answers by key, the least recently used thrown out first. Thread-safe.

    Args:
        max_bytes: bound on all that is held: tensors, keys, and the objects around them.
    """

    make_key = staticmethod(make_key)

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._inserts = self._evictions = self._refused = 0

    def get(self, key: bytes) -> list[Array] | None:
        """The outputs kept under a key (read-only arrays), or ``None``."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            self._entries.move_to_end(key)
            self._hits += 1
        return list(entry.arrays)

    def put(self, key: bytes, arrays: Sequence[Array]) -> None:
        """Keep a copy of the outputs. An answer larger than the whole cache is refused, counted.

        A copy, not the arrays: a row of a batch's output would keep the whole batch alive without
        being counted, and what is kept must not change when its first user writes into it.
        """
        nbytes = _ENTRY_BYTES + sys.getsizeof(key) + sum(map(_size, arrays))
        if nbytes > self.max_bytes:
            with self._lock:
                self._refused += 1
            return
        entry = _Entry(tuple(map(_frozen_copy, arrays)), nbytes)
        dropped: list[_Entry | None] = []  # freed after the lock: giving back memory takes time
        with self._lock:
            before = self._entries.pop(key, None)
            if before is not None:
                self._bytes -= before.nbytes
                dropped.append(before)
            self._entries[key] = entry
            self._bytes += nbytes
            self._inserts += 1
            while self._bytes > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= oldest.nbytes
                self._evictions += 1
                dropped.append(oldest)

    def clear(self, variant_prefix: str = "") -> int:
        """Drop the entries whose variant key starts with a prefix (``"digits:"``; ``""``: all).

        Returns:
            How many were dropped; they do not count as evictions.
        """
        prefix = variant_prefix.encode()
        with self._lock:
            dropped = {k: e for k, e in self._entries.items() if k.startswith(prefix)}
            for key, entry in dropped.items():
                del self._entries[key]
                self._bytes -= entry.nbytes
        return len(dropped)

    def counters(self) -> CacheCounters:
        """The counters, all of one moment."""
        with self._lock:
            return CacheCounters(
                self._hits,
                self._misses,
                self._inserts,
                self._evictions,
                self._refused,
                len(self._entries),
                self._bytes,
            )


def _size(array: Array) -> int:
    size = _ARRAY_BYTES + array.nbytes
    if array.dtype == np.object_:  # nbytes counts the pointers only
        size += sum(map(sys.getsizeof, array.reshape(-1).tolist()))
    return size


def _frozen_copy(array: Array) -> Array:
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy
