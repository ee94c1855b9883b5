"""The run as JUnit XML, which CI systems show: a test case for each variant, input set and output.

FAIL and INCONCLUSIVE are failures (what could not be certified has not passed), INVALID is an
error. What only warns is text in a case that passed, as it is in the verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from exporters.reports.words import clean, number
from validators.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from validators.results import GroupResult, OutputResult, RunResult, VariantResult


def to_junit(result: RunResult) -> str:
    """Return the document, with its declaration."""
    root = ET.Element("testsuites", name=clean(f"sidecar validate {result.model}"))
    for variant in result.variants:
        if variant.is_reference and not variant.errors:
            continue
        suite = ET.SubElement(
            root, "testsuite", name=clean(f"{result.model}:{variant.key}"),
            timestamp=result.created_at.removesuffix("Z").split("+")[0],
        )  # fmt: skip
        _properties(suite, result, variant)
        _cases(suite, result, variant)
        _count(suite)
    if not root.findall("testsuite"):
        suite = ET.SubElement(root, "testsuite", name=clean(result.model))
        _add(suite, clean(result.model), "run", Verdict.INVALID, result.reasons)
        _count(suite)
    _count(root)
    ET.indent(root)
    text: str = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _properties(suite: ET.Element, result: RunResult, variant: VariantResult) -> None:
    found = {
        "verdict": variant.verdict,
        "reference": result.reference,
        "precision": variant.precision,
        "runtime": variant.runtime,
        "device": variant.device,
        "sidecar": result.tool_version,
    }
    for artifact in variant.artifacts:
        found[f"sha256 {artifact.name}"] = artifact.sha256
    properties = ET.SubElement(suite, "properties")
    for name, value in found.items():
        ET.SubElement(properties, "property", name=clean(name), value=clean(str(value)))


def _cases(suite: ET.Element, result: RunResult, variant: VariantResult) -> None:
    where = f"{result.model}.{variant.key}"
    if variant.errors:
        _add(suite, where, "runs", Verdict.INVALID, variant.errors)
    for group in variant.groups:
        for output in group.outputs:
            verdict = _verdict(variant, group, output)
            reasons = output.problems or output.reasons
            _add(
                suite, f"{where}.{group.input_set}", output.output, verdict, reasons,
                _facts(output),
            )  # fmt: skip
    if variant.labels is not None:
        labels = variant.labels
        facts = [
            f"accuracy {number(labels.accuracy)}, reference {number(labels.reference_accuracy)}, "
            f"retention {number(labels.retention)}, {labels.negative_flips} negative and "
            f"{labels.positive_flips} positive flips of {labels.rows} rows"
        ]
        _add(suite, where, "labels", labels.verdict, labels.reasons, facts)
    if not suite.findall("testcase"):
        _add(suite, where, "comparison", variant.verdict, variant.reasons)


def _verdict(variant: VariantResult, group: GroupResult, output: OutputResult) -> Verdict:
    """What an output means for its variant: what does not decide warns."""
    if not group.decides and not output.problems:
        return Verdict.PASS
    if output.verdict is Verdict.INCONCLUSIVE and variant.verdict is Verdict.PASS:
        return Verdict.PASS  # settled by the labels
    return output.verdict


def _facts(output: OutputResult) -> list[str]:
    facts = [f"{output.held} of {output.rows} rows disagree"] if output.rows else []
    if output.known:
        facts = [f"{facts[0]} in these batches only"]
    for limit in output.limits:
        summary = output.metrics.get(limit.metric)
        if summary is not None and summary.count:
            found = summary.max if limit.op == "<=" else summary.min
            facts.append(
                f"{limit.metric}: worst {number(found, summary.unit)}, limit {limit.op} "
                f"{number(limit.value, summary.unit)}, {summary.violations} rows over"
            )
    return facts


def _add(
    suite: ET.Element,
    class_name: str,
    name: str,
    verdict: Verdict,
    reasons: Sequence[str],
    facts: Sequence[str] = (),
) -> None:
    case = ET.SubElement(suite, "testcase", classname=clean(class_name), name=clean(name), time="0")
    text = clean("\n".join([*reasons, *facts]))
    if verdict is Verdict.PASS:
        if text:
            ET.SubElement(case, "system-out").text = text
        return
    tag = "error" if verdict is Verdict.INVALID else "failure"
    message = clean(reasons[0]) if reasons else str(verdict)
    ET.SubElement(case, tag, type=str(verdict), message=message).text = text


def _count(element: ET.Element) -> None:
    counts = {
        "tests": len(element.findall(".//testcase")),
        "failures": len(element.findall(".//failure")),
        "errors": len(element.findall(".//error")),
    }
    for name, found in counts.items():
        element.set(name, str(found))
