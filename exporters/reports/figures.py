"""Diagrams as SVG, drawn by matplotlib without its global state, and coloured by the page.

Colours are placeholders that become the page's own variables, so that one picture is right in light
and in dark mode; letters are text in the page's font. What a picture holds depends on the numbers
alone: no date, no random ids.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.reports.words import plain, shortened
from validators.sketches import LogHistogram

Array = np.ndarray[Any, Any]

#: Placeholder → variable of the page.
COLORS = {
    "#010203": "--ink", "#010204": "--muted", "#010205": "--line", "#010206": "--candidate",
    "#010207": "--noise", "#010208": "--bad", "#010209": "--good", "#01020a": "--surface",
}  # fmt: skip
_INK, _MUTED, _LINE, _CANDIDATE, _NOISE, _BAD, _GOOD, _SURFACE = COLORS
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "sidecar", "text.parse_math": False,
    "axes.edgecolor": _LINE, "axes.labelcolor": _MUTED, "text.color": _INK,
    "xtick.color": _MUTED, "ytick.color": _MUTED, "axes.facecolor": "none",
    "figure.facecolor": "none", "savefig.facecolor": "none", "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 9, "axes.unicode_minus": False,
    "axes.axisbelow": True, "grid.color": _LINE, "grid.linewidth": 0.6, "legend.frameon": False,
    "legend.fontsize": 8, "axes.linewidth": 0.8,
}  # fmt: skip
_BINS = 48
_ROWS_MAX = 24
_INCH = 72  # points; what matplotlib's SVG counts in


@dataclass(frozen=True, slots=True)
class Rate:
    """A line of the overview: a rate, between bounds where they are known."""

    label: str
    rate: float
    lower: float | None
    upper: float | None
    verdict: str


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure (inches) and its axes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A name in letters that no font here has is the browser's to show, not ours to warn of.
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _svg(figure: Any, label: str) -> str:
    """The picture as an element of the page, without anything that names another place."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg",
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )  # fmt: skip
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, rest = text.partition(">")
    box = re.search(r'viewBox="[-0-9. ]+"', head)
    assert box is not None, "matplotlib always writes one"
    rest = rest.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda m: m.group() if m.group(1) in used else "", rest)
    rest = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", rest)
    for color, variable in COLORS.items():
        rest = rest.replace(color, f"var({variable})")
    label = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    width = round(figure.get_figwidth() * _INCH)
    return (
        f'<svg {box.group()} role="img" aria-label="{label}" style="max-width: {width * 1.5:.0f}px"'
        f">{rest}"
    )


def with_ids(svg: str, prefix: str) -> str:
    """Return a picture whose ids begin with ``prefix``: no two in one page may be the same."""
    return re.sub(r'( id="|href="#|url\(#)', lambda match: match.group() + prefix, svg)


# --- histograms -----------------------------------------------------------------------------------


def histogram(
    label: str,
    sketch: Mapping[str, Any],
    *,
    noise: Mapping[str, Any] | None = None,
    bad: Mapping[str, Any] | None = None,
    limit: float | None = None,
) -> str:
    """Draw a sketch of magnitudes on a logarithmic axis; ``""`` where it is empty.

    Args:
        label: of the axis.
        sketch: a ``LogHistogram`` in plain form: the candidate against the reference.
        noise: the reference against itself, as a dashed line over it.
        bad: a part of ``sketch`` (margins of what flipped), filled in the colour of failures.
        limit: where the limit is, if it is of this quantity.
    """
    main = LogHistogram.from_plain(sketch)
    if not main.count:
        return ""
    floor = LogHistogram.from_plain(noise) if noise else None
    part = LogHistogram.from_plain(bad) if bad else None
    drawn = [each for each in (main, floor, part) if each is not None and each.count]
    edges = _edges(drawn, limit)
    with _figure(4.6, 2.3) as (figure, axes):
        heights = _heights(main, edges, main.count)
        axes.stairs(heights, edges, fill=True, color=_CANDIDATE, alpha=0.55, label="candidate")
        if part is not None and part.count:
            # In the colour of failures, at the size of its own share of all.
            shares = _heights(part, edges, main.count)
            axes.stairs(shares, edges, fill=True, color=_BAD, alpha=0.9, label="of flips")
        if floor is not None and floor.count:
            lines = _heights(floor, edges, floor.count)
            axes.stairs(
                lines, edges, color=_NOISE, linewidth=1.6, linestyle="--",
                label="reference's own noise",
            )  # fmt: skip
        if limit is not None and limit > 0:
            axes.axvline(_power(limit), color=_BAD, linewidth=1.2, label="limit")
        axes.set_xlabel(label)
        axes.set_ylabel("share of values")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.grid(visible=True, axis="y")
        _decades(axes, edges, drawn)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            figure.legend(loc="outside upper right", ncols=4)
        return _svg(figure, f"histogram: {label}")


