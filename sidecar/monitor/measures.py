"""The requests' metrics: what the gateway's workers count in shared memory, told as points.

The pages are the supervisor's, or lie in files (``gateway/page_files.py``), so that counts go on
whatever becomes of a worker or of the monitor: every counter here is cumulative since ``serve``
began, also after a restart of either. What never happened has no series, and memory is bounded by
the configuration: points are made anew each time, and of exemplars there is a fixed number.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from exporters import instruments
from exporters.telemetry.context import SAMPLED, parse
from exporters.telemetry.model import Exemplar, Histogram, Number, Point
from sidecar.gateway.page_files import PageFiles
from sidecar.gateway.pages import (
    BUCKETS_NS,
    OUTCOMES,
    STAGES,
    CallSum,
    Page,
    SlotSum,
    sum_calls,
    sum_slot,
)
from sidecar.route_table import answering, configured

if TYPE_CHECKING:
    from sidecar.config import ModelConfig, SidecarConfig, VariantConfig
    from sidecar.traces import SpanRecord

#: Transport of a page → ``rpc.system.name`` and ``rpc.method``.
CALLS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "grpc": ("grpc", "inference.GRPCInferenceService/ModelInfer"),
        "stream": ("grpc", "inference.GRPCInferenceService/ModelStreamInfer"),
        "http": ("http", "POST /v2/models/{name}/infer"),
    }
)
#: The latest of each bucket are kept, and of all buckets so many.
EXEMPLARS_MAX = 4096

#: A page's counter of the server → why a request was refused.
_REFUSED = MappingProxyType(
    {"refused_requests": "requests", "refused_bytes": "bytes", "refused_streams": "streams"}
)
#: A page's counter of the server → what was dropped, and why if that is known.
_DROPPED = MappingProxyType(
    {
        "tap_dropped_full": "exchange_full",
        "tap_dropped_no_monitor": "exchange_no_monitor",
        "tap_dropped_lost": "exchange_lost",
        "timing_dropped": "timing",
        "spans_dropped": "span",
        "logs_dropped": "log",
    }
)
#: A page's counter of the server → what kept a worker from the route.
_ROUTE = MappingProxyType({"route_damaged": "damaged", "route_missing": "missing"})

#: What the caller did wrong, or a caller that gave up: it says nothing about who answered. (The
#: rules of ``helm/model-sidecar/rules/slo.yaml`` leave out the same.)
CALLERS_OWN = frozenset({
    "InvalidRequestError", "NotFoundError", "ConflictError", "CancelledError",
    "UnsupportedError", "PermissionDeniedError", "UnauthenticatedError",
})  # fmt: skip

Attributes = dict[str, str]
#: A histogram's series: the slot (``None``: of no model), and the stage or the transport + outcome.
_Series = tuple[int | None, str, str]


class Measures:
    """Reads the pages, whenever ``points`` is asked for; for any thread.

    Args:
        pages: of all workers: mapped ones, or files that are read whenever they are asked for.
        config: what they serve: slots are in its order.
        serve_started_ns: wall clock, when counting began; 0: when the telemetry did. (Files say it
            themselves.)
        shares: a model's version → share as it stands, and whether it was ever changed; ``None``:
            it is as configured.
    """

    def __init__(
        self,
        pages: Sequence[Page] | PageFiles,
        config: SidecarConfig,
        serve_started_ns: int = 0,
        shares: Callable[[str], tuple[dict[str, float], bool]] | None = None,
    ) -> None:
        self._files = pages if isinstance(pages, PageFiles) else None
        self._mapped = [] if isinstance(pages, PageFiles) else list(pages)
        self._since_ns = self.since_ns = serve_started_ns
        variants = [(model, variant) for model in config.models for variant in model.variants]
        self._variants = [_attributes(model, variant) for model, variant in variants]
        self._slots = {tuple(names.values()): slot for slot, names in enumerate(self._variants)}
        self._models = config.models
        self._route = shares
        self._lock = threading.Lock()
        self._exemplars: dict[tuple[_Series, int], Exemplar] = {}

    # --- exemplars ----------------------------------------------------------------------------

    def exemplar(self, record: SpanRecord) -> None:
        """Remember a traced request as an example for each histogram that counts it."""
        context = parse(record.traceparent)
        if context is None or not context.flags & SAMPLED or record.transport not in CALLS:
            return
        slot = self._slots.get((record.model, record.version, record.variant))
        outcome = "" if record.outcome == "OK" else record.outcome
        if outcome not in OUTCOMES:
            outcome = OUTCOMES[-1]
        # The gateway measures by another clock than the spans' times; both are nanoseconds.
        found = [((slot, record.transport, outcome), record.end_ns - record.start_ns)]
        if slot is not None and not outcome:
            found.append(((slot, "queue", ""), record.queue_ns))
            if not record.cached:
                found += [
                    ((slot, "decode", ""), record.decode_ns),
                    ((slot, "execute", ""), record.execute_ns),
                    ((slot, "encode", ""), record.encode_ns),
                ]
        with self._lock:
            for series, ns in found:
                key = series, bisect_left(BUCKETS_NS, ns)
                self._exemplars.pop(key, None)  # the latest come last
                self._exemplars[key] = Exemplar(ns / 1e9, record.end_ns, context)
            while len(self._exemplars) > EXEMPLARS_MAX:
                del self._exemplars[next(iter(self._exemplars))]

    def _exemplars_of(self, series: _Series) -> list[Exemplar]:
        with self._lock:
            keys = ((series, bucket) for bucket in range(len(BUCKETS_NS) + 1))
            return [self._exemplars[key] for key in keys if key in self._exemplars]

    # --- points -------------------------------------------------------------------------------

    def points(self) -> Iterator[Point]:
        """Every metric of the requests, as it is now."""
        pages = self._pages()
        shares = {
            tuple(_attributes(model, variant).values()): share
            for model in self._models
            for variant, share in route_shares(model, self._route)
        }
        for slot, names in enumerate(self._variants):
            if (share := shares.get(tuple(names.values()))) is not None:
                yield Number(instruments.ROUTE_VERSION, share, names)
            if pages:
                yield from self._variant(pages, slot, names)
        if pages:
            yield from self._no_model(pages)

    def _pages(self) -> list[Page]:
        """As they are now; ``since_ns`` goes with them."""
        if self._files is None:
            return self._mapped
        pages = self._files.read()
        self._since_ns = self.since_ns = self._files.since_ns
        return pages

    def _variant(self, pages: list[Page], slot: int, names: Attributes) -> Iterator[Point]:
        calls, total = sum_calls(pages, slot), sum_slot(pages, slot)
        yield from self._calls(slot, names, calls)
        yield from self._requests(names, calls)
        for stage in STAGES:
            if any(counts := total.histograms[stage]):
                yield Histogram(
                    instruments.INFERENCE_DURATION, counts, total.durations[stage][1] / 1e9,
                    {**names, "role": "serving", "stage": stage}, self._since_ns,
                    self._exemplars_of((slot, stage, "")),
                )  # fmt: skip
        yield from self._counters(names, total)

    def _calls(
        self, slot: int | None, names: Attributes, calls: Mapping[tuple[str, str], CallSum]
    ) -> Iterator[Point]:
        for (transport, outcome), call in calls.items():
            system, method = CALLS[transport]
            attributes = {"rpc.system.name": system, "rpc.method": method, **names}
            if outcome:
                attributes["error.type"] = outcome
            yield Histogram(
                instruments.CALL_DURATION, call.counts, call.ns / 1e9, attributes, self._since_ns,
                self._exemplars_of((slot, transport, outcome)),
            )  # fmt: skip

    def _requests(
        self, names: Attributes, calls: Mapping[tuple[str, str], CallSum]
    ) -> Iterator[Point]:
        """By outcome, over all transports; of a failure, its error's class is the reason."""
        counted: Counter[tuple[str, str]] = Counter()
        for (_, error), call in calls.items():
            counted[_outcome(error)] += sum(call.counts)
        for (outcome, reason), count in counted.items():
            yield self._number(
                instruments.REQUESTS, count, {**names, "outcome": outcome, "reason": reason}
            )

    def _counters(self, names: Attributes, total: SlotSum) -> Iterator[Point]:
        counters = total.counters
        for instrument, count, more in (
            (instruments.ROWS, counters["inferences"], {}),
            (instruments.EXECUTIONS, counters["executions"], {}),
            (instruments.CACHE, total.durations["cache_hit"][0], {"outcome": "hit"}),
            (instruments.CACHE, total.durations["cache_miss"][0], {"outcome": "miss"}),
            (instruments.IO, counters["bytes_in"], {"direction": "in"}),
            (instruments.IO, counters["bytes_out"], {"direction": "out"}),
            (instruments.FALLBACKS, counters["fallbacks"], {}),
        ):
            if count:
                yield self._number(instrument, count, {**names, **more})

    def served(self) -> dict[str, tuple[int, int]]:
        """Variant → requests that it ended, and those of them that failed by no fault of the caller
        or that a fallback had to answer. Empty without pages."""
        found = {}
        pages = self._pages()
        for slot, names in enumerate(self._variants if pages else ()):
            good = bad = 0
            for (_, error), call in sum_calls(pages, slot).items():
                if not error:
                    good += sum(call.counts)
                elif error not in CALLERS_OWN:
                    bad += sum(call.counts)
            bad += sum_slot(pages, slot).counters["fallbacks"]
            key = f"{names['model.name']}:{names['model.version']}/{names['variant']}"
            found[key] = good + bad, bad
        return found

    def _no_model(self, pages: list[Page]) -> Iterator[Point]:
        """What got to no model, what the gateway had to drop, and what kept it from the route."""
        calls = sum_calls(pages, None)
        yield from self._calls(None, {}, calls)
        # Refusals are told by the bound that was reached, which the calls do not know.
        known = {key: call for key, call in calls.items() if key[1] != "OverloadedError"}
        yield from self._requests({}, known)
        counters: Counter[str] = Counter()
        for page in pages:
            counters.update(page.server_counters())
        for name, reason in _REFUSED.items():
            if counters[name]:
                attributes = {"outcome": "refused", "reason": reason}
                yield self._number(instruments.REQUESTS, counters[name], attributes)
        for name, reason in _DROPPED.items():
            if counters[name]:
                yield self._number(instruments.GATEWAY_DROPPED, counters[name], {"reason": reason})
        for name, reason in _ROUTE.items():
            if counters[name]:
                yield self._number(instruments.ROUTE_PROBLEMS, counters[name], {"reason": reason})

    def _number(
        self, instrument: instruments.Instrument, count: int, attributes: Attributes
    ) -> Number:
        return Number(instrument, count, attributes, self._since_ns)


def route_shares(
    model: ModelConfig, route: Callable[[str], tuple[dict[str, float], bool]] | None = None
) -> list[tuple[VariantConfig, float]]:
    """Which variant answers which share of the requests that name no version.

    Nothing where no variant serves. Once a route was changed, also those that have no share: 0 is
    what a version that was rolled back gets, and a series that ends would say nothing.
    """
    shares, changed = (configured(model), False) if route is None else route(model.name)
    return [
        (variant, shares.get(version, 0.0))
        for version, variant in answering(model).items()
        if changed or version in shares
    ]


def _outcome(error: str) -> tuple[str, str]:
    if not error:
        return "success", ""
    return ("cancel", "") if error == "CancelledError" else ("fail", error)


def _attributes(model: ModelConfig, variant: VariantConfig) -> Attributes:
    return {"model.name": model.name, "model.version": variant.version, "variant": variant.name}
