"""One request's trace, drawn in the terminal: read back from what the monitor told the console.

The demo's config sends spans to the console, one JSON object a line, which ends up in the log of
the server. With a backend given by ``OTEL_EXPORTER_OTLP_ENDPOINT`` they go there instead.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

#: Of the log, the latest part is read: a demo that stays up writes on.
READ_BYTES_MAX = 16 * 2**20
_BAR_COLUMNS = 32
_NAME_COLUMNS = 46
_BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class SpanLine:
    """One span, as the console has it; ids in hexadecimal, times in nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)
    links: tuple[str, ...] = ()

    @property
    def ms(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6

    @property
    def variant(self) -> str:
        """``model:version/name``, or what is known of it."""
        model, version = self.attributes.get("model.name", ""), self.attributes.get("model.version")
        return f"{model}:{version}/{self.attributes.get('variant', '')}" if version else model


@dataclass(frozen=True, slots=True)
class Trace:
    """A served request, what was done within it, and the mirrors that repeated it."""

    served: SpanLine
    children: tuple[SpanLine, ...]
    mirrors: tuple[SpanLine, ...]

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "trace_id": self.served.trace_id,
            "variant": self.served.variant,
            "ms": self.served.ms,
            "children": [{"name": one.name, "ms": one.ms} for one in self.children],
            "mirrors": [{"variant": one.variant, "ms": one.ms} for one in self.mirrors],
        }


def of_log(log: Path, model: str) -> Trace | None:
    """The trace of ``model`` to show; ``None``: nothing was traced."""
    return choose(read(log), model)


def read(log: Path) -> list[SpanLine]:
    """The spans in a log; lines that are none are passed over."""
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - READ_BYTES_MAX))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return list(_spans(lines))


def _spans(lines: Iterable[str]) -> Iterator[SpanLine]:
    for line in lines:
        if not line.startswith('{"name": '):
            continue
        try:
            plain = json.loads(line)
            context = plain["context"]
            yield SpanLine(
                plain["name"], context["trace_id"], context["span_id"], plain["parent_id"] or "",
                _ns(plain["start_time"]), _ns(plain["end_time"]), dict(plain["attributes"]),
                tuple(link["context"]["span_id"] for link in plain["links"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError):
            continue  # a line that was cut, or somebody else's


def _ns(text: str) -> int:
    # Microseconds are all the console has.
    return round(datetime.fromisoformat(text).timestamp() * 1e6) * 1000


def choose(spans: Sequence[SpanLine], model: str) -> Trace | None:
    """The request of ``model`` with the most to see: mirrors first, then children, then the last.

    ``None``: none of its requests was traced.
    """
    children, mirrors = (
        defaultdict[str, list[SpanLine]](list),
        defaultdict[str, list[SpanLine]](list),
    )
    for span in spans:
        if span.parent_id:
            children[span.parent_id].append(span)
        for linked in span.links:
            mirrors[linked].append(span)
    served = [
        span
        for span in spans
        if span.attributes.get("model.name") == model
        and "rpc.system.name" in span.attributes
        and not span.links
        and not span.attributes.get("error.type")
    ]
    if not served:
        return None
    best = max(served, key=lambda one: (len(mirrors[one.span_id]), len(children[one.span_id])))
    return Trace(
        best,
        tuple(sorted(children[best.span_id], key=lambda one: one.start_ns)),
        tuple(sorted(mirrors[best.span_id], key=lambda one: one.start_ns)),
    )


def in_words(trace: Trace | None, backend: str) -> list[str]:
    """What the summary says of traces. ``backend``: they went there instead, empty: to the log."""
    if backend:
        return [f"traces, metrics and logs were sent to {backend}"]
    if trace is None:
        return ["no trace was seen in the server's log"]
    return draw(trace)


def draw(trace: Trace) -> list[str]:
    """The waterfall, a line a span; mirrors are traces of their own, drawn to the same scale
    (``▶``: longer than the request)."""
    served = trace.served
    lines = [f"trace {served.trace_id.removeprefix('0x')}: one request to {served.variant}"]
    lines += [_line(one, served, indent) for one, indent in _rows(trace)]
    if trace.mirrors:
        lines.append("repeated in the monitor, as traces of their own that link to this one:")
        for mirror in trace.mirrors:
            later_s = (mirror.start_ns - served.end_ns) / 1e9
            name = f"  {mirror.name} {mirror.variant}"[:_NAME_COLUMNS]
            bar = _bar(0, mirror.end_ns - mirror.start_ns, served.end_ns - served.start_ns)
            lines.append(f"{name:<{_NAME_COLUMNS}} {bar} {mirror.ms:7.2f} ms +{later_s:.1f} s")
    return lines


def _rows(trace: Trace) -> Iterator[tuple[SpanLine, int]]:
    yield trace.served, 1
    for child in trace.children:
        yield child, 2


def _line(span: SpanLine, whole: SpanLine, indent: int) -> str:
    name = f"{'  ' * indent}{span.name}"[:_NAME_COLUMNS]
    bar = _bar(
        span.start_ns - whole.start_ns,
        span.end_ns - whole.start_ns,
        whole.end_ns - whole.start_ns,
    )
    return f"{name:<{_NAME_COLUMNS}} {bar} {span.ms:7.2f} ms"


def _bar(start_ns: int, end_ns: int, whole_ns: int) -> str:
    """A bar from start to end, in eighths of a column; what goes beyond the whole is cut."""
    eighths = 8 * _BAR_COLUMNS / max(1, whole_ns)
    first = min(max(0, round(start_ns * eighths)), 8 * _BAR_COLUMNS - 1)
    last = min(max(first + 1, round(end_ns * eighths)), 8 * _BAR_COLUMNS)
    # Blocks grow from the left, so that a bar begins at a whole column and ends at an eighth.
    begin, (full, rest) = first // 8, divmod(last - first // 8 * 8, 8)
    bar = " " * begin + "█" * full + (_BLOCKS[rest] if rest else "")
    if end_ns > whole_ns:
        bar = bar[:-1] + "▶"
    return f"{bar:<{_BAR_COLUMNS}}"
