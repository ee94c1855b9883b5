"""Every metric there is: name, unit, kind, description, attributes, buckets.

What is measured elsewhere is told under these names only: a point of a metric is made from an entry
of this file, with the attributes declared here. Tests hold docs/metrics.md and the code together
(and dashboards, where there are any). Names follow OpenTelemetry; Prometheus gets them by its usual
translation (``Instrument.prometheus_name``).

No tensor value and no request id is ever an attribute: each distinct set of attributes is a series
of its own, in every backend, for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Kind(StrEnum):
    """What a number means over time."""

    COUNTER = "counter"  #: cumulative, never goes down but at a restart
    GAUGE = "gauge"  #: as it is now
    HISTOGRAM = "histogram"  #: cumulative counts by explicit buckets, and their sum


#: Attribute → what it says. Closed sets are spelled out, so that a query can be written from here.
ATTRIBUTES = MappingProxyType({
    "rpc.system.name": "`grpc` or `http`: how the request came",
    "rpc.method": "the method, fully qualified: `inference.GRPCInferenceService/ModelInfer`",
    "error.type": "the error's class; absent when there was none",
    "model.name": "the model, as in the protocol",
    "model.version": "its version",
    "variant": "the variant's name within the version",
    "role": "`serving` or `mirror`",
    "stage": "`decode`, `queue`, `execute` or `encode`",
    "outcome": "how it ended; the values are in the metric's description",
    "reason": "why, where the outcome has several causes; empty when there is nothing to say",
    "direction": "`in` or `out`",
    "output": "the output's name; empty for the whole answer",
    "verdict": "`PASS`, `FAIL`, `INCONCLUSIVE` or `INVALID`",
    "column": "the descriptor's column",
    "method": "the statistic that was computed",
    "reference": "the name of the reference compared with",
    "metric": "the harm that is checked (`error`, `latency`, `flip`, `accuracy`, `output`)",
    "new": "the newer version of the pair, with its variant: `version/name`",
    "previous": "the version before, likewise",
    "state": "the state's name",
    "action": "the kind of action that is configured: `observe`, `switch`, …",
    "channel": "the alert channel",
    "signal": "`traces`, `metrics` or `logs`",
})  # fmt: skip

_VARIANT = ("model.name", "model.version", "variant")
_DRIFT = ("model.name", "column", "method", "reference")
_PAIR = ("model.name", "new", "previous")

#: Seconds. The gateway's own (its pages count with them), so that nothing is ever re-bucketed.
DURATION_BUCKETS_S = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
#: Decibels; the comparators' default limits are among them (int8 20, bf16 35, fp16 50, …).
SQNR_BUCKETS_DB = (0.0, 10.0, 20.0, 30.0, 35.0, 40.0, 50.0, 60.0, 80.0, 100.0, 120.0, 140.0)

_UNIT_WORDS = {"s": "seconds", "By": "bytes", "1": "ratio"}


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric.

    Attributes:
        name: dotted, as OpenTelemetry has it.
        kind: what its numbers mean over time.
        unit: UCUM: ``s``, ``By``, ``1``, ``{request}``, …
        description: one sentence, for people; ends up in the backend's help text.
        attributes: which attributes a point may have (keys of ``ATTRIBUTES``).
        buckets: upper bounds, inclusive, increasing, in ``unit``; histograms only.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The name after OpenTelemetry's translation to Prometheus: unit and ``_total`` appended.

        Units in braces are annotations and are left out; ``1`` becomes ``ratio`` for gauges only.
        """
        name = re.sub(r"[^a-zA-Z0-9_]+", "_", self.name).strip("_")
        word = self.prometheus_unit
        if word and not name.endswith("_" + word):
            name += "_" + word
        return name + "_total" if self.kind is Kind.COUNTER else name

    @property
    def prometheus_unit(self) -> str:
        """The unit as the name ends in it (before ``_total``); empty where there is none."""
        if self.unit.startswith("{") or (self.unit == "1" and self.kind is not Kind.GAUGE):
            return ""
        return _UNIT_WORDS.get(self.unit, self.unit)


# --- requests -------------------------------------------------------------------------------------

