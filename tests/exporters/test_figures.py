"""Diagrams: any counts make one, and what it holds depends on the counts alone."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.reports.figures import Rate, along_graph, histogram, overview, with_ids
from exporters.reports.page import FIGURES_MAX
from validators.sketches import LogHistogram


def sketch(values):
    made = LogHistogram()
    made.add(np.asarray(values, np.float64))
    return made.to_plain()


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter() if element.tag == "text"]


def test_drawing_leaves_the_global_state_of_the_library_alone():
    code = (
        "import sys; from exporters.reports.figures import Rate, overview; "
        "assert overview([Rate('a', 0.1, None, None, 'FAIL')], 0.01); "
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]


def test_a_picture_is_the_same_each_time_and_names_no_other_place():
    one = histogram("error", sketch([1e-3, 2e-3, 0.5]))
    assert one == histogram("error", sketch([1e-3, 2e-3, 0.5]))
    assert one != histogram("error", sketch([1e-3, 2e-3, 0.6]))
    assert ET.fromstring(one).tag == "svg"
    assert "http" not in one


def test_nothing_counted_is_no_picture():
    assert histogram("error", sketch([])) == ""
    assert overview([], 0.01) == ""
    assert along_graph([], "x") == ""
    assert along_graph([{"value": "a", "metric": "rmse", "local_error": 0.0}], "a") == ""


@given(
    st.lists(st.floats(0, allow_nan=False), min_size=1, max_size=9),
    st.lists(st.floats(0, allow_nan=False), max_size=4),
    st.one_of(st.none(), st.floats(0, 1e300)),
)
@settings(max_examples=12, deadline=None)
def test_any_magnitudes_make_a_histogram(values, noise, limit):
    assert "<svg" in histogram("error", sketch(values), noise=sketch(noise), limit=limit)


def test_zeros_infinities_noise_and_limit_are_named():
    svg = histogram(
        "error", sketch([0, 0, 1e-3, math.inf]), noise=sketch([1e-4]), bad=sketch([1e-3]), limit=0.1
    )
    assert {"0", "∞", "reference's own noise", "limit", "of flips"} <= set(texts(svg))


def test_rates_stand_at_their_place_beside_the_limit():
    svg = overview(
        [Rate("a $x_1$ <b>", 0.0, 0.0, 0.004, "PASS"), Rate("c", 0.5, None, None, "FAIL")], 0.01
    )
    assert "a $x_1$ <b>" in texts(svg), "a name is no formula and no tag"
    assert "limit 1 %" in texts(svg)
    assert "var(--good)" in svg
    assert "var(--bad)" in svg


def test_many_variants_are_still_a_picture():
    rates = [Rate(f"v{number}", 0.1, None, None, "FAIL") for number in range(200)]
    shown = [text for text in texts(overview(rates, 0.01)) if re.fullmatch(r"v\d+", text or "")]
    assert 10 <= len(shown) < FIGURES_MAX


@pytest.mark.parametrize("count", [1, 5, 300])
def test_errors_along_a_graph(count):
    layers = [
        {"value": f"v{at}", "metric": "rmse", "local_error": 10.0 ** -(at % 7),
         "total_error": "inf" if at == 2 else 1.0}
        for at in range(count)
    ]  # fmt: skip
    layers.append({"value": "end", "metric": "non_finite", "local_error": 3, "total_error": 3})
    found = texts(along_graph(layers, "v0"))
    assert {"first divergence", "local error", "total error", "not finite", "rmse"} <= set(found)


def test_ids_are_told_apart():
    svg = histogram("error", sketch([1.0]))
    one, other = (set(re.findall(r' id="([^"]+)"', with_ids(svg, p))) for p in ("a-", "b-"))
    assert one
    assert not one & other
    renamed = with_ids(svg, "a-")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', renamed))
    assert used == one