def _edges(sketches: Sequence[LogHistogram], limit: float | None) -> Array:
    """Bins in powers of ten, over all that is drawn; the first is for zeros, the last for ∞."""
    lows, highs = [], []
    for sketch in sketches:
        edges, counts = sketch.buckets()
        if counts.size:
            lows.append(_power(float(edges[0])))
            highs.append(_power(float(edges[-1])))
    if limit is not None and limit > 0:
        lows.append(_power(limit))
        highs.append(_power(limit))
    low, high = (min(lows), max(highs)) if lows else (-1.0, 0.0)
    # One far outlier (a subnormal number) must not squeeze all else into one bin.
    low = max(low, high - 18)
    width = max((high - low) / _BINS, 0.05)
    return np.arange(-2, math.ceil((high - low) / width) + 3) * width + low


def _power(value: float) -> float:
    """The logarithm to base 10, of what is far from the ends of what float64 has."""
    return math.log10(min(max(value, 1e-300), 1e300))


def _heights(sketch: LogHistogram, edges: Array, count: int) -> Array:
    heights = np.zeros(len(edges) - 1)
    bounds, counts = sketch.buckets()
    if counts.size:
        ends = np.clip(bounds, 1e-300, 1e300)
        middles = np.sqrt(ends[:-1]) * np.sqrt(ends[1:])
        at = np.searchsorted(edges, np.log10(middles), side="right") - 1
        np.add.at(heights, np.clip(at, 1, len(heights) - 2), counts)
    heights[0] += sketch.zeros
    heights[-1] += sketch.infinite
    return np.asarray(heights / count)


