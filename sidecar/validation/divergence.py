"""What localization says: where two forms of a model first part, and how it knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sidecar.errors import SidecarError
from validators.results import to_plain

#: ``Divergence.cause`` → what it means.
CAUSES = {
    "local": "a node gives another value although its inputs are the reference's",
    "accumulated": "no node is out of limits by itself; small errors add up",
    "optimization": "the graph is right as written; ONNX Runtime's graph optimizations change it",
    "decomposition": "the exporter's decompositions change the result before any ONNX node is made",
    "precision": "some nodes must stay in fp32",
    "none": "no value of the graph is out of limits on this input, by itself or altogether",
}


class LocalizeError(SidecarError):
    """Two variants cannot be compared value by value: says why, and what can be done instead."""


def too_large(bytes_max: int) -> LocalizeError:
    """The error for more captured values than are allowed."""
    message = f"the values of this model take more than {bytes_max / 2**20:.3g} MiB on this input: "
    message += "give fewer rows (one that fails is enough), or raise bytes_max"
    return LocalizeError(message)


@dataclass(slots=True)
class ValueRow:
    """One value that both sides compute.

    Errors are distances in the unit of ``metric``; total ≈ local + inherited.

    Attributes:
        value: its name in the ONNX graph.
        reference: its name on the other side (an fx node, or another graph's value).
        how: how the two were found to be the same (``align.Pair``); by ``"module"`` alone, they may
            be two different values.
        onnx_node: the node that makes it (its name, or ``op_type:value`` where it has none).
        op_type: of that node.
        nodes: every node between the aligned values before it and it, ``onnx_node`` last: the
            local error is theirs together.
        module: path of the PyTorch module it comes from (``blocks.3.conv``); several, joined by
            ``+``, where the exporter fused them; ``""`` where nothing tells.
        source: the line of the model's own code (``model.py:14: x = self.stem(x)``); ``""`` if
            the artifact does not carry it.
        dtype, shape: of the candidate's value on this input.
        metric: what ``local_error`` and ``inherited_error`` are measured in: the first limit
            violated, else the first limit's; ``"non_finite"``: the number of values that are
            infinite or NaN on one side only.
        local_error: reference against the candidate's nodes run on the reference's inputs.
        inherited_error: the candidate's nodes run on the reference's inputs against the same
            nodes run on the candidate's: what came in from before.
        total_error: reference against candidate.
        local_out, total_out: beyond a limit.
        problem: why it could not be judged (another shape or class of dtype); else ``""``.
    """

    value: str
    reference: str
    onnx_node: str
    op_type: str
    how: str = ""
    nodes: list[str] = field(default_factory=list)
    module: str = ""
    source: str = ""
    dtype: str = ""
    shape: list[int] = field(default_factory=list)
    metric: str = ""
    local_error: float | None = None
    inherited_error: float | None = None
    total_error: float | None = None
    local_out: bool = False
    total_out: bool = False
    problem: str = ""


@dataclass(slots=True)
class Divergence:
    """Where a candidate first leaves its reference.

    Attributes:
        reference, candidate: keys of the variants (``version/name``).
        cause: a key of ``CAUSES``.
        text: the finding in one or two sentences.
        aligned: values found on both sides; total: values that the ONNX graph's nodes compute.
        seconds: wall time of it all, loading included.
        first: the first value, in topological order, whose local error is out of limits.
        layers: every aligned value, in topological order.
        outputs_differ: whether an output of the graph is out of limits on this input.
        limits: what "out of limits" means (``"sqnr_db >= 100"``).
        notes: what a reader should know (what was aligned how, what was not looked at).
    """

    reference: str
    candidate: str
    cause: str
    text: str
    aligned: int
    total: int
    seconds: float
    first: ValueRow | None = None
    layers: list[ValueRow] = field(default_factory=list)
    outputs_differ: bool = False
    limits: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """Only what JSON has; numbers that are not finite are text (``"inf"``)."""
        plain = to_plain(self)
        assert isinstance(plain, dict)
        return plain
