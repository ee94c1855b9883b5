"""The real Evidently in the real child: verdicts, pages, and what it may not leave behind."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sidecar.clock import SystemClock
from sidecar.monitor.deep.job import Options, from_samples
from sidecar.monitor.deep.process import DeepProcess, Limits
from sidecar.monitor.deep.runs import DeepRuns
from tests.monitor.deep.making import CATEGORICAL, COLUMNS, NUMERIC, Source, model, rows
from validators.drift.accuracy import CORRECT
from validators.drift.columns import Column
from validators.drift.reference import Reference

NASTY = "</script><script>alert(1)</script>"
#: A count with three values: Evidently alone would take it for a category.
ALL = (*COLUMNS, Column("count", NUMERIC), Column(NASTY, CATEGORICAL), Column("gone", NUMERIC))
OPTIONS = {"timeout_s": 100, "memory_max_bytes": 2**28}


def wide(count: int, seed: int, *, shift: float = 0.0, classes: tuple[float, ...] = ()):
    found = rows(count, seed, shift=shift, classes=classes)
    rng = np.random.default_rng(100 + seed)
    found["count"] = rng.integers(0, 3, count).astype(float)
    found[NASTY] = rng.choice(["<b>", "&", "x"], count)
    found["gone"] = np.full(count, np.nan) if shift else rng.normal(size=count)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, home, report with drift, report without): both of the same reference."""
    folder, home = (tmp_path_factory.mktemp(name) for name in ("state", "home"))
    known = Reference.of(wide(3000, 1), ALL)
    known.sample[CORRECT] = np.repeat([1.0, 0.0], [1900, 100])
    live = wide(1500, 2, shift=0.4, classes=(0.25, 0.25, 0.25, 0.25))
    live[CORRECT] = np.repeat([1.0, 0.0, np.nan], [800, 200, 500])
    source = Source(known, live)
    deep = DeepRuns([model(**OPTIONS)], source, folder, SystemClock())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.delenv("DO_NOT_TRACK", raising=False)
        drifted = deep.run_now("m", html=True)
        source.live = wide(1500, 3)
        usual = deep.run_now("m", html=False)
    return home, drifted, usual


def columns(report) -> dict[str, dict]:
    kept = json.loads(Path(report.path_json).read_text())
    return {one["column"]: one for one in kept["columns"]}


def test_what_drifted_is_told_and_nothing_else(made):
    _, drifted, usual = made
    assert drifted.message == ""
    found = columns(drifted)
    assert {name for name, one in found.items() if one["drifted"]} == {"x.mean", "y.argmax", "gone"}
    assert (drifted.columns, drifted.columns_drifted, drifted.drifted) == (8, 3, True)
    assert drifted.summary.startswith("3 of 8 columns drifted: x.mean, y.argmax, gone (1500 live")
    assert "Accuracy 80.0% of 1000 labelled rows" in drifted.summary
    assert (usual.columns_drifted, usual.drifted, usual.path_html) == (0, False, "")


def test_values_are_evidentlys_and_thresholds_those_of_the_reference(made):
    _, drifted, usual = made
    shifted, count = columns(drifted)["x.mean"], columns(drifted)["count"]
    assert (shifted["method"], shifted["drifted_when"]) == ("wasserstein", "at least")
    assert shifted["value"] == pytest.approx(0.4, abs=0.1)  # in standard deviations
    # Its default is 0.1, which is what this many rows show without drift once in twenty windows.
    assert 0.1 < shifted["threshold"] < 0.3
    assert (count["type"], count["method"]) == ("numeric", "wasserstein")
    assert columns(drifted)["y.argmax"]["method"] == "jensenshannon"
    same = {name: one["threshold"] for name, one in columns(usual).items()}
    assert same == {name: one["threshold"] for name, one in columns(drifted).items()}


def test_what_no_test_sees_is_counted_first(made):
    found = columns(made[1])
    assert found["x.odd"]["infinite"] == {"reference": 0.1, "current": 0.1}
    assert found["x.odd"]["drifted"] is False
    assert found["gone"]["missing"] == {"reference": 0.0, "current": 1.0}
    assert (found["gone"]["value"], found["gone"]["note"]) == (None, "no finite value is left")


def test_it_left_nothing_in_the_home_folder(made):
    assert list(made[0].rglob("*")) == []


class Needs(html.parser.HTMLParser):
    """What a page would have to load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.title = ""

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in {"src", "href", "srcset", "data"} and tag != "a":
                self.found.append(f"{tag} {name}={value}")


def test_the_page_needs_nothing_else(made):
    text = Path(made[1].path_html).read_text()
    needs = Needs()
    needs.feed(text)
    assert [need for need in needs.found if not need.split("=", 1)[1].startswith("data:")] == []
    assert re.findall(r"url\(\s*['\"]?(?:https?:|//)[^)]{0,60}", text) == []


def test_the_page_says_what_the_report_says_and_no_name_breaks_it(made):
    text = Path(made[1].path_html).read_text()
    assert "<title>Drift of m</title>" in text
    assert "3 of 8 columns drifted: x.mean, y.argmax, gone" in text
    assert "Accuracy 80.0% of 1000 labelled rows" in text
    assert "Missing or infinite values, which no test sees, changed: gone 0.0% → 100.0%" in text
    assert "7 of 8 columns are shown" in text
    assert NASTY not in text
    assert text.index("Drift in column 'x.mean'") < text.index("Drift in column 'x.max'")


def test_the_page_is_drawn_by_a_browser_without_a_network(made, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium: the page is not drawn")
    # Any host, this one as well, is not to be found: what the page fetched would be missing.
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}/profile",
        "--dump-dom", Path(made[1].path_html).as_uri(),
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    # What is there only after the page's scripts have run.
    drawn = re.sub(r"<script.*?</script>", "", found.stdout, flags=re.DOTALL)
    assert "Drift in column 'x.mean'" in drawn
    assert "Data drift detected. Drift detection method: Wasserstein distance (normed)" in drawn
    assert "js-plotly-plot" in drawn


def test_other_methods_have_thresholds_of_their_own():
    methods = {"ks": NUMERIC, "psi": NUMERIC, "jensen_shannon": NUMERIC, "chi_square": CATEGORICAL}
    names = [f"{method}.{what}" for method in methods for what in ("moved", "same")]
    types = {name: methods[name.partition(".")[0]] for name in names}

    def sample(count: int, seed: int, shift: float):
        found = {}
        for at, name in enumerate(names):
            values = np.random.default_rng([seed, at]).normal(size=count)
            values += shift * name.endswith("moved")
            found[name] = values if types[name] is NUMERIC else np.digitize(values, (-0.5, 0.5))
        return found

    known = Reference.of(sample(1500, 1, 0.0), [Column(name, types[name]) for name in names])
    made = from_samples(
        known, sample(1000, 2, 0.5), Options("m", expected=100, calibrate_s=60), rows_max=5000,
        methods={name: name.partition(".")[0] for name in names},
    )  # fmt: skip
    ran = DeepProcess(made, Limits(110, 2**29), SystemClock()).run()
    assert ran.failure == "", ran.message
    found = {one["column"]: one for one in ran.result["columns"]}
    assert {name for name, one in found.items() if one["drifted"]} == {
        name for name in names if name.endswith("moved")
    }
    for name, one in found.items():
        p_value = name.startswith(("ks", "chi"))
        assert one["drifted_when"] == ("at most" if p_value else "at least")
        assert set(ran.result["calibrated"]) == set(names)
        if p_value:
            assert 0 < one["threshold"] < 0.05