CALL_DURATION = Instrument(
    "rpc.server.call.duration", Kind.HISTOGRAM, "s",
    "How long requests took, from the first byte read to the answer handed over.",
    ("rpc.system.name", "rpc.method", "error.type", *_VARIANT), DURATION_BUCKETS_S,
)  # fmt: skip
INFERENCE_DURATION = Instrument(
    "model_sidecar.inference.duration", Kind.HISTOGRAM, "s",
    "How long each stage of an inference took.",
    (*_VARIANT, "role", "stage"), DURATION_BUCKETS_S,
)  # fmt: skip
REQUESTS = Instrument(
    "model_sidecar.requests", Kind.COUNTER, "{request}",
    "Requests by outcome: success, cancel, fail (the reason is the error's class), and refused"
    " (the bound that was reached: requests, bytes, streams). Without a model if it got to none.",
    (*_VARIANT, "outcome", "reason"),
)  # fmt: skip
ROWS = Instrument(
    "model_sidecar.inference.rows", Kind.COUNTER, "{row}",
    "Samples that were computed (a batch of eight counts eight; cached answers do not).", _VARIANT,
)  # fmt: skip
EXECUTIONS = Instrument(
    "model_sidecar.inference.executions", Kind.COUNTER, "{execution}",
    "Executions of the model: requests joined into one batch are one.", _VARIANT,
)  # fmt: skip
CACHE = Instrument(
    "model_sidecar.cache.lookups", Kind.COUNTER, "{request}",
    "Answers looked for in the cache; outcome hit or miss.", (*_VARIANT, "outcome"),
)  # fmt: skip
IO = Instrument(
    "model_sidecar.request.io", Kind.COUNTER, "By",
    "Bytes of requests and answers.", (*_VARIANT, "direction"),
)  # fmt: skip
FALLBACKS = Instrument(
    "model_sidecar.fallbacks", Kind.COUNTER, "{request}",
    "Requests that another variant answered because the serving one failed.", _VARIANT,
)  # fmt: skip
ROUTE_VERSION = Instrument(
    "model_sidecar.route.version", Kind.GAUGE, "1",
    "Share of requests that the route gives to this variant now; absent where it gives none and "
    "was never changed.", _VARIANT,
)  # fmt: skip
ROUTE_PROBLEMS = Instrument(
    "model_sidecar.route.problems", Kind.COUNTER, "{problem}",
    "What kept a worker from the route: damaged (the table was cut short, overwritten or removed;"
    " the last good one stands) or missing (a fresh replica did not get the fleet's in time, and"
    " routes as configured).",
    ("reason",),
)  # fmt: skip
GATEWAY_DROPPED = Instrument(
    "model_sidecar.gateway.dropped", Kind.COUNTER, "{record}",
    "What the gateway dropped for want of room, so that no request waits: exchange_full,"
    " exchange_no_monitor, exchange_lost, timing (records of the trace file), span, log.",
    ("reason",),
)  # fmt: skip

# --- mirror and comparison ------------------------------------------------------------------------

MIRROR_EXCHANGES = Instrument(
    "model_sidecar.mirror.exchanges", Kind.COUNTER, "{exchange}",
    "Sampled exchanges: compared, dropped, set_aside or not_mirrored, each with its reason.",
    ("model.name", "outcome", "reason"),
)  # fmt: skip
MIRROR_QUEUE = Instrument(
    "model_sidecar.mirror.queue.bytes", Kind.GAUGE, "By",
    "Bytes of exchanges that wait to be compared.",
)  # fmt: skip
COMPARISON_RESULTS = Instrument(
    "model_sidecar.comparison.results", Kind.COUNTER, "{request}",
    "Requests compared: PASS where no row disagrees, FAIL where one does, INVALID where the answers"
    " cannot be compared.",
    (*_VARIANT, "output", "verdict"),
)  # fmt: skip
COMPARISON_SQNR = Instrument(
    "model_sidecar.comparison.sqnr", Kind.HISTOGRAM, "dB",
    "Signal to difference ratio of answers against the reference: of each request its worst row.",
    (*_VARIANT, "output"), SQNR_BUCKETS_DB,
)  # fmt: skip
DISAGREEMENT_RATE = Instrument(
    "model_sidecar.comparison.disagreement.rate", Kind.GAUGE, "1",
    "Share of compared requests that disagree with the reference.", (*_VARIANT, "output"),
)  # fmt: skip
DISAGREEMENT_BOUND = Instrument(
    "model_sidecar.comparison.disagreement.upper_bound", Kind.GAUGE, "1",
    "What the share of disagreeing requests is at most, at the configured confidence.",
    (*_VARIANT, "output"),
)  # fmt: skip

