"""The page: one HTML file that needs nothing else, for somebody who looks at it for two minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from exporters.reports import figures, pictures, view
from exporters.reports.words import clean, count, number, percent, size
from validators.results import OutputResult, RunResult, VariantResult, WorstCase
from validators.verdict import Verdict

if TYPE_CHECKING:
    from exporters.reports.report import CaseArrays

_HERE = Path(__file__).parent
#: A page that takes seconds to open is not looked at.
FIGURES_MAX = 60
CASES_MAX = 24
_SKETCHES = {
    "abs_error": "absolute error |candidate − reference|",
    "rel_error": "relative error |candidate − reference| / |reference|",
    "margin": "margin: top score over the second, in the reference",
}


@dataclass(slots=True)
class OutputSection:
    """One output on one input set."""

    result: OutputResult
    input_set: str
    decides: bool
    metrics: list[view.MetricRow] = field(default_factory=list)
    figures: list[Markup] = field(default_factory=list)
    certificate: str = ""
    is_open: bool = False


@dataclass(slots=True)
class CaseCard:
    """One of the worst cases."""

    case: WorstCase
    reason: str
    metrics: list[tuple[str, str]]
    inputs: list[pictures.Shown]
    outputs: list[pictures.Shown]
    note: str = ""


@dataclass(slots=True)
class VariantSection:
    """One variant that was compared."""

    variant: VariantResult
    anchor: str
    outputs: list[OutputSection]
    cases: list[CaseCard]
    cases_left: int
    labels: list[tuple[str, str]]
    divergence: dict[str, Any] | None
    layers: list[dict[str, Any]]
    layers_left: str
    layers_figure: Markup


def render(result: RunResult, cases: Mapping[str, CaseArrays]) -> str:
    """Return the page.

    Args:
        result: what the run found. Whatever its texts hold is shown as text.
        cases: id → arrays of the worst cases.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters.update(count=count, number=number, percent=percent, size=size)
    builder = _Builder(result, cases)
    return environment.get_template("report.html.j2").render(
        result=result,
        style=Markup((_HERE / "templates" / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        headline=view.headline(result),
        deciders=view.deciders(result),
        lines=view.lines(result),
        overview=builder.overview(),
        sections=builder.sections(),
        noise=[one for one in result.noise if one.rows],
        noise_rows=lambda output: view.metric_rows(output, None),
        words=view.inputs_in_words,
        inconclusive=Verdict.INCONCLUSIVE,
    )


class _Builder:
    """Builds sections; counts pictures, so that a page of a hundred outputs stays a page."""

    def __init__(self, result: RunResult, cases: Mapping[str, CaseArrays]) -> None:
        self.result, self.cases = result, cases
        self._figures_left = FIGURES_MAX
        self._drawn = 0

    def _inline(self, svg: str) -> Markup:
        self._drawn += 1
        return Markup(figures.with_ids(svg, f"f{self._drawn}-"))  # noqa: S704 - drawn here

    def overview(self) -> Markup:
        rates, sets = [], view.rated(self.result)
        for variant in view.candidates(self.result):
            for group, output in view.outputs(variant):
                if group.input_set not in sets or not output.rows:
                    continue
                found = output.certificate or {}
                label = f"{variant.key} · {output.output}"
                if len(sets) > 1:
                    label += f" · {group.input_set}"
                rates.append(
                    figures.Rate(
                        label, output.disagreements / output.rows, found.get("lower"),
                        found.get("bound"), str(output.verdict),
                    )
                )  # fmt: skip
        return self._inline(figures.overview(rates, self.result.settings.retention_limit))

    def sections(self) -> list[VariantSection]:
        anchors = {line.key: line.anchor for line in view.lines(self.result)}
        return [self._section(v, anchors[v.key]) for v in view.candidates(self.result)]

    def _section(self, variant: VariantResult, anchor: str) -> VariantSection:
        divergence = variant.divergence
        layers, left = view.layer_rows(divergence or {})
        figure = ""
        if divergence:
            first = str((divergence.get("first") or {}).get("value", ""))
            figure = figures.along_graph(divergence.get("layers") or [], first)
        shown = variant.worst[:CASES_MAX]
        return VariantSection(
            variant=variant,
            anchor=anchor,
            outputs=[
                self._output(output, group.input_set, group.decides)
                for group, output in view.outputs(variant)
            ],
            cases=[self._card(variant, case) for case in shown],
            cases_left=len(variant.worst) - len(shown),
            labels=view.label_facts(variant),
            divergence=divergence,
            layers=layers,
            layers_left=left,
            layers_figure=self._inline(figure),
        )

    def _output(self, output: OutputResult, input_set: str, decides: bool) -> OutputSection:
        noise = view.noise_of(self.result, output.output)
        section = OutputSection(output, input_set, decides, view.metric_rows(output, noise))
        # What passed is one line where something else did not.
        is_fine = output.verdict is Verdict.PASS
        section.is_open = decides and (not is_fine or self.result.verdict is Verdict.PASS)
        if output.certificate is not None:
            section.certificate = view.certificate_facts(output.certificate)
        if not decides and output.verdict is Verdict.PASS:
            return section  # nobody looks for a picture of what only had to be run
        limits = {limit.metric: limit.value for limit in output.limits}
        for name, label in _SKETCHES.items():
            sketch = output.sketches.get(name)
            if sketch is None or self._figures_left <= 0:
                continue
            drawn = figures.histogram(
                label, sketch,
                noise=(noise.sketches.get(name) if noise and name != "margin" else None),
                bad=output.sketches.get("flip_margin") if name == "margin" else None,
                limit=limits.get(name),
            )  # fmt: skip
            if drawn:
                self._figures_left -= 1
                section.figures.append(self._inline(drawn))
        return section

    def _card(self, variant: VariantResult, case: WorstCase) -> CaseCard:
        kinds = {output.output: output.kind for _, output in view.outputs(variant)}
        units = {
            name: summary.unit
            for _, output in view.outputs(variant)
            if output.output == case.output
            for name, summary in output.metrics.items()
        }
        metrics = [
            (name, number(value, units.get(name, ""))) for name, value in case.metrics.items()
        ]
        card = CaseCard(case, _reason(case.reason), metrics, [], [])
        arrays = self.cases.get(case.id)
        if arrays is None:
            card.note = "not stored"
            return card
        card.inputs = [
            pictures.show_input(name, array) for name, array in (arrays.inputs or {}).items()
        ]
        if not card.inputs:
            card.note = "inputs were not kept"
        reference = pictures.outputs_of(arrays.outputs, self.result.reference) or {}
        candidate = pictures.outputs_of(arrays.outputs, variant.key) or {}
        # The one it is worst in comes first.
        names = dict.fromkeys([case.output, *reference, *candidate])
        card.outputs = [
            pictures.show_output(
                name, reference.get(name), candidate.get(name), kinds.get(name, "")
            )
            for name in names
            if name in reference or name in candidate
        ]
        return card


def _reason(reason: str) -> str:
    kind, _, what = reason.partition(":")
    said = {"failure": "failed", "worst": "among the worst"}.get(kind)
    return f"{said}: {what}" if said and what else reason
