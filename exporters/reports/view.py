"""What the page shows, worked out of a result; the template only places it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporters.reports.words import count, number, percent, plural, shortened
from validators.comparators import metric_specs
from validators.results import GroupResult, OutputResult, RunResult, VariantResult
from validators.verdict import Verdict

if TYPE_CHECKING:
    from validators.limits import Limit

_INPUTS_IN_WORDS = {
    "data": "given data",
    "random": "generated: random",
    "edges": "generated: edges",
    "extremes": "generated: extreme magnitudes",
    "nonfinite": "generated: NaN and infinity",
    "batch": "generated: batch sizes",
}


_ORDER = (Verdict.INVALID, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True, slots=True)
class Decider:
    """A value against its limit: ``label`` is ``value``; it must be ``operator`` ``limit``."""

    label: str
    value: str
    operator: str
    limit: str
    where: str
    holds: bool
    weight: float = 0.0


@dataclass(slots=True)
class MetricRow:
    """A line of an output's table."""

    name: str
    help: str
    limit: str
    over: str
    worst: str
    p99: str
    median: str
    best: str
    noise: str
    is_bad: bool
    is_judged: bool


@dataclass(slots=True)
class Line:
    """A line of the summary: one variant."""

    key: str
    anchor: str
    verdict: str
    is_reference: bool
    runtime: str
    device: str
    precision: str
    disagree: str
    bound: str
    invalid: str
    accuracy: str
    latency: str
    facts: list[str] = field(default_factory=list)


def candidates(result: RunResult) -> list[VariantResult]:
    """All variants but the reference, what is worst first."""
    found = [variant for variant in result.variants if not variant.is_reference]
    return sorted(found, key=lambda variant: _ORDER.index(variant.verdict))


def outputs(variant: VariantResult) -> Iterator[tuple[GroupResult, OutputResult]]:
    """Every output of every group; those that decide first, of them what is worst."""
    found = [(group, output) for group in variant.groups for output in group.outputs]
    yield from sorted(found, key=lambda pair: (not pair[0].decides, _ORDER.index(pair[1].verdict)))


def rated(result: RunResult) -> frozenset[str]:
    """The input sets whose share of disagreeing rows means something by itself.

    Given data where there is any. Never batch sizes: they repeat rows, and are held against a
    variant only where another batch composition changed its answer.
    """
    data = [item.name for item in result.inputs if item.kind == "data"]
    others = [item.name for item in result.inputs if item.kind != "batch" and item.decides]
    return frozenset(data or others)


def headline(result: RunResult) -> str:
    """The verdict in one sentence."""
    compared = candidates(result)
    if result.verdict is not Verdict.PASS:
        return result.reasons[0] if result.reasons else "no reason was given"
    names = ", ".join(variant.key for variant in compared)
    bounds = [
        output.certificate["bound"]
        for variant in compared
        for _, output in outputs(variant)
        if output.certificate is not None
    ]
    verb = "agrees" if len(compared) == 1 else "agree"
    if not bounds:
        return f"{names} {verb} with {result.reference} on generated inputs; nothing is certified"
    sure = percent(1 - result.settings.alpha)
    worst = percent(max(float(bound) for bound in bounds))
    return f"{names} {verb} with {result.reference}: at most {worst} of rows differ ({sure} sure)"


def deciders(result: RunResult) -> list[Decider]:
    """The values that decided, against their limits: at most three, what failed first."""
    found: list[Decider] = []
    for variant in candidates(result):
        if variant.verdict is result.verdict:
            found += _of_variant(variant, result)
    found.sort(key=lambda one: (one.holds, -one.weight))
    if result.verdict is Verdict.FAIL:
        found = [one for one in found if not one.holds] or found
    return found[:3]


