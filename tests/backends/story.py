"""An hour in the life of a sidecar, made up: what a backend is shown, in tests and in pictures.

A model ``digits``: version 1, and version 2 with its int8 form as a mirror. Counts go through the
gateway's own pages and ``Measures``, so that a backend sees what the sidecar would tell; what the
monitor knows beyond them (agreement, drift) is told as points. Everything follows from the seed.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from exporters import instruments as known
from exporters.telemetry.context import RANDOM, SAMPLED, TraceContext
from exporters.telemetry.model import Histogram, Link, Number, Point, Span, SpanKind
from sidecar.config import SidecarConfig, parse
from sidecar.errors import DeadlineError, ExecutionError, InvalidRequestError
from sidecar.gateway.pages import Page, Timing, create_page
from sidecar.monitor.measures import CALLS, Measures
from sidecar.traces import SpanRecord

VARIANTS = (("1", "fp32", "previous"), ("2", "fp32", "serving"), ("2", "int8", "mirror"))
SERVING = 1
COLUMNS = ("brightness", "contrast", "logits.entropy", "logits.margin", "logits.argmax")
REFERENCE = "2026-03"
US = 1_000
MS = 1_000_000
S = 1_000_000_000


def config() -> SidecarConfig:
    """What the sidecar of the story serves."""
    variants = [
        {
            "version": version,
            "name": name,
            "roles": [role],
            "runtime": {"kind": "remote", "address": "127.0.0.1:1"},
        }
        for version, name, role in VARIANTS
    ]
    return parse({"models": [{"name": "digits", "variants": variants}]})


def named(slot: int) -> dict[str, str]:
    """The attributes of a variant."""
    version, name, _ = VARIANTS[slot]
    return {"model.name": "digits", "model.version": version, "variant": name}


class Story:
    """Counts and spans as requests happen; not for several threads.

    Args:
        since_ns: when counting began.
    """

    def __init__(self, since_ns: int, seed: int = 20) -> None:
        self.since_ns = since_ns
        self._random = random.Random(seed)
        descriptor = create_page(len(VARIANTS))
        self.page = Page(descriptor, len(VARIANTS), owner=True)
        os.close(descriptor)
        self.measures = Measures([self.page], config(), since_ns)
        self.compared: Counter[str] = Counter()
        self.dropped = 0
        self._sqnr = [0] * (len(known.SQNR_BUCKETS_DB) + 1)
        self._sqnr_sum = 0.0
        self.shift = 0.0
        #: What was executed, in order; the ids of all traces that began here.
        self.executed_ns: list[int] = []
        self.traces: set[int] = set()

    def close(self) -> None:
        """Give the page back."""
        self.page.close()

    # --- one request --------------------------------------------------------------------------

    def context(self) -> TraceContext:
        """Of a new trace that is sampled."""
        bits = self._random.getrandbits
        context = TraceContext(bits(128) | 1, bits(64) | 1, RANDOM | SAMPLED)
        self.traces.add(context.trace_id)
        return context

    def request(
        self, at_ns: int, *, load: float = 1.0, caller: int = 0, error: str = ""
    ) -> list[Span]:
        """Count a request that begins now; returns its spans and those of its mirror.

        Args:
            load: how much longer it waits and computes than on an idle machine.
            caller: the caller's span, in the same trace; 0 where the trace begins here.
            error: the class of the error it ends with.
        """
        draw = self._random.lognormvariate
        decode, encode = round(60 * US * draw(0, 0.3)), round(40 * US * draw(0, 0.3))
        queue = round(300 * US * draw(0, 0.8) * load**2)
        execute = round(1.8 * MS * draw(0, 0.25) * load)
        total = decode + queue + execute + encode
        rows = self._random.choice((1, 1, 1, 4, 8))
        own = self.context()
        failure = {
            "": None,
            "DeadlineError": DeadlineError("not within 0.25 s"),
            "ExecutionError": ExecutionError("the runtime failed"),
            "InvalidRequestError": InvalidRequestError("input 'image' is missing"),
        }[error]
        if failure is None:
            self.executed_ns.append(execute)
            timing = Timing(decode, queue, execute, encode, rows)
            self.page.record(SERVING, timing, total, at_ns // MS, 300 * rows, 120 * rows)
        else:
            self.page.record_failure(SERVING, "grpc", failure, total)
        self.measures.exemplar(
            SpanRecord(
                own.traceparent, "", caller, 0, "", "digits", "2", "fp32", "grpc",
                error or "OK", at_ns, at_ns + total, queue, decode, execute, encode, rows,
                executed=True, cached=False, fallback="", bytes_in=300 * rows,
                bytes_out=120 * rows,
            )
        )  # fmt: skip
        served = self._served(own, at_ns, (decode, queue, execute, encode), caller, error, rows)
        if error:
            return served
        return [*served, *self._mirror(own, at_ns + total + 9 * MS, execute, rows)]

    def _served(
        self,
        own: TraceContext,
        at_ns: int,
        stages: tuple[int, int, int, int],
        caller: int,
        error: str,
        rows: int,
    ) -> list[Span]:
        decode, queue, execute, _ = stages
        system, method = CALLS["grpc"]
        ended = {"error.type": error} if error else {}
        attributes = {
            "rpc.system.name": system, "rpc.method": method, **ended, **named(SERVING),
            "rows": rows, "cached": False, "request.size": 300 * rows, "response.size": 120 * rows,
        }  # fmt: skip
        faults = error if error != "InvalidRequestError" else ""
        spans = [
            Span(
                method, own, at_ns, at_ns + sum(stages), SpanKind.SERVER, caller,
                parent_remote=bool(caller), attributes=attributes, error=faults or None,
            )
        ]  # fmt: skip
        begins = at_ns
        for name, length in (("queue", queue), ("execute", execute)):
            child = own.child(self._random.getrandbits(64) | 1)
            failed = faults if name == "execute" else ""
            spans.append(
                Span(
                    name, child, begins, begins + length, parent_id=own.span_id,
                    attributes={"joined": False} if name == "execute" else {},
                    error=failed or None,
                )
            )  # fmt: skip
            begins += length + decode
        return spans

    def _mirror(self, served: TraceContext, at_ns: int, execute: int, rows: int) -> list[Span]:
        """Run the int8 form on it, and compare: a trace of its own with a link."""
        db = self._random.gauss(34 - 8 * self.shift, 4)
        verdict = "PASS" if db > 24 else "FAIL"
        self.compared[verdict] += 1
        self._sqnr[bisect_left(known.SQNR_BUCKETS_DB, db)] += 1
        self._sqnr_sum += db
        took = round(0.45 * execute)
        root = Span(
            "mirror.execute", self.context(), at_ns, at_ns + took,
            attributes={**named(2), "role": "mirror", "outcome": "success", "rows": rows},
            links=[Link(served)],
        )  # fmt: skip
        compare = Span(
            "mirror.compare", root.context.child(self._random.getrandbits(64) | 1), at_ns + took,
            at_ns + took + 80 * US, parent_id=root.context.span_id,
            attributes={
                "candidate": "digits:2/int8", "baseline": "digits:2/fp32", "verdict": verdict,
                "rows": rows, "bad_rows": int(verdict == "FAIL"),
            },
        )  # fmt: skip
        return [root, compare]

    # --- metrics ------------------------------------------------------------------------------

    def points(self) -> Iterator[Point]:
        """Every metric, as it is now."""
        yield from self.measures.points()
        yield from self._agreement()
        yield from self._drift()

    def _agreement(self) -> Iterator[Point]:
        count = sum(self.compared.values())
        for verdict, value in self.compared.items():
            attributes = {**named(2), "output": "", "verdict": verdict}
            yield Number(known.COMPARISON_RESULTS, value, attributes, self.since_ns)
        attributes = {**named(2), "output": "logits"}
        yield Histogram(
            known.COMPARISON_SQNR, list(self._sqnr), self._sqnr_sum, attributes, self.since_ns
        )
        if count:
            rate = self.compared["FAIL"] / count
            attributes = {**named(2), "output": ""}
            yield Number(known.DISAGREEMENT_RATE, rate, attributes)
            yield Number(known.DISAGREEMENT_BOUND, min(1.0, rate + 3 / count), attributes)
        for outcome, reason, value in (
            ("compared", "", count), ("dropped", "queue_full", self.dropped),
        ):  # fmt: skip
            if value:
                attributes = {"outcome": outcome, "reason": reason}
                yield Number(known.MIRROR_EXCHANGES, value, attributes, self.since_ns)
        yield Number(known.MIRROR_QUEUE, 4096 * (count % 7))

    def _drift(self) -> Iterator[Point]:
        model = {"model.name": "digits", "reference": REFERENCE}
        yield Number(known.DRIFT_ROWS, 500, model)
        yield Number(known.DRIFT_LAST_SUCCESS, self.since_ns / S, model)
        for number, column in enumerate(COLUMNS):
            attributes = {**model, "column": column, "method": "jensen_shannon"}
            score = 0.04 + 0.01 * number + (self.shift if number < 2 else 0.0)
            yield Number(known.DRIFT_SCORE, score, attributes)
            yield Number(known.DRIFT_THRESHOLD, 0.12, attributes)
            yield Number(known.DRIFT_ALARM, int(score > 0.12), attributes)
