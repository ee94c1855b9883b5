"""The dashboards of helm/model-sidecar/dashboards, made from here.

``python -m tests.support.dashboards`` writes them anew; a test compares. Names of metrics are taken
from ``exporters/instruments.py``, so that a renamed one is renamed in the dashboards as well.
"""

from __future__ import annotations

import json
from pathlib import Path

from exporters import instruments as known
from exporters.instruments import Instrument
from tests.support.dashboard_parts import ANCHOR, MODEL, PLACE, ROLLBACKS, SPACE, models, places
from tests.support.dashboard_rollback import rollback
from tests.support.grafana import (
    GREEN,
    RED,
    YELLOW,
    Json,
    Panel,
    Query,
    dashboard,
    field_override,
    heatmap,
    link,
    mapping,
    named_override,
    series,
    stat,
    table,
    timeline,
    variable,
)

FOLDER = Path(__file__).parents[2] / "helm" / "model-sidecar" / "dashboards"

CALLS = known.CALL_DURATION.prometheus_name
STAGES = known.INFERENCE_DURATION.prometheus_name
SQNR = known.COMPARISON_SQNR.prometheus_name
#: Of the chosen models, versions and variants.
CHOSEN = f'{MODEL},model_version=~"$version",variant=~"$variant"'
VERSION = "{{model_name}} {{model_version}}/{{variant}}"
BY_VERSION = "model_name, model_version, variant"