def _decades(axes: Any, edges: Array, drawn: Sequence[LogHistogram]) -> None:
    first, last = math.ceil(edges[2]), math.floor(edges[-3])
    step = max(1, -(-(last - first + 1) // 7))
    ticks = {float(at): f"1e{at}" if abs(at) > 3 else f"{10.0**at:g}"
             for at in range(first, last + 1, step)}  # fmt: skip
    if len(ticks) < 2:
        ticks = {float(at): f"{10.0**at:.2g}" for at in (edges[2], edges[-3])}
    if any(sketch.zeros for sketch in drawn):
        ticks[float(edges[0] + edges[1]) / 2] = "0"
    if any(sketch.infinite for sketch in drawn):
        ticks[float(edges[-1] + edges[-2]) / 2] = "∞"
    axes.set_xticks(list(ticks), labels=list(ticks.values()))
    axes.set_xlim(edges[0], edges[-1])


# --- rates ----------------------------------------------------------------------------------------


def overview(rates: Sequence[Rate], limit: float) -> str:
    """Draw how often each output disagrees, with its bounds, against the limit; ``""`` for none."""
    shown = list(rates)[:_ROWS_MAX]
    if not shown:
        return ""
    least = [limit, *(value for r in shown for value in (r.rate, r.upper or 0) if value > 0)]
    floor = 10 ** math.floor(math.log10(min(least)) - 0.5)

    def place(value: float) -> float:
        return math.log10(max(value, floor))

    colors = {"PASS": _GOOD, "FAIL": _BAD, "INVALID": _BAD}
    with _figure(6.6, 0.85 + 0.3 * len(shown)) as (figure, axes):
        axes.axvspan(place(floor), place(limit), color=_GOOD, alpha=0.1, linewidth=0)
        axes.axvline(place(limit), color=_INK, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"limit {100 * limit:.3g} %", (place(limit), 1), (3, -1),
            xycoords=("data", "axes fraction"), textcoords="offset points", va="bottom",
            ha="center", fontsize=8,
        )  # fmt: skip
        for at, one in enumerate(shown):
            color = colors.get(one.verdict, _NOISE)
            if one.upper is not None:
                ends = [place(one.lower or 0), place(one.upper)]
                axes.plot(ends, [at, at], color=color, linewidth=3, solid_capstyle="butt")
                axes.plot(ends[1], at, color=color, marker="|", markersize=10)
            axes.plot(place(one.rate), at, color=color, marker="o", markersize=6)
        axes.set_yticks(range(len(shown)), labels=[shortened(one.label, 44) for one in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        first, last = round(place(floor)), 0
        labels = [f"{10.0 ** (at + 2):g} %" for at in range(first, last + 1)]
        labels[0] = f"≤ {labels[0]}"
        axes.set_xticks(range(first, last + 1), labels=labels)
        axes.set_xlim(first - 0.15, 0.1)
        axes.set_xlabel("share of rows that disagree, up to its upper bound")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.grid(visible=True, axis="x")
        return _svg(figure, "share of rows that disagree, by variant and output")


# --- errors along the graph -----------------------------------------------------------------------


def along_graph(layers: Sequence[Mapping[str, Any]], first: str) -> str:
    """Draw local and total error of each value in the graph's order; ``""`` where there is none.

    Args:
        layers: ``ValueRow`` in plain form; those of the most frequent metric are drawn.
        first: the value that is marked.
    """
    metrics = [str(row.get("metric", "")) for row in layers]
    known = [name for name in metrics if name not in {"", "non_finite"}]
    metric = max(set(known), key=lambda name: (known.count(name), name)) if known else ""
    lines: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "total error": lambda row: plain(row.get("total_error")),
        "local error": lambda row: plain(row.get("local_error")),
    }
    chosen = [i for i, name in enumerate(metrics) if name in {metric, "non_finite"}]
    values = {name: np.array([get(layers[i]) for i in chosen]) for name, get in lines.items()}
    positive = np.concatenate([each[np.isfinite(each) & (each > 0)] for each in values.values()])
    if not positive.size:
        return ""
    low, high = math.log10(positive.min()) - 0.3, math.log10(positive.max()) + 0.3
    low = max(low, high - 20)
    x = np.array(chosen, dtype=np.float64)
    with _figure(6.6, 2.5) as (figure, axes):
        for (name, found), color in zip(values.items(), (_NOISE, _CANDIDATE), strict=True):
            with np.errstate(all="ignore"):
                y = np.clip(np.log10(found), low, high)
            marker = "o" if len(x) <= 60 else ""
            axes.plot(x, y, color=color, linewidth=1.4, marker=marker, markersize=3, label=name)
        broken = [i for i in chosen if metrics[i] == "non_finite"]
        if broken:
            axes.plot(broken, [high] * len(broken), linestyle="", marker="x", color=_BAD,
                      label="not finite")  # fmt: skip
        places = [i for i, row in enumerate(layers) if row.get("value") == first]
        if places:
            axes.axvline(places[0], color=_BAD, linewidth=1.2)
            axes.annotate(
                "first divergence", (places[0], high), (4, -2), textcoords="offset points",
                va="top", fontsize=8, color=_BAD,
                ha="left" if places[0] < len(layers) * 0.7 else "right",
            )  # fmt: skip
        step = max(1, math.ceil((high - low) / 6))
        ticks = range(math.ceil(low), math.floor(high) + 1, step)
        axes.set_yticks(list(ticks), labels=[f"1e{at}" for at in ticks])
        axes.set_ylim(low, high + 0.05 * (high - low))
        axes.set_xlabel("value, in the order of the graph")
        axes.set_ylabel(shortened(metric, 30) or "error")
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside upper right", ncols=3)
        return _svg(figure, "error of each value along the graph")
