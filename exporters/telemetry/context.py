"""W3C trace context: the headers ``traceparent`` and ``tracestate``, read and made.

After https://www.w3.org/TR/trace-context-2/. Plain Python: the gateway reads contexts and must not
load an SDK for it. What is malformed is no context at all (``None``), never an error: the
specification wants a new trace then, and a client's broken header is no reason to fail its request.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

SAMPLED = 0x01
#: The trace id is (at least in its low 7 bytes) random, so that a sampler may decide by it.
RANDOM = 0x02

#: Version, trace id, parent id, flags; what follows is only allowed in versions to come.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY = r"[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(rf"({_KEY})=({_VALUE})")
_STATE_MEMBERS, _STATE_CHARACTERS = 32, 512
#: Longer headers are not looked at.
_HEADER_CHARACTERS = 8192


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Whose trace something belongs to.

    Attributes:
        trace_id: 128 bits, not 0.
        span_id: 64 bits, not 0: the caller's span, or one's own when the context is handed on.
        flags: ``SAMPLED``, ``RANDOM``.
        state: ``tracestate``, valid or empty.
    """

    trace_id: int
    span_id: int
    flags: int = 0
    state: str = ""

    @property
    def sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        """The header, in version 00."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags & (SAMPLED | RANDOM):02x}"

    def child(self, span_id: int, *, sampled: bool | None = None) -> TraceContext:
        """The context to hand on from a span of one's own; ``sampled`` replaces the decision."""
        flags = self.flags
        if sampled is not None:
            flags = flags | SAMPLED if sampled else flags & ~SAMPLED
        return replace(self, span_id=span_id, flags=flags)


def parse(traceparent: str, tracestate: str = "") -> TraceContext | None:
    """Read the headers; ``None`` where ``traceparent`` is missing or malformed.

    Several ``tracestate`` headers are joined with a comma by the caller. A malformed one is
    dropped as a whole and leaves the context valid, as the specification says.
    """
    if len(traceparent) > _HEADER_CHARACTERS:
        return None
    found = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id = found[1], int(found[2], 16), int(found[3], 16)
    if version == "ff" or (version == "00" and found[5]) or not trace_id or not span_id:
        return None
    # Of a version to come only the flags we know are ours to hand on.
    flags = int(found[4], 16) & (SAMPLED | RANDOM)
    return TraceContext(trace_id, span_id, flags, parse_state(tracestate))


def parse_state(tracestate: str) -> str:
    """``tracestate`` in its shortest form, or an empty text where it is malformed.

    More than 512 characters are cut at whole members, from the right (the oldest).
    """
    if not tracestate or len(tracestate) > _HEADER_CHARACTERS:
        return ""
    members: list[str] = []
    keys: set[str] = set()
    for text in tracestate.split(","):
        member = text.strip(" \t")
        if not member:
            continue  # empty members are allowed
        found = _MEMBER.fullmatch(member)
        if found is None or found[1] in keys or len(members) == _STATE_MEMBERS:
            return ""
        keys.add(found[1])
        members.append(member)
    while members and sum(map(len, members)) + len(members) - 1 > _STATE_CHARACTERS:
        members.pop()
    return ",".join(members)


def new_context(*, sampled: bool, entropy: Callable[[int], bytes] = os.urandom) -> TraceContext:
    """A root: new ids, and the decision. ``entropy(count)`` gives so many random bytes."""
    trace_id = span_id = 0
    while not trace_id:
        trace_id = int.from_bytes(entropy(16), "big")
    while not span_id:
        span_id = int.from_bytes(entropy(8), "big")
    return TraceContext(trace_id, span_id, RANDOM | (SAMPLED if sampled else 0))


def new_span_id(entropy: Callable[[int], bytes] = os.urandom) -> int:
    """64 random bits that are not all 0."""
    while not (span_id := int.from_bytes(entropy(8), "big")):
        pass
    return span_id


@dataclass(frozen=True, slots=True)
class Sampler:
    """Whether a request is traced: decided from its ids alone, before anything is recorded.

    Attributes:
        ratio: share of traces that begin here, 0 … 1. The decision follows from the trace id (its
            low 56 bits, random by the specification), so that every service decides alike.
        parent: whether a caller's decision stands. Off: callers are not believed.
    """

    ratio: float = 1.0
    parent: bool = True

    def decide(self, caller: TraceContext | None, trace_id: int) -> bool:
        """Whether to record; ``caller`` is what came with the request, if anything did."""
        if caller is not None and self.parent:
            return caller.sampled
        # OTEP 235: recorded are the largest values, so that a lower ratio keeps a subset.
        low = trace_id & ((1 << 56) - 1)
        return low >= round((1.0 - self.ratio) * (1 << 56))