def rate(one: Instrument, by: str = "", chosen: str = CHOSEN) -> str:
    """Per second, summed."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({one.prometheus_name}{{{chosen}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """A share that is 0 where there is only the whole, and absent where there is neither."""
    return f"({part} or 0 * {whole}) / {whole}"


def quantile(q: float, name: str, by: str, chosen: str) -> str:
    """Of a histogram, from its buckets."""
    within = f"sum by (le, {by})" if by else "sum by (le)"
    return f"histogram_quantile({q}, {within} (rate({name}_bucket{{{chosen}}}[$__rate_interval])))"


def mean(name: str, by: str, chosen: str) -> str:
    """Of a histogram, exactly."""
    total, count = (
        f"sum by ({by}) (rate({name}_{part}{{{chosen}}}[$__rate_interval]))"
        for part in ("sum", "count")
    )
    return f"{total} / {count}"


def buckets(name: str, chosen: str) -> str:
    """Of a histogram, what a heatmap draws."""
    return f"sum by (le) (increase({name}_bucket{{{chosen}}}[$__rate_interval]))"


# --- variables ------------------------------------------------------------------------------------

VERSIONS = variable(
    "version", "Version", f"label_values({ANCHOR}{{{MODEL}}}, model_version)", "Of which versions."
)  # fmt: skip
VARIANTS = variable(
    "variant", "Variant",
    f'label_values({ANCHOR}{{{MODEL},model_version=~"$version"}}, variant)',
    "Of which variants: forms of a version (fp32, int8, …).",
)  # fmt: skip


# --- traffic and latency --------------------------------------------------------------------------

_FAILED = rate(known.REQUESTS, "", f'{CHOSEN},outcome="fail"')
_ENDED = rate(known.REQUESTS, "", f'{CHOSEN},outcome=~"success|fail"')
_HITS = rate(known.CACHE, BY_VERSION, f'{CHOSEN},outcome="hit"')
_STAGES_SERVING = f'{CHOSEN},role="serving"'


def _traffic_now() -> list[Panel]:
    return [
        stat("Requests", "Requests per second, whatever became of them.",
             rate(known.REQUESTS), "reqps"),
        stat("Failed",
             "Share of the requests that failed. Callers who gave up are in neither part.",
             share(_FAILED, _ENDED), "percentunit", decimals=2,
             steps=((GREEN, None), (YELLOW, 0.001), (RED, 0.0144))),
        stat("p50", "Half of the answered requests took at most this long.",
             quantile(0.5, CALLS, "", CHOSEN), "s"),
        stat("p99", "99 % of the answered requests took at most this long.",
             quantile(0.99, CALLS, "", CHOSEN), "s"),
        stat("Refused",
             "Requests per second turned away because a bound was reached "
             "(admission.max_requests, max_bytes, max_streams). Of all models.",
             rate(known.REQUESTS, "", f'{PLACE},outcome="refused"') + " or vector(0)", "reqps",
             steps=((GREEN, None), (RED, 0.01))),
        stat("Answered by a fallback",
             "Requests per second that another variant answered because the serving one failed.",
             rate(known.FALLBACKS) + " or vector(0)", "reqps",
             steps=((GREEN, None), (YELLOW, 0.001))),
    ]  # fmt: skip


def _traffic_requests() -> list[Panel]:
    return [
        series("Requests by version", "Answered, failed and given up, by who was to answer.",
               [Query(rate(known.REQUESTS, BY_VERSION), VERSION)], "reqps", stacked=True),
        series("Requests by outcome", "What was not answered, by the error's class or the bound.",
               [Query(rate(known.REQUESTS, "outcome, reason", f'{CHOSEN},outcome!="success"'),
                      "{{outcome}} {{reason}}")],
               "reqps", stacked=True),
        series("Requests by transport", "gRPC, streams (each of their requests) and HTTP.",
               [Query(f"sum by (rpc_system_name, rpc_method) "
                      f"(rate({CALLS}_count{{{CHOSEN}}}[$__rate_interval]))", "{{rpc_method}}")],
               "reqps", stacked=True),
        series("Share of the route",
               "Which part of the requests that name no version goes to whom.",
               [Query(f"avg by ({BY_VERSION}) "
                      f"({known.ROUTE_VERSION.prometheus_name}{{{CHOSEN}}})", VERSION)],
               "percentunit", stacked=True, most=1),
    ]  # fmt: skip


def _traffic_latency() -> list[Panel]:
    quantiles = [
        Query(quantile(q, CALLS, BY_VERSION, f'{CHOSEN},error_type=""'), f"p{q * 100:g} {VERSION}",
              exemplars=q == 0.99)
        for q in (0.5, 0.95, 0.99)
    ]  # fmt: skip
    return [
        series("Latency by version",
               "From the first byte read to the answer handed over; answered requests. Points are "
               "traces: click one.", quantiles, "s"),
        heatmap("Latency",
                "How many requests took how long. Two bands are two kinds of requests, which no "
                "quantile shows.",
                Query(buckets(CALLS, CHOSEN), heatmap=True, exemplars=True), "s"),
        series("Where the time goes",
               "Mean time of each stage; together they are the request's. `queue` grows with "
               "load, `execute` with the model.",
               [Query(mean(STAGES, "stage", _STAGES_SERVING), "{{stage}}")], "s", stacked=True,
               width=8),
        series("p95 by stage", "Each stage by itself: the sum of these is not the request's p95.",
               [Query(quantile(0.95, STAGES, "stage", _STAGES_SERVING), "{{stage}}",
                      exemplars=True)], "s", width=8),
        series("Stages by version",
               "Mean time of each stage, version by version: whether a new one is slower, and in "
               "what.",
               [Query(mean(STAGES, f"{BY_VERSION}, stage", _STAGES_SERVING),
                      f"{VERSION} {{{{stage}}}}")], "s", width=8),
        series("Executing, by variant",
               "Mean time in the model: what serves, and what the mirror runs beside it (at low "
               "priority, so slower than it would serve).",
               [Query(mean(STAGES, f"{BY_VERSION}, role", f'{CHOSEN},stage="execute"'),
                      f"{VERSION} ({{{{role}}}})")], "s"),
        heatmap("Executing", "How long the model itself took; serving alone.",
                Query(buckets(STAGES, f'{_STAGES_SERVING},stage="execute"'), heatmap=True), "s"),
    ]  # fmt: skip


def _traffic_pods() -> list[Panel]:
    look = {"links": [link("Health of this one", "health",
                           instance="${__field.labels.instance}")]}  # fmt: skip
    everything = [named_override(".*", **look)]
    return [
        series("Requests by pod",
               "One that gets much more than others is one that clients hold on to: gRPC keeps "
               "its connections (gateway.grpc.max_connection_age_s).",
               [Query(rate(known.REQUESTS, "instance"), "{{instance}}")], "reqps", width=8,
               overrides=everything),
        series("p99 by pod", "One that is slower than others has a sick device or a busy node.",
               [Query(quantile(0.99, CALLS, "instance", CHOSEN), "{{instance}}")], "s", width=8,
               overrides=everything),
        series("Waiting by pod",
               "Mean time that a request waited for its turn: what more replicas take away, and "
               "what an autoscaler may go by.",
               [Query(mean(STAGES, "instance", f'{_STAGES_SERVING},stage="queue"'),
                      "{{instance}}")], "s", width=8, overrides=everything),
    ]  # fmt: skip


def _traffic_work() -> list[Panel]:
    return [
        series("Rows", "Samples computed: a batch of eight counts eight.",
               [Query(rate(known.ROWS, BY_VERSION), VERSION)], "rowsps", stacked=True, width=8),
        series("Rows per execution", "How well requests are joined to batches.",
               [Query(f"{rate(known.ROWS, BY_VERSION)} / {rate(known.EXECUTIONS, BY_VERSION)}",
                      VERSION)], "none", width=8),
        series("Bytes", "Of requests and answers.",
               [Query(rate(known.IO, "direction"), "{{direction}}")], "Bps", width=8),
        series("Answered from the cache", "Share of the lookups that hit.",
               [Query(f"{_HITS} / {rate(known.CACHE, BY_VERSION)}", VERSION)],
               "percentunit", width=8, most=1),
        series("Fallbacks", "Answered by another variant, by the one that failed.",
               [Query(rate(known.FALLBACKS, BY_VERSION), VERSION)], "reqps", width=8),
        series("Executions", "Of the model, by variant.",
               [Query(rate(known.EXECUTIONS, BY_VERSION), VERSION)], "ops", width=8),
    ]  # fmt: skip


def traffic() -> Json:
    """Requests, and how long they take, by version and stage."""
    return dashboard(
        "model-sidecar-traffic", "Model sidecar / Traffic and latency",
        "Requests, their outcomes, and how long each stage takes, by model, version and variant.",
        [*models(), VERSIONS, VARIANTS],
        [("Now", _traffic_now()), ("Requests", _traffic_requests()),
         ("Latency", _traffic_latency()), ("Pods", _traffic_pods()), ("Work", _traffic_work())],
        [ROLLBACKS],
    )  # fmt: skip


# --- agreement ------------------------------------------------------------------------------------

_RATE = known.DISAGREEMENT_RATE.prometheus_name
_BOUND = known.DISAGREEMENT_BOUND.prometheus_name
_RESULTS = known.COMPARISON_RESULTS.prometheus_name
_PAIR = f"{BY_VERSION}, output"
_OUTPUT = VERSION + " {{output}}"


def _model_links(*others: str) -> Json:
    """From a model in a table to what else is known of it."""
    titles = {"traffic": "Its traffic", "agreement": "Its agreement", "drift": "Its drift",
              "rollback": "Its versions"}  # fmt: skip
    return field_override("Model", links=[
        link(titles[name], name, model="${__value.text}") for name in ("traffic", *others)
    ])  # fmt: skip


_VERDICT_COLORS = [
    field_override(verdict, color={"mode": "fixed", "fixedColor": color})
    for verdict, color in (("PASS", GREEN), ("FAIL", YELLOW), ("INVALID", RED))
]


def _agreement_now() -> list[Panel]:
    counted = f"sum(increase({_RESULTS}{{{CHOSEN}%s}}[$__range]))"
    taken = rate(known.MIRROR_EXCHANGES, "", PLACE)
    compared = rate(known.MIRROR_EXCHANGES, "", f'{PLACE},outcome="compared"')
    return [
        stat("Disagree at most",
             "The largest of the bounds: what the share of disagreeing requests is at most, at "
             "the configured confidence. Narrows as requests are compared.",
             f"max({_BOUND}{{{CHOSEN}}})", "percentunit", decimals=2, width=6,
             steps=((GREEN, None), (YELLOW, 0.05), (RED, 0.2))),
        stat("Compared", "Requests compared in the time that is shown, of all outputs.",
             counted % "", "short", width=5),
        stat("Disagreeing", "Requests of which a row disagrees, in the time that is shown.",
             counted % ',verdict="FAIL"' + " or vector(0)", "short", width=5,
             steps=((GREEN, None), (YELLOW, 1))),
        stat("Not comparable",
             "An output is missing, of another shape or kind, or NaN on one side only. Never "
             "expected.", counted % ',verdict="INVALID"' + " or vector(0)", "short", width=4,
             steps=((GREEN, None), (RED, 1))),
        stat("Coverage", "Share of the sampled requests that were really compared; of all models.",
             share(compared, taken), "percentunit", width=4,
             steps=((RED, None), (YELLOW, 0.5), (GREEN, 0.9))),
    ]  # fmt: skip


def _agreement_versions() -> list[Panel]:
    verdicts = f'sum by ({_PAIR}) ({_RESULTS}{{{CHOSEN},verdict=~"%s"}})'
    latest = "avg by (%s) (%s{%s})"
    return [
        table(
            "By variant and output",
            "As it is now. No output: the whole answer. Requests are counted since the monitor "
            "began; the rate and its bound are of all its lives.",
            [(latest % (_PAIR, _RATE, CHOSEN), "Disagree", "percentunit"),
             (latest % (_PAIR, _BOUND, CHOSEN), "At most", "percentunit"),
             (verdicts % "PASS|FAIL|INVALID", "Compared", "short"),
             (verdicts % "FAIL", "Disagreeing", "short"),
             (verdicts % "INVALID", "Not comparable", "short")],
            (),
            {"model_name": "Model", "model_version": "Version", "variant": "Variant",
             "output": "Output"},
            overrides=[field_override("At most", custom__cellOptions={
                "type": "gauge", "mode": "gradient"}, min=0, max=1), _model_links("rollback")],
            sort=[{"displayName": "At most", "desc": True}],
        ),
        series("Disagreement and its bound",
               "The share seen (full) and the most it can be (dashed). A bound that does not fall "
               "any more is a conversion that really differs.",
               [Query(latest % (_PAIR, _RATE, CHOSEN), _OUTPUT),
                Query(latest % (_PAIR, _BOUND, CHOSEN), "at most " + _OUTPUT)],
               "percentunit", calcs=["lastNotNull"], width=12, height=9,
               overrides=[named_override("^at most", custom__lineStyle={
                   "fill": "dash", "dash": [8, 8]})]),
        series("Verdicts", "Requests compared per second.",
               [Query(rate(known.COMPARISON_RESULTS, "verdict"), "{{verdict}}")], "reqps",
               stacked=True, width=12, height=9,
               overrides=_VERDICT_COLORS),
        heatmap("Signal to difference",
                "SQNR of each request's worst row. int8 lies about 20 to 35 dB, half precision "
                "above 50; a band that sinks is a conversion that gets worse on this traffic.",
                Query(buckets(SQNR, CHOSEN), heatmap=True), "dB", height=9),
        series("Worst twentieth",
               "5 % of the requests have at most this signal to difference ratio.",
               [Query(quantile(0.05, SQNR, _PAIR, CHOSEN), _OUTPUT)], "dB", height=9),
    ]  # fmt: skip


def _agreement_mirror() -> list[Panel]:
    return [
        series("Sampled exchanges", "What became of them; of all models.",
               [Query(rate(known.MIRROR_EXCHANGES, "outcome", PLACE), "{{outcome}}")], "ops",
               stacked=True, width=8),
        series("Not compared, by reason",
               "Dropped for want of room or time, set aside, or of a kind that is not mirrored.",
               [Query(rate(known.MIRROR_EXCHANGES, "outcome, reason",
                           f'{PLACE},outcome!="compared"'), "{{outcome}} {{reason}}")], "ops",
               stacked=True, width=8),
        series("Waiting",
               "Bytes of exchanges that wait to be compared; bounded by the configuration.",
               [Query(f"sum({known.MIRROR_QUEUE.prometheus_name}{{{PLACE}}})", "waiting")],
               "bytes", width=8),
    ]  # fmt: skip


def agreement() -> Json:
    """Whether the variants agree with their reference."""
    return dashboard(
        "model-sidecar-agreement", "Model sidecar / Agreement",
        "How often variants disagree with their reference on live requests, and at most.",
        [*models(), VERSIONS, VARIANTS],
        [("Now", _agreement_now()), ("Variants", _agreement_versions()),
         ("The mirror", _agreement_mirror())],
        [ROLLBACKS],
    )  # fmt: skip


# --- drift ----------------------------------------------------------------------------------------

_SCORE = known.DRIFT_SCORE.prometheus_name
_THRESHOLD = known.DRIFT_THRESHOLD.prometheus_name
_ALARM = known.DRIFT_ALARM.prometheus_name
_SUCCESS = known.DRIFT_LAST_SUCCESS.prometheus_name
_ROWS = known.DRIFT_ROWS.prometheus_name
_COLUMN = "model_name, column, method, reference"
_DRIFTING = f'{MODEL},column=~"$column"'


def drift() -> Json:
    """Whether the traffic is still like its reference, by column."""
    latest = "max by (%s) (%s{%s})"
    score = latest % (_COLUMN, _SCORE, _DRIFTING)
    threshold = latest % (_COLUMN, _THRESHOLD, _DRIFTING)
    alarm = latest % (_COLUMN, _ALARM, _DRIFTING)
    words = {0: ("like the reference", GREEN), 1: ("drift", RED)}
    now = [
        stat("Drifted columns", "Two windows in a row above their threshold, and not yet back.",
             f"sum({_ALARM}{{{MODEL}}})", "none", width=6,
             steps=((GREEN, None), (RED, 1))),
        stat("Columns judged",
             "Columns with a verdict. None: too few rows so far, which is not `ok`.",
             f"count({_ALARM}{{{MODEL}}}) or vector(0)", "none", width=6,
             steps=((RED, None), (GREEN, 1))),
        stat("Last judged",
             "How long ago a window was judged. Windows close at the latest after "
             "drift.window_max_s.",
             f"time() - max({_SUCCESS}{{{MODEL}}})", "s", width=6,
             steps=((GREEN, None), (YELLOW, 7200), (RED, 14400))),
        stat("Rows in the last window", "What the last verdict rests on.",
             f"max({_ROWS}{{{MODEL}}})", "none", width=6),
    ]  # fmt: skip
    columns = [
        table(
            "By column",
            "The last window's statistic beside its threshold, which was calibrated on the "
            "reference: 1.00 of the threshold is where an alarm begins.",
            [(f"{score} / {threshold}", "Of the threshold", "percentunit"),
             (score, "Score", "none"), (threshold, "Threshold", "none"), (alarm, "State", "none")],
            (),
            {"model_name": "Model", "column": "Column", "method": "Method",
             "reference": "Reference"},
            overrides=[
                field_override("Of the threshold", custom__cellOptions={
                    "type": "gauge", "mode": "gradient"}, min=0, max=2,
                    thresholds={"mode": "absolute", "steps": [
                        {"color": GREEN, "value": None}, {"color": YELLOW, "value": 0.8},
                        {"color": RED, "value": 1}]}),
                field_override("State", mappings=[mapping(words)], custom__cellOptions={
                    "type": "color-text"}),
                _model_links("agreement", "rollback"),
            ],
            sort=[{"displayName": "Of the threshold", "desc": True}], height=10,
        ),
        timeline("Alarms", "When which column had drifted. A gap: not enough rows for a verdict.",
                 Query(latest % ("model_name, column", _ALARM, _DRIFTING),
                       "{{model_name}} {{column}}"), words=words, height=9),
        series("Score against threshold", "Above 1 in two windows in a row is an alarm.",
               [Query(f"{score} / {threshold}", "{{model_name}} {{column}}")], "percentunit",
               line=1, height=9, width=16),
        series("Rows per window", "A window below drift.min_rows is not judged.",
               [Query(f"max by (model_name, reference) ({_ROWS}{{{MODEL}}})",
                      "{{model_name}} ({{reference}})")], "none", height=9, width=8),
    ]  # fmt: skip
    return dashboard(
        "model-sidecar-drift", "Model sidecar / Drift",
        "Whether inputs and outputs are still distributed as in the reference, column by column.",
        [*models(_SCORE), variable("column", "Column", f"label_values({_SCORE}{{{MODEL}}}, column)",
                                   "Of which columns.")],
        [("Now", now), ("Columns", columns)],
        [ROLLBACKS],
    )  # fmt: skip


# --- the sidecar itself ---------------------------------------------------------------------------

_UP = known.TELEMETRY_UP.prometheus_name
_OURS = PLACE


def _firing() -> list[Panel]:
    """What Prometheus says of the rules that ship beside these dashboards."""
    ours = f'alertname=~"Model.+|Rollback.+",{SPACE}'
    by = "namespace, alertname, severity, model_name, instance"
    return [
        table("Alerts that fire",
              "Of the rules in helm/model-sidecar/rules, where Prometheus has them; "
              "docs/runbooks.md has a section for each.",
              [(f'max by ({by}) (ALERTS{{{ours},alertstate="firing"}})', "Firing", "none")],
              ("Value", "Value #A"),
              {"severity": "Severity", "alertname": "Alert", "model_name": "Model",
               "namespace": "Namespace", "instance": "Instance"},
              overrides=[_model_links("drift", "rollback")], width=12, height=7),
        timeline("Alerts over time", "When each fired. A gap: it did not.",
                 Query(f'max by (alertname) (ALERTS{{{ours},alertstate="firing"}})',
                       "{{alertname}}"),
                 words={1: ("fires", RED)}, width=12, height=7),
    ]  # fmt: skip


def health() -> Json:
    """Whether the sidecar can see what it should."""
    words = {0: ("not taken", RED), 1: ("taken", GREEN)}
    items = known.TELEMETRY_ITEMS
    now = [
        stat("Instances", "Sidecars that tell their metrics now.",
             f"count(count by (instance) ({known.ROUTE_VERSION.prometheus_name}{{{_OURS}}}))"
             " or vector(0)", "none",
             width=6, steps=((RED, None), (GREEN, 1))),
        stat("Backends up", "The share of backends that took what was sent last.",
             f"avg({_UP}{{{_OURS}}})", "percentunit", width=6,
             steps=((RED, None), (GREEN, 1))),
        stat("Dropped exchanges",
             "Share of the sampled requests that were never compared because something was full, "
             "slow or away.",
             share(rate(known.MIRROR_EXCHANGES, "", f'{_OURS},outcome="dropped"'),
                   rate(known.MIRROR_EXCHANGES, "", _OURS)), "percentunit", decimals=2,
             width=6, steps=((GREEN, None), (RED, 0.01))),
        stat("Dropped telemetry", "Spans, points and records per second that no backend has.",
             rate(items, "", f'{_OURS},outcome="dropped"') + " or vector(0)", "ops", width=6,
             steps=((GREEN, None), (YELLOW, 0.01))),
    ]  # fmt: skip
    gateway = [
        series("Dropped in the gateway",
               "So that no request waits: exchanges, timings, spans and records, by reason. "
               "`exchange_no_monitor`: no monitor was there.",
               [Query(rate(known.GATEWAY_DROPPED, "reason", _OURS), "{{reason}}")], "ops",
               stacked=True, width=8),
        series("Refused", "Requests turned away, by the bound that was reached.",
               [Query(rate(known.REQUESTS, "reason", f'{_OURS},outcome="refused"'),
                      "{{reason}}")], "reqps", stacked=True, width=8),
        # A rate would show nothing: what happens once is there from its first sample on.
        series("Kept from the route",
               "How often since it began, over its workers. `damaged`: the route table could not "
               "be read, and the last good one stands. `missing`: the fleet's did not come in "
               "time, and it routed as configured.",
               [Query(f"sum by (instance, reason) "
                      f"({known.ROUTE_PROBLEMS.prometheus_name}{{{_OURS}}})",
                      "{{instance}} {{reason}}")], "none", width=8),
    ]  # fmt: skip
    monitor = [
        series("Waiting to be compared", "Bytes in the monitor's queue, by instance.",
               [Query(f"sum by (instance) ({known.MIRROR_QUEUE.prometheus_name}{{{_OURS}}})",
                      "{{instance}}")], "bytes"),
        series("Dropped before comparing", "By reason.",
               [Query(rate(known.MIRROR_EXCHANGES, "reason", f'{_OURS},outcome="dropped"'),
                      "{{reason}}")], "ops", stacked=True),
    ]  # fmt: skip
    telemetry = [
        timeline("Backends",
                 "Whether the backend of each signal takes what it is sent. Metrics that are "
                 "scraped have no backend of ours.",
                 Query(f"min by (instance, signal) ({_UP}{{{_OURS}}})",
                       "{{instance}} {{signal}}"), words=words, height=6),
        series("Exported", "Spans, data points and log records.",
               [Query(rate(items, "signal", f'{_OURS},outcome="exported"'), "{{signal}}")], "ops",
               width=8),
        series("Dropped",
               "By reason: `queue_full` and `retries` are a slow or dead backend, `refused` and "
               "`rejected` one that does not take this.",
               [Query(rate(items, "signal, reason", f'{_OURS},outcome="dropped"'),
                      "{{signal}} {{reason}}")], "ops", width=8),
        series("Waiting",
               "Spans and records that wait to be sent; bounded by telemetry.queue_spans.",
               [Query(f"sum by (signal) ({known.TELEMETRY_QUEUE.prometheus_name}{{{_OURS}}})",
                      "{{signal}}")], "none", width=8),
        series("Alerts", "Sent to their channels, failed, or suppressed as repetitions.",
               [Query(rate(known.ALERTS, "channel, outcome", _OURS), "{{channel}} {{outcome}}")],
               "ops", width=24, height=6),
    ]  # fmt: skip
    return dashboard(
        "model-sidecar-health", "Model sidecar / Health of the sidecar",
        "What the sidecar itself loses, and whether anybody hears it.",
        places(known.ROUTE_VERSION.prometheus_name),
        [("Now", now), ("Alerts", _firing()), ("Gateway", gateway), ("Monitor", monitor),
         ("Telemetry", telemetry)],
    )  # fmt: skip


DASHBOARDS = {
    "traffic": traffic, "agreement": agreement, "drift": drift, "rollback": rollback,
    "health": health,
}  # fmt: skip


def text(name: str) -> str:
    """A dashboard as its file has it."""
    return json.dumps(DASHBOARDS[name](), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