def _of_variant(variant: VariantResult, result: RunResult) -> Iterator[Decider]:
    sets = rated(result)
    for group, output in outputs(variant):
        if not group.decides or output.verdict is not variant.verdict or not output.rows:
            continue
        where = f"{variant.key} · {output.output} · {group.input_set}"
        limit = percent(result.settings.retention_limit)
        if output.invalid_rows:
            what = "rows not finite on one side only"
            yield Decider(what, count(output.invalid_rows), "≤", "0", where, holds=False, weight=3)
            continue
        if output.certificate is not None:
            certificate = output.certificate
            failed = output.verdict is Verdict.FAIL
            rate = float(certificate["k"]) / max(int(certificate["n"]), 1)
            shown = rate if failed else float(certificate["bound"])
            what = "rows that disagree" if failed else "rows that disagree, upper bound"
            holds = shown <= result.settings.retention_limit
            yield Decider(what, percent(shown), "≤", limit, where, holds, 1 + shown)
        elif group.input_set in sets:
            rate = output.disagreements / output.rows
            holds = rate <= result.settings.retention_limit
            yield Decider("rows that disagree", percent(rate), "≤", limit, where, holds, 1 + rate)
        for judged in output.limits:
            if (one := _of_limit(output, judged, where)) is not None:
                yield one
    if variant.labels is not None and variant.labels.verdict is variant.verdict:
        labels = variant.labels
        rate = labels.negative_flips / max(labels.rows, 1)
        yield Decider(
            "labels: right before, wrong now", percent(rate), "≤", percent(labels.limit),
            f"{variant.key} · {labels.output}", rate <= labels.limit, 1 + rate,
        )  # fmt: skip


def _of_limit(output: OutputResult, limit: Limit, where: str) -> Decider | None:
    summary = output.metrics.get(limit.metric)
    if summary is None or not summary.violations:
        return None
    found = summary.max if limit.op == "<=" else summary.min
    return Decider(
        f"{limit.metric}, worst row", number(found, summary.unit), _operator(limit.op),
        number(limit.value, summary.unit), where, holds=False,
        weight=summary.violations / max(output.rows, 1),
    )  # fmt: skip


def _operator(op: str) -> str:
    return {"<=": "≤", ">=": "≥"}[op]


def lines(result: RunResult) -> list[Line]:
    """The summary, the reference first."""
    made, sets = [], rated(result)
    for index, variant in enumerate(result.variants):
        kept = [(group, output) for group, output in outputs(variant) if group.input_set in sets]
        bounds = [float(o.certificate["bound"]) for _, o in kept if o.certificate is not None]
        invalid = sum(output.invalid_rows for _, output in outputs(variant))
        labels = variant.labels
        made.append(
            Line(
                key=variant.key,
                anchor=f"variant-{index}",
                verdict="reference" if variant.is_reference else str(variant.verdict),
                is_reference=variant.is_reference,
                runtime=variant.runtime,
                device=variant.device or "–",
                precision=variant.precision,
                disagree=_disagree([output for _, output in kept if output.rows]),
                bound=percent(max(bounds)) if bounds else "",
                invalid=count(invalid) if invalid else "",
                accuracy=percent(labels.accuracy) if labels is not None else "",
                latency=_latency(variant),
                facts=[variant.precision_note] if variant.precision_note else [],
            )
        )
    return sorted(made, key=lambda line: not line.is_reference)


def _disagree(outputs: Sequence[OutputResult]) -> str:
    """Of the output that disagrees most often; the rows of several are the same rows."""
    if not outputs:
        return ""
    most = max(outputs, key=lambda output: output.disagreements / output.rows)
    where = f" in {most.output}" if len(outputs) > 1 and most.disagreements else ""
    return f"{count(most.disagreements)} of {count(most.rows)}{shortened(where, 40)}"


def _latency(variant: VariantResult) -> str:
    if not variant.latency:
        return ""
    most = max(variant.latency, key=lambda summary: (summary.calls, -summary.batch_size))
    return f"{number(most.p50_ms)} ms at batch {most.batch_size}"


