"""The report: whole by itself, escaped, and with the facts that decide where people look first."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from exporters.reports import ReportError, write_report
from exporters.reports.words import clean
from tests.exporters import results
from validators.results import RunResult, WorstCase
from validators.verdict import Verdict

VOID = {"meta", "img", "link", "br", "hr", "input", "path", "use", "rect", "line", "circle"}


class Page(HTMLParser):
    """Everything a page is made of; complains of what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.texts = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            opened, _ = self.open.pop()
            assert opened == tag, f"<{opened}> is closed by </{tag}>"

    def handle_data(self, data):
        if self.open and self.open[-1][0] != "style":
            self.words.append(data)
            for _, names in self.open:
                for name in names.split():
                    self.texts.setdefault(name, []).append(data.strip())

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def of(self, name):
        """The text within elements of a class."""
        return " ".join(" ".join(self.texts.get(name, [])).split())


MADE = {
    "passing": (results.passing, Verdict.PASS),
    "failing": (results.failing, Verdict.FAIL),
    "invalid": (results.invalid, Verdict.INVALID),
    "inconclusive": (results.inconclusive, Verdict.INCONCLUSIVE),
    "generated": (results.generated, Verdict.PASS),
    "in_batches": (results.in_batches, Verdict.PASS),
    "nothing": (results.nothing, Verdict.INVALID),
    "hostile": (results.hostile, Verdict.INVALID),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Name → (result, folder of its report, page)."""
    made = {}
    for name, (build, verdict) in MADE.items():
        found = build()
        result, cases = found if isinstance(found, tuple) else (found, None)
        assert result.verdict is verdict, name
        folder = tmp_path_factory.mktemp(name)
        path = write_report(result, folder, cases)
        assert path == folder / "report.html"
        made[name] = result, folder, Page(path.read_text(encoding="utf-8"))
    return made


# --- any report -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_a_page_needs_nothing_else(reports, name):
    _, folder, page = reports[name]
    assert not {"script", "iframe", "link", "object", "embed", "base", "form"} & set(page.tags)
    for tag, attribute, value in page.attributes:
        if attribute in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
            assert value.startswith(("#", "data:image/png;base64,")), (tag, attribute, value)
        assert not attribute.startswith("on"), (tag, attribute)
        if attribute == "style":
            assert "url(" not in value.replace("url(#", "")
    style = (folder / "report.html").read_text(encoding="utf-8")
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", style) == []


@pytest.mark.parametrize("name", MADE)
def test_ids_that_are_used_exist_once(reports, name):
    page = reports[name][2]
    ids = [value for tag, attribute, value in page.attributes if attribute == "id"]
    used = {v[1:] for _, a, v in page.attributes if a == "href" and v.startswith("#")}
    used |= {i for _, _, v in page.attributes for i in re.findall(r"url\(#([^)]+)\)", v)}
    assert used <= set(ids)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", MADE)
def test_the_verdict_comes_first(reports, name):
    result, _, page = reports[name]
    assert page.of("word") == str(result.verdict)
    assert page.of("sentence")
    assert page.tags.index("svg") > page.tags.index("h2") if "svg" in page.tags else True
    order = [page.text.index(str(result.verdict)), page.text.index("Summary"),
             page.text.index("What was compared")]  # fmt: skip
    assert order == sorted(order)


@pytest.mark.parametrize("name", MADE)
def test_the_document_is_the_result(reports, name):
    result, folder, _ = reports[name]
    plain = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if name != "hostile":
        assert RunResult.from_plain(plain).to_plain() == result.to_plain()
    assert plain["verdict"] == str(result.verdict)


@pytest.mark.parametrize("name", MADE)
def test_what_was_compared_is_named(reports, name):
    result, _, page = reports[name]
    for variant in result.variants:
        for artifact in variant.artifacts:
            assert clean(artifact.sha256) in page.text
        if name != "hostile":
            assert variant.key in page.text
            assert variant.precision_note in page.text
    for fact, value in result.environment.items():
        assert clean(fact) in page.text
        assert clean(value) in page.text


def test_a_report_is_the_same_each_time(reports, tmp_path):
    result, folder, _ = reports["inconclusive"]
    write_report(result, tmp_path)
    for file in ("report.html", "report.json", "report.xml"):
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html", "report.json", "report.xml",
    ]  # fmt: skip


# --- what each says -------------------------------------------------------------------------------


def test_a_failure_says_value_operator_and_limit(reports):
    result, _, page = reports["failing"]
    output = next(
        o for v in result.variants for g in v.groups for o in g.outputs
        if o.output == "features" and v.key == "1/int8" and g.decides
    )  # fmt: skip
    assert "100 % must be ≤ 1 %" in page.of("deciders")
    found = output.metrics["sqnr_db"].min
    assert f"{found:.4g} dB must be ≥ 20 dB" in page.of("deciders")
    assert "1/int8 · features · data" in page.of("deciders")
    assert "holds" not in page.of("deciders")


def test_the_certificate_is_a_sentence_with_its_numbers(reports):
    page = reports["passing"][2]
    assert "0 of 400 rows disagree: certified to be under 1 % (95 % sure)" in page.of("certificate")
    assert "n = 400, k = 0, upper bound 0.746 %, α = 0.05, limit 1 %" in page.of("certificate")
    assert "at most 0.746 % of rows differ (95 % sure)" in page.of("sentence")


def test_a_pass_on_generated_inputs_claims_nothing_more(reports):
    page = reports["generated"][2]
    assert "nothing is certified" in page.of("sentence")
    assert "certified to be" not in page.text


def test_what_is_inconclusive_says_what_would_help(reports):
    page = reports["inconclusive"][2]
    assert "too few to tell" in page.of("sentence")
    assert "179 more rows without a disagreement would certify it" in page.text


def test_what_is_invalid_says_why(reports):
    page = reports["invalid"][2]
    assert "1 row is not finite on one side only (the first: row 5)" in page.text
    assert "the candidate lacks it" in page.text
    assert "engine.plan: of another GPU" in page.text
    assert "rows not finite on one side only 1 must be ≤ 0" in page.of("deciders")


def test_repeated_rows_are_no_rate(reports):
    """Rows that are run again in other batches disagree again: that says nothing new."""
    page = reports["in_batches"][2]
    above = page.text[: page.text.index("1/onnx against")]
    assert "0 of 400" in above
    assert "400 of 400" not in above


def test_labels_are_told(reports):
    text = reports["failing"][2].text
    for fact in ("accuracy 95.2 %", "accuracy of the reference 96.5 %", "lost 1.25 %",
                 "retention 98.7 %", "negative flips 7 (right before, wrong now)"):  # fmt: skip
        assert fact in text, fact


def test_the_first_divergence_is_named(reports):
    page = reports["failing"][2]
    assert "Conv_17 (features.4) is the first whose own error is out of limits" in page.text
    assert "model.py:14: x = self.stem(x)" in page.text
    assert "val_17" in page.of("first")
    labels = [v for _, a, v in page.attributes if a == "aria-label"]
    assert "error of each value along the graph" in labels
    assert "first divergence" in page.text
    assert "16 more values in report.json" in page.text


def test_worst_cases_are_shown_with_the_command_that_replays_them(reports):
    result, _, page = reports["failing"]
    worst = next(variant.worst for variant in result.variants if variant.worst)
    assert len(worst) == 4
    for case in worst:
        assert case.replay in page.of("command")
        assert f"logits, row {case.row} of data" in page.text
    pictures = [v for t, a, v in page.attributes if t == "img" and a == "src"]
    assert len(pictures) == 4
    assert "reference says 5, candidate says 1" in page.of("case")


def test_differences_that_do_not_decide_are_apart(reports):
    page = reports["failing"][2]
    assert "Differences that do not decide" in page.text
    assert "(does not decide)" in page.text


def test_histograms_have_the_noise_over_them(reports):
    page = reports["failing"][2]
    labels = [v for _, a, v in page.attributes if a == "aria-label"]
    assert sum(label.startswith("histogram: absolute error") for label in labels) == 6
    assert "histogram: margin: top score over the second, in the reference" in labels
    assert "reference's own noise" in page.text
    assert "of flips" in page.text


def test_pictures_take_their_colours_from_the_page(reports):
    html = (reports["failing"][1] / "report.html").read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--candidate)" in drawn
    left = set(re.findall(r"#[0-9a-f]{6}", drawn))
    assert left <= {"#000000"}, "in dark mode these would not change"
    assert "prefers-color-scheme: dark" in html


def test_a_large_run_is_still_a_page(tmp_path, monkeypatch):
    """80 outputs: not 160 pictures, and all of them are listed."""
    monkeypatch.setattr("exporters.reports.page.FIGURES_MAX", 5)
    result = results.failing()[0]
    group = next(v for v in result.variants if v.key == "1/int8").groups[0]
    first = group.outputs[0]
    group.outputs = [replace(first, output=f"out_{number}") for number in range(80)]
    path = write_report(result, tmp_path)
    html = path.read_text(encoding="utf-8")
    assert html.count("<svg") == 5 + 2, "and the overview, and the divergence"
    assert all(f"out_{n}<" in html for n in range(80))
    assert "not stored" in html, "cases were not given"


def test_a_metric_that_never_applied_and_endless_values_are_shown(tmp_path):
    result = results.passing()
    summary = result.variants[1].groups[0].outputs[1].metrics["sqnr_db"]
    summary.max = summary.mean = float("inf")
    summary.p50 = float("nan")
    page = Page(write_report(result, tmp_path).read_text(encoding="utf-8"))
    assert "∞" in page.text
    assert "nan" not in page.text.lower().split()


# --- hostile names --------------------------------------------------------------------------------


def test_hostile_names_stay_text(reports):
    result, _, page = reports["hostile"]
    assert clean(results.HOSTILE) in page.text
    assert "img" not in page.tags
    assert not any("alert" in value for _, name, value in page.attributes
                   if name not in {"title", "alt", "aria-label"})  # fmt: skip
    assert "49" not in page.of("sentence"), "a template in a name is not evaluated"
    assert result.model not in page.text, "no character that turns or hides text is left"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\0\x1b[31m", "\\u0000\\u001b[31m"),
        ("\ud800", "\\ud800"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("数字 ü 🙂", "数字 ü 🙂"),
    ],
)
def test_clean(text, shown):
    assert clean(text) == shown


# --- JUnit ----------------------------------------------------------------------------------------


def cases_of(folder):
    root = ET.parse(folder / "report.xml").getroot()
    assert root.tag == "testsuites"
    found = {}
    for suite in root.findall("testsuite"):
        cases = suite.findall("testcase")
        assert int(suite.get("tests")) == len(cases) > 0
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
        assert int(suite.get("errors")) == len(suite.findall("testcase/error"))
        for case in cases:
            problem = next((e for e in case if e.tag in {"failure", "error"}), None)
            found[case.get("classname"), case.get("name")] = problem
    totals = [int(root.get(name)) for name in ("tests", "failures", "errors")]
    assert totals[0] == len(found)
    assert sum(totals[1:]) == sum(problem is not None for problem in found.values())
    return found


def test_junit_has_a_case_for_each_variant_input_set_and_output(reports):
    found = cases_of(reports["failing"][1])
    failed = {key for key, problem in found.items() if problem is not None}
    assert set(found) == {
        ("digits.1/onnx.data", "logits"), ("digits.1/onnx.data", "features"),
        ("digits.1/int8.data", "logits"), ("digits.1/int8.data", "features"),
        ("digits.1/int8.extremes", "logits"), ("digits.1/int8.extremes", "features"),
        ("digits.1/int8", "labels"),
    }  # fmt: skip
    assert failed == {
        ("digits.1/int8.data", "logits"), ("digits.1/int8.data", "features"),
        ("digits.1/int8", "labels"),
    }, "what does not decide only warns"  # fmt: skip
    problem = found["digits.1/int8.data", "features"]
    assert problem.tag == "failure"
    assert problem.get("type") == "FAIL"
    assert "400 of 400 rows disagree" in problem.get("message")
    assert "sqnr_db: worst" in problem.text


@pytest.mark.parametrize("name", MADE)
def test_junit_passes_exactly_when_the_run_does(reports, name):
    result, folder, _ = reports[name]
    problems = [problem for problem in cases_of(folder).values() if problem is not None]
    assert (not problems) == (result.verdict is Verdict.PASS)
    if result.verdict is Verdict.INVALID:
        assert any(problem.tag == "error" for problem in problems)
    if result.verdict is Verdict.INCONCLUSIVE:
        assert {problem.get("type") for problem in problems} == {"INCONCLUSIVE"}


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "exporters.reports.page", raising=False)
    with pytest.raises(ReportError, match=re.escape("pip install 'model-sidecar[validate]'")):
        write_report(results.nothing(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="file"):
        write_report(results.nothing(), tmp_path / "file")


def test_a_case_with_part_of_its_arrays_is_shown_as_far_as_it_goes(tmp_path):
    from types import SimpleNamespace

    result, cases = results.failing()
    worst = next(variant for variant in result.variants if variant.worst)
    ids = [case.id for case in worst.worst]
    some = cases[ids[0]]
    cases[ids[0]] = SimpleNamespace(inputs=None, outputs=some.outputs)
    cases[ids[1]] = SimpleNamespace(inputs=some.inputs, outputs={})
    only = {"digits:1/int8": some.outputs["digits:1/int8"]}
    cases[ids[2]] = SimpleNamespace(inputs=some.inputs, outputs=only)
    del cases[ids[3]]
    worst.worst.append(WorstCase("", "data", 0, "logits", "odd"))
    page = Page(write_report(result, tmp_path, cases).read_text(encoding="utf-8"))
    assert "inputs were not kept" in page.text
    assert "not stored" in page.text
    assert "the reference has no such output" in page.text
    assert np.isfinite(len(page.text))