# --- drift ----------------------------------------------------------------------------------------

DRIFT_SCORE = Instrument(
    "model_sidecar.drift.score", Kind.GAUGE, "{score}",
    "The statistic of the last window, in the method's own unit.", _DRIFT,
)  # fmt: skip
DRIFT_THRESHOLD = Instrument(
    "model_sidecar.drift.threshold", Kind.GAUGE, "{score}",
    "What the statistic is compared with, calibrated on the reference.", _DRIFT,
)  # fmt: skip
DRIFT_ALARM = Instrument(
    "model_sidecar.drift.alarm", Kind.GAUGE, "{alarm}",
    "1 while there is an alarm, else 0; absent while there is not enough data.", _DRIFT,
)  # fmt: skip
DRIFT_ROWS = Instrument(
    "model_sidecar.drift.window.rows", Kind.GAUGE, "{row}",
    "Rows in the last window.", ("model.name", "reference"),
)  # fmt: skip
DRIFT_LAST_SUCCESS = Instrument(
    "model_sidecar.drift.last_success.timestamp", Kind.GAUGE, "s",
    "When a window was last judged, in seconds since 1970.", ("model.name", "reference"),
)  # fmt: skip

# --- rollback and alerts --------------------------------------------------------------------------

ROLLBACK_EVIDENCE = Instrument(
    "model_sidecar.rollback.log_evidence", Kind.GAUGE, "{nat}",
    "Log of the evidence that the new version is worse than the previous one.",
    (*_PAIR, "metric"),
)  # fmt: skip
ROLLBACK_THRESHOLD = Instrument(
    "model_sidecar.rollback.threshold", Kind.GAUGE, "{nat}",
    "The log of evidence at which it is decided.", (*_PAIR, "metric"),
)  # fmt: skip
ROLLBACK_STATE = Instrument(
    "model_sidecar.rollback.state", Kind.GAUGE, "{state}",
    "1 for the state that the pair is in.", (*_PAIR, "state"),
)  # fmt: skip
ROLLBACK_PAIRS = Instrument(
    "model_sidecar.rollback.pairs", Kind.COUNTER, "{request}",
    "Requests that both versions have answered.", (*_PAIR, "metric"),
)  # fmt: skip
ROLLBACK_THRESHOLD_ACT = Instrument(
    "model_sidecar.rollback.threshold_act", Kind.GAUGE, "{nat}",
    "The log of evidence at which it is acted on; absent where it never is.", (*_PAIR, "metric"),
)  # fmt: skip
ROLLBACK_LAST_CHECK = Instrument(
    "model_sidecar.rollback.last_check.timestamp", Kind.GAUGE, "s",
    "When the pair was last looked at, in seconds since 1970.", _PAIR,
)  # fmt: skip
ROLLBACK_STALE = Instrument(
    "model_sidecar.rollback.stale", Kind.GAUGE, "{pair}",
    "1 while requests come and none of them is run on both versions, else 0.", _PAIR,
)  # fmt: skip
ROLLBACK_FROZEN = Instrument(
    "model_sidecar.rollback.frozen", Kind.GAUGE, "{model}",
    "1 while nobody but an operator may act, else 0.", ("model.name",),
)  # fmt: skip
ROLLBACK_DECISIONS = Instrument(
    "model_sidecar.rollback.decisions", Kind.COUNTER, "{decision}",
    "What was decided: state is the one that the pair came to, or is in.",
    ("model.name", "state", "metric"),
)  # fmt: skip
ROLLBACK_ACTION = Instrument(
    "model_sidecar.rollback.action", Kind.GAUGE, "{action}",
    "1 for how far the action of the pair's decision is: none, waiting, pending, acting, verifying,"
    " done, blocked, failed, undone. Absent while there is no decision.",
    (*_PAIR, "action", "state"),
)  # fmt: skip
FLEET_LEADER = Instrument(
    "model_sidecar.fleet.leader", Kind.GAUGE, "{replica}",
    "1 where this replica decides for all that share its store, else 0.", (),
)  # fmt: skip
FLEET_LEADER_CHANGES = Instrument(
    "model_sidecar.fleet.leader.changes", Kind.COUNTER, "{change}",
    "Terms of leaders that this replica has seen begin.", (),
)  # fmt: skip
FLEET_REPLICAS = Instrument(
    "model_sidecar.fleet.replicas", Kind.GAUGE, "{replica}",
    "Replicas that are alive, as far as this one has heard.", (),
)  # fmt: skip
FLEET_LAST_EXCHANGE = Instrument(
    "model_sidecar.fleet.last_exchange.timestamp", Kind.GAUGE, "s",
    "When counts were last exchanged with the shared store, in seconds since 1970.", (),
)  # fmt: skip
LABELS = Instrument(
    "model_sidecar.labels", Kind.COUNTER, "{label}",
    "Late labels: matched with their request, early (they wait for it), repeated, refused, lost"
    " (their request never came: expired, full). And answers that got none, unlabelled: expired,"
    " full, or not kept for want of an output (output) or for too many rows (rows).",
    ("model.name", "outcome", "reason"),
)  # fmt: skip
LABELS_WAITING = Instrument(
    "model_sidecar.labels.waiting", Kind.GAUGE, "{request}", "Answers that wait for their label.",
    ("model.name",),
)  # fmt: skip
LABELS_COVERAGE = Instrument(
    "model_sidecar.labels.coverage", Kind.GAUGE, "1",
    "Of the answers that wait no longer, the share that got its label; since the monitor started.",
    ("model.name",),
)  # fmt: skip
ALERTS = Instrument(
    "model_sidecar.alerts", Kind.COUNTER, "{alert}",
    "Alerts by outcome: sent (each state once), retried (an attempt failed, another will be made),"
    " failed (given up), suppressed (a repetition, or over before it was told), refused (too many"
    " waited).",
    ("channel", "outcome"),
)  # fmt: skip
ALERTS_WAITING = Instrument(
    "model_sidecar.alerts.waiting", Kind.GAUGE, "{alert}",
    "Alerts that the channel has not taken yet.", ("channel",),
)  # fmt: skip

