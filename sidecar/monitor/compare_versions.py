"""Two versions that share the traffic, beside each other: what ``sidecar compare`` prints.

Unpaired: each request is answered by one of them. So it needs many more requests than checks of
pairs do (``rollback``), and needs no mirror: the counts are the gateway's own. Bounds hold at every
look, and of all metrics together (``validators/sequential/unpaired.py``).

Only what came since the route was last changed counts: the same two versions, in the same shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from sidecar import route_table
from sidecar.config import ModelConfig, SidecarConfig
from sidecar.errors import InvalidRequestError, NotFoundError
from sidecar.gateway.pages import BUCKETS_NS
from sidecar.monitor.harms import SERVED_ACCURACY
from sidecar.monitor.routed_frames import VersionCounts, counts_of, total
from sidecar.monitor.rows import EvidenceRow
from sidecar.monitor.view_rollback import CompareMetric, CompareSide, CompareView
from sidecar.route_table import Route
from validators.sequential.unpaired import Comparison, quantiles, rates, sentence

ALPHA = 0.05
QUANTILES = {"p50": 0.5, "p99": 0.99}
_MS = [bound / 1e6 for bound in BUCKETS_NS] + [math.inf]

#: Version → (labelled answers that were right, labelled answers).
Labels = dict[str, tuple[float, int]]


class Counted(Protocol):
    """Where the gateways' counts come from: one pod's workers, or those of all replicas."""

    def pages(self, model: str) -> dict[int, Mapping[str, VersionCounts]]:
        """Page → version → what was counted in it."""
        ...

    def is_whole(self, model: str) -> bool:
        """Whether that is of all replicas there are; else of this one alone."""
        ...


class Comparer:
    """Compares; for any thread.

    Args:
        route: a model's route as it lies in the table; ``None``: never set.
        evidence: rows of a model, over all lives.
    """

    def __init__(
        self,
        config: SidecarConfig,
        workers: Counted,
        route: Callable[[str], Route | None],
        evidence: Callable[[str], Sequence[EvidenceRow]],
    ) -> None:
        self._models = {model.name: model for model in config.models}
        self._workers = workers
        self._route = route
        self._evidence = evidence

    def since(self, model: str) -> dict[str, Any]:
        """What has been counted so far, to be kept with a change of the route."""
        pages = {
            str(page): {version: each.packed() for version, each in counts.items()}
            for page, counts in self._workers.pages(model).items()
        }
        labels = {version: list(each) for version, each in self._labels(model).items()}
        return {"pages": pages, "labels": labels}

    def compare(self, model: str, first: str, second: str, alpha: float) -> CompareView:
        """Compare two versions; empty: the two that have shares. ``alpha`` 0: 0.05.

        Raises:
            NotFoundError: no such model or version. InvalidRequestError: not two versions that
                share the traffic, or no such risk.
        """
        alpha = alpha or ALPHA
        if not 0 < alpha < 1:
            message = f"alpha is a risk between 0 and 1, not {alpha:g}"
            raise InvalidRequestError(message)
        config = self._models.get(model)
        if config is None:
            message = f"no model {model!r} is served; there is {', '.join(self._models)}"
            raise NotFoundError(message)
        route = self._route(model)
        names = _two(config, route, first, second)
        counts = self._counts(model, route)
        labels = self._labels(model, route)
        labelled = all(labels.get(name, (0, 0))[1] for name in names)
        each = alpha / (1 + len(QUANTILES) + labelled)
        metrics = [_errors(names, counts, each), *_latency(names, counts, each)]
        if labelled:
            metrics.append(_accuracy(names, labels, each))
        text = _text(config, route, names, counts, alpha)
        if not self._workers.is_whole(model):
            text += (
                "; errors and latency are those of this replica alone: replicas tell one another "
                "of their first models only"
            )
        return CompareView(model, alpha, metrics, text)

    # --- counts since the route was set ---------------------------------------------------------

    def _counts(self, model: str, route: Route | None) -> dict[str, VersionCounts]:
        before = {} if route is None else route.since.get("pages", {})
        now: dict[str, list[VersionCounts]] = {}
        less: dict[str, list[VersionCounts]] = {}
        for page, counts in self._workers.pages(model).items():
            kept = before.get(str(page), {}) if isinstance(before, dict) else {}
            for version, each in counts.items():
                now.setdefault(version, []).append(each)
                old = counts_of(kept.get(version)) if isinstance(kept, dict) else None
                if old is not None:
                    less.setdefault(version, []).append(old)
        return {version: total(each, less.get(version, ())) for version, each in now.items()}

    def _labels(self, model: str, route: Route | None = None) -> Labels:
        before = {} if route is None else route.since.get("labels", {})
        settings = self._models[model].labels
        output = None if settings is None else settings.output
        found: Labels = {}
        for row in self._evidence(model):
            key = row.key
            if key.metric != SERVED_ACCURACY or (output is not None and key.output != output):
                continue
            version = key.candidate.removeprefix(f"{model}:").partition("/")[0]
            k, n = found.get(version, (0.0, 0))
            cells: Mapping[str, float] = row.cells
            found[version] = (k + cells.get("k", 0.0), n + int(cells.get("n", 0.0)))
        for version, (k, n) in found.items():
            old = before.get(version) if isinstance(before, dict) else None
            if isinstance(old, list) and [type(one) for one in old] == [float, int]:
                fewer = max(0, n - int(old[1]))
                found[version] = (min(float(fewer), max(0.0, k - old[0])), fewer)
        return found


def _two(model: ModelConfig, route: Route | None, first: str, second: str) -> tuple[str, str]:
    there = route_table.answering(model)
    for version in (first, second):
        if version and version not in there:
            message = f"model {model.name!r} has no version {version!r}; it has: "
            raise NotFoundError(message + ", ".join(there))
    shares, _ = route_table.resolve(route, route_table.configured(model), there)
    if first and second:
        if first == second:
            message = f"version {first!r} is compared with itself; name two"
            raise InvalidRequestError(message)
        return first, second
    sharing = [version for version in there if version in shares]
    if first or second or len(sharing) != 2:
        message = f"{len(sharing)} versions of {model.name!r} have a share "
        message += f"({route_table.words(shares)}); name two of: {', '.join(there)}"
        raise InvalidRequestError(message)
    return sharing[0], sharing[1]


_NOTHING = total(())


def _errors(
    names: tuple[str, str], counts: Mapping[str, VersionCounts], alpha: float
) -> CompareMetric:
    k, n = [], []
    for name in names:
        each = counts.get(name, _NOTHING)
        k.append(each.failed + each.fell_back)
        n.append(each.answered + k[-1])
    found = rates(k[0], n[0], k[1], n[1], alpha)
    return _metric("error", "errors and fallbacks", "1", names, (n[0], n[1]), found, alpha)


def _latency(
    names: tuple[str, str], counts: Mapping[str, VersionCounts], alpha: float
) -> list[CompareMetric]:
    times = [list(accumulate(counts.get(name, _NOTHING).times)) for name in names]
    answered = times[0][-1], times[1][-1]
    return [
        _metric(
            f"latency_{label}", f"latency {label}", "ms", names, answered,
            quantiles(times[0], times[1], _MS, q, alpha), alpha,
        )
        for label, q in QUANTILES.items()
    ]  # fmt: skip


def _accuracy(names: tuple[str, str], labels: Labels, alpha: float) -> CompareMetric:
    (k1, n1), (k2, n2) = (labels[name] for name in names)
    found = rates(k1, n1, k2, n2, alpha)
    return _metric("accuracy", "right answers", "1", names, (n1, n2), found, alpha)


def _metric(
    metric: str, what: str, unit: str, names: tuple[str, str], n: tuple[int, int],
    found: Comparison, alpha: float,
) -> CompareMetric:  # fmt: skip
    sides = [
        CompareSide(name, count, each.value, each.lower, each.upper)
        for name, count, each in zip(names, n, (found.first, found.second), strict=True)
    ]
    said = sentence(what, found, (f"version {names[0]}", f"version {names[1]}"), unit, alpha)
    difference = found.difference
    return CompareMetric(
        metric, unit, sides[0], sides[1], difference.lower, difference.upper, said
    )  # fmt: skip


def _text(
    model: ModelConfig, route: Route | None, names: tuple[str, str],
    counts: Mapping[str, VersionCounts], alpha: float,
) -> str:  # fmt: skip
    seen = " and ".join(f"{counts.get(name, _NOTHING).answered} of {name}" for name in names)
    when = (
        "the gateway began" if route is None else f"the route was set (revision {route.revision})"
    )
    text = f"answered since {when}: {seen}; all bounds hold together, at {100 * (1 - alpha):.6g} %"
    if model.route.sticky is not None:
        text += (
            f"; requests with the same {model.route.sticky!r} go to the same version, so that "
            "fewer of them are independent than are counted: the bounds are too narrow"
        )
    return text