def metric_rows(output: OutputResult, noise: OutputResult | None) -> list[MetricRow]:
    """The table of one output: what has a limit first."""
    limits = {limit.metric: limit for limit in output.limits}
    try:
        specs = metric_specs(output.kind)
    except ValueError:
        specs = {}
    rows = []
    for name, summary in output.metrics.items():
        limit = limits.get(name)
        is_high_bad = summary.worse == "higher"
        worst, best = (summary.max, summary.min) if is_high_bad else (summary.min, summary.max)
        own = noise.metrics.get(name) if noise is not None else None
        own_worst = math.nan
        if own is not None:
            own_worst = own.max if is_high_bad else own.min
        rows.append(
            MetricRow(
                name=name,
                help=specs[name].help if name in specs else "",
                limit=f"{_operator(limit.op)} {number(limit.value, summary.unit)}" if limit else "",
                over=count(summary.violations) if limit else "",
                worst=number(worst, summary.unit),
                p99=number(summary.p99) if is_high_bad else "",
                median=number(summary.p50),
                best=number(best),
                noise=number(own_worst) if own is not None else "",
                is_bad=summary.violations > 0,
                is_judged=limit is not None,
            )
        )
    return sorted(rows, key=lambda row: not row.is_judged)


def certificate_facts(certificate: Mapping[str, Any]) -> str:
    """The numbers of a certificate, named."""
    return (
        f"n = {count(certificate['n'])}, k = {count(certificate['k'])}, "
        f"upper bound {percent(certificate['bound'])}, α = {number(certificate['alpha'])}, "
        f"limit {percent(certificate['limit'])}, {certificate['method']}"
    )


def inputs_in_words(kind: str) -> str:
    """A kind of input set for people."""
    return _INPUTS_IN_WORDS.get(kind, kind)


def noise_of(result: RunResult, output: str) -> OutputResult | None:
    """The reference's own noise in an output."""
    return next((one for one in result.noise if one.output == output and one.rows), None)


def label_facts(variant: VariantResult) -> list[tuple[str, str]]:
    """What labels say, named."""
    labels = variant.labels
    if labels is None:
        return []
    lost = labels.reference_accuracy - labels.accuracy
    return [
        ("accuracy", percent(labels.accuracy)),
        ("accuracy of the reference", percent(labels.reference_accuracy)),
        ("lost", percent(lost)),
        ("retention", percent(labels.retention)),
        ("negative flips", f"{count(labels.negative_flips)} (right before, wrong now)"),
        ("positive flips", f"{count(labels.positive_flips)} (wrong before, right now)"),
        ("limit", f"{percent(labels.limit)} of predictions lost"),
        ("rows with a label", count(labels.rows)),
    ]


def layer_rows(divergence: Mapping[str, Any], most: int = 24) -> tuple[list[dict[str, Any]], str]:
    """Values around the first divergence, and those with the largest local errors.

    Returns:
        Rows in the graph's order, and a sentence when others were left out.
    """
    layers = [dict(row) for row in divergence.get("layers") or []]
    first = (divergence.get("first") or {}).get("value")
    at = next((i for i, row in enumerate(layers) if row.get("value") == first), 0)
    chosen = set(range(max(0, at - 4), min(len(layers), at + 8)))
    order = sorted(range(len(layers)), key=lambda i: _badness(layers[i]))
    for i in order:
        if len(chosen) >= most:
            break
        chosen.add(i)
    rows = []
    for i in sorted(chosen):
        row = layers[i]
        rows.append(
            {
                "value": shortened(str(row.get("value", "")), 60),
                "node": shortened(str(row.get("onnx_node", "")), 60),
                "op": shortened(str(row.get("op_type", "")), 30),
                "module": shortened(str(row.get("module", "")), 60),
                "metric": row.get("metric", ""),
                "local": number(row.get("local_error")),
                "inherited": number(row.get("inherited_error")),
                "total": number(row.get("total_error")),
                "is_first": first is not None and row.get("value") == first,
                "is_out": bool(row.get("local_out")),
                "problem": row.get("problem", ""),
            }
        )
    left = len(layers) - len(rows)
    said = f"{plural(left, 'more value')} in report.json" if left else ""
    return rows, said


def _badness(row: Mapping[str, Any]) -> tuple[bool, float]:
    local = number(row.get("local_error"))
    value = float(row["local_error"]) if local not in {"–", "∞"} else math.inf
    return not row.get("local_out"), -value if local != "–" else 0.0
