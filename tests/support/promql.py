"""What a query in PromQL names: metrics, and labels of each. For tests that hold names together.

Whether a query is one at all, Prometheus itself is asked (``tests/backends``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from exporters.instruments import INSTRUMENTS, Instrument, Kind

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"\b(?:model_sidecar|rpc_server)_\w+")
_RECORDED = re.compile(r"\bmodel_sidecar:[\w:]+")
_SELECTOR = re.compile(r"\b([a-zA-Z_][\w:]*)\{([^}]*)\}")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_LABEL = re.compile(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)")

#: What whoever scrapes adds.
ADDED = frozenset({"job", "instance", "namespace", "pod", "le"})


def series() -> dict[str, Instrument]:
    """Every name of a series that Prometheus can have of us → its instrument."""
    found = {}
    for one in INSTRUMENTS:
        if one.kind is Kind.HISTOGRAM:
            for part in ("bucket", "sum", "count"):
                found[f"{one.prometheus_name}_{part}"] = one
        else:
            found[one.prometheus_name] = one
    return found


def metrics(query: str) -> set[str]:
    """Names of ours in a query: of metrics, and of what rules record."""
    bare = _QUOTED.sub('""', query)
    return set(_NAME.findall(bare)) | set(_RECORDED.findall(bare))


def labels(one: Instrument) -> set[str]:
    """Labels that a series of it can have."""
    return {name.replace(".", "_") for name in one.attributes} | ADDED


def undeclared(query: str) -> Iterator[str]:
    """What is wrong with the names in a query, if anything."""
    known = series()
    bare = _QUOTED.sub('""', query)
    found = [known[name] for name in metrics(query) if name in known]
    for name in metrics(query) - set(known):
        if not name.startswith("model_sidecar:"):
            yield f"{name} is no series of ours"
    for name, matchers in _SELECTOR.findall(bare):
        if name in known:
            for label in _LABEL.findall(matchers):
                if label not in labels(known[name]):
                    yield f"{name} has no label {label}"
    # Every one of them would be empty otherwise: the grouping says nothing.
    for group in _GROUPED.findall(bare):
        for label in (one.strip() for one in group.split(",")):
            if label and found and not any(label in labels(one) for one in found):
                yield f"nothing in the query has a label {label}"