# --- telemetry itself -----------------------------------------------------------------------------

TELEMETRY_ITEMS = Instrument(
    "model_sidecar.telemetry.items", Kind.COUNTER, "{item}",
    "Spans, data points and log records: exported, or dropped with the reason (queue_full, refused,"
    " rejected, garbage, retries, shutdown, invalid, too_many).",
    ("signal", "outcome", "reason"),
)  # fmt: skip
TELEMETRY_UP = Instrument(
    "model_sidecar.telemetry.backend.up", Kind.GAUGE, "{backend}",
    "1 while the backend takes what it is sent, 0 while it does not.", ("signal",),
)  # fmt: skip
TELEMETRY_QUEUE = Instrument(
    "model_sidecar.telemetry.queue.items", Kind.GAUGE, "{item}",
    "Spans or log records that wait to be sent.", ("signal",),
)  # fmt: skip

INSTRUMENTS: tuple[Instrument, ...] = (
    CALL_DURATION, INFERENCE_DURATION, REQUESTS, ROWS, EXECUTIONS, CACHE, IO, FALLBACKS,
    ROUTE_VERSION, ROUTE_PROBLEMS, GATEWAY_DROPPED, MIRROR_EXCHANGES, MIRROR_QUEUE,
    COMPARISON_RESULTS, COMPARISON_SQNR, DISAGREEMENT_RATE, DISAGREEMENT_BOUND, DRIFT_SCORE,
    DRIFT_THRESHOLD, DRIFT_ALARM, DRIFT_ROWS, DRIFT_LAST_SUCCESS, ROLLBACK_EVIDENCE,
    ROLLBACK_THRESHOLD, ROLLBACK_STATE, ROLLBACK_PAIRS, ROLLBACK_THRESHOLD_ACT,
    ROLLBACK_LAST_CHECK, ROLLBACK_STALE, ROLLBACK_FROZEN, ROLLBACK_DECISIONS, ROLLBACK_ACTION,
    FLEET_LEADER, FLEET_LEADER_CHANGES, FLEET_REPLICAS, FLEET_LAST_EXCHANGE,
    LABELS, LABELS_WAITING, LABELS_COVERAGE, ALERTS, ALERTS_WAITING,
    TELEMETRY_ITEMS, TELEMETRY_UP, TELEMETRY_QUEUE,
)  # fmt: skip
