"""Which nodes of a model must stay in fp32 for it to be right in fp16.

TensorRT's values cannot be looked at one by one: a value that is marked as an output is no longer
fused, and the engine is another. So the question is asked the other way round, of whole engines:
keep some nodes in fp32, build, run, compare; delta debugging finds a small set that is enough.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.errors import ArtifactError
from sidecar.runtimes import artifacts
from sidecar.validation.divergence import LocalizeError
from sidecar.validation.mixed_precision import convertible, prepared, write_mixed
from sidecar.validation.shrink import minimize
from sidecar.validation.value_errors import ValueJudge
from validators.limits import Limit, default_limits

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Array, Runtime

#: Whether the model is right with these nodes kept in fp32, and the others in fp16.
Check = Callable[[frozenset[str]], bool]


@dataclass(slots=True)
class Bisection:
    """What must stay in fp32.

    Attributes:
        kept: names of nodes, in topological order; right with these in fp32, as the last check
            on them said. Empty: everything may be fp16.
        of: how many nodes there were to choose from.
        checks: how many engines (or graphs) were built and run.
        exhausted: the budget ended the search: fewer may do.
        steps: what was found on the way, a sentence each.
    """

    kept: list[str]
    of: int
    checks: int
    exhausted: bool = False
    steps: list[str] = field(default_factory=list)


def bisect(
    nodes: Sequence[str], check: Check, budget: int = 100, *, suspects: Sequence[str] = ()
) -> Bisection:
    """Find a small set of nodes that must stay in fp32.

    Neighbours in topological order are kept or released together at first, then in smaller and
    smaller groups (delta debugging, as in ``shrink``). The set found is sufficient, and no single
    node can be left out of it; that it is the smallest of all is not promised.

    Args:
        nodes: names to choose from, in topological order.
        check: builds and runs; asked once for each set.
        budget: how often it may be asked.
        suspects: nodes that are likely in it, the likeliest first (``localize`` knows them): tried
            first, alone.

    Raises:
        LocalizeError: it is wrong with every node in fp32 as well: precision is not the cause.
        ValueError: the budget is below 2.
    """
    if budget < 2:
        message = f"a budget of {budget} checks does not reach: it takes two to begin"
        raise ValueError(message)
    names = np.array(list(nodes), dtype=object)
    search = _Search(names, check, budget)
    everything = np.arange(names.size)
    if search.right(everything[:0]):
        return search.result(everything[:0], "everything may be fp16")
    if not search.right(everything):
        message = f"with all {names.size} nodes in fp32 the answers are still out of limits: the "
        message += "precision is not the cause; localize the fp32 graph first"
        raise LocalizeError(message)
    start = search.among(suspects)
    found = minimize(
        everything if start is None else start, search.right, least=1, more=search.more
    )
    return search.result(found, f"{found.size} of {names.size} nodes must stay in fp32")


class _Search:
    def __init__(self, names: Array, check: Check, budget: int) -> None:
        self._names, self._check, self._budget = names, check, budget
        self._known: dict[frozenset[str], bool] = {}
        self._steps: list[str] = []

    def more(self) -> bool:
        return len(self._known) < self._budget

    def right(self, items: Array) -> bool:
        kept = frozenset(self._names[items])
        if kept not in self._known:
            if not self.more():
                return False
            self._known[kept] = bool(self._check(kept))
        return self._known[kept]

    def among(self, suspects: Sequence[str]) -> Array | None:
        """The first few suspects that are enough, twice as many each time."""
        positions = {name: index for index, name in enumerate(self._names)}
        order = [positions[name] for name in dict.fromkeys(suspects) if name in positions]
        count = 1
        while order and self.more():
            first = np.sort(np.array(order[:count]))
            if self.right(first):
                self._steps.append(f"the first {first.size} of {len(order)} suspects are enough")
                return first
            if count >= len(order):
                break
            count *= 2
        return None

    def result(self, found: Array, step: str) -> Bisection:
        kept = [str(name) for name in self._names[found]]
        checks = len(self._known)
        steps = [*self._steps, step]
        return Bisection(kept, self._names.size, checks, checks >= self._budget, steps)


def find_fp32_nodes(
    path: Path,
    inputs: Mapping[str, Array],
    *,
    build: Callable[[Path], Runtime] | None = None,
    expected: Mapping[str, Array] | None = None,
    limits: Sequence[Limit] | None = None,
    budget: int = 100,
) -> Bisection:
    """All of it: which nodes of an fp32 ONNX file must stay in fp32 on these inputs.

    One localization of the graph in fp16 against itself in fp32 names the suspects, so that few
    engines are built.

    Args:
        path: the fp32 model.
        inputs: one request's.
        build, expected, limits: as for ``OutputCheck``.
        budget: how many engines (or graphs) may be built.

    Raises:
        ArtifactError, LocalizeError: as ``MixedModel`` and ``bisect``.
    """
    model = MixedModel(path)
    check = OutputCheck(model, inputs, build, expected=expected, limits=limits)
    return bisect(model.nodes, check, budget, suspects=suspects(model, inputs))


def suspects(model: MixedModel, inputs: Mapping[str, Array]) -> list[str]:
    """Nodes by how wrong fp16 makes them on right inputs, the worst first.

    A node whose result leaves fp16's range comes with its readers: one of them brings it back, and
    is as little use in fp16.
    """
    from sidecar.validation.localize import localize

    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / "fp16.onnx"
        half.write_bytes(model.write(frozenset(), emulate=True))
        full = Path(folder) / "fp32.onnx"
        full.write_bytes(model.write(frozenset(model.nodes), emulate=True))
        limits = [Limit("sqnr_db", ">=", 0.0)]
        found = localize(_variant(full), _variant(half), inputs, limits=limits)
    known = set(model.nodes)
    beyond: dict[str, None] = {}
    ranked: list[tuple[float, str]] = []
    for row in found.layers:
        nodes = [name for name in row.nodes if name in known]
        if row.metric == "non_finite":
            for name in nodes:
                beyond.update(dict.fromkeys([name, *model.readers(name)]))
        elif row.local_error is not None:
            ranked += [(row.local_error, name) for name in nodes]
    ordered = [name for _, name in sorted(ranked, key=lambda item: item[0])]
    return [name for name in dict.fromkeys([*beyond, *ordered]) if name in known]


# --- what a check runs ----------------------------------------------------------------------------


class MixedModel:
    """An fp32 ONNX file that can be written with any of its nodes in fp16."""

    def __init__(self, path: Path) -> None:
        """Read it, weights included.

        Raises:
            ArtifactError: it is missing, damaged, no ONNX, or over protobuf's 2 GiB.
            LocalizeError: it has no fp32 node that could be in fp16.
        """
        import onnx

        artifacts.require(path, {"onnx"}, "onnxruntime")
        self.path = path
        try:
            self._model = prepared(onnx.load(str(path)))
        except Exception as error:  # noqa: BLE001 - protobuf's and onnx's own errors
            message = f"{path.name} cannot be rewritten in fp16: {error}"
            raise ArtifactError(message) from None
        self.nodes = convertible(self._model)
        if not self.nodes:
            message = f"{path.name} has no node that computes in fp32 and could in fp16"
            raise LocalizeError(message)

    def modules(self) -> dict[str, str]:
        """Node → PyTorch module path, where the graph says so."""
        from sidecar.validation.align import module_of

        return {
            node.name: module_of({item.key: item.value for item in node.metadata_props})
            for node in self._model.graph.node
        }

    def readers(self, node: str) -> list[str]:
        """The nodes that read what a node makes."""
        nodes = self._model.graph.node
        made = {name for each in nodes if each.name == node for name in each.output if name}
        return [each.name for each in nodes if made & set(each.input)]

    def write(self, kept: frozenset[str], *, emulate: bool = False) -> bytes:
        """The file's bytes, see ``mixed_precision.write_mixed``."""
        data: bytes = write_mixed(self._model, kept, emulate=emulate).SerializeToString()
        return data


class OutputCheck:
    """A ``Check``: writes the mixed graph, loads it, and compares its outputs.

    Attributes:
        expected: the outputs it is held to.
    """

    def __init__(
        self,
        model: MixedModel,
        inputs: Mapping[str, Array],
        build: Callable[[Path], Runtime] | None = None,
        *,
        expected: Mapping[str, Array] | None = None,
        limits: Sequence[Limit] | None = None,
    ) -> None:
        """Prepare the comparison.

        Args:
            model: what is written.
            inputs: one request's.
            build: makes a runtime of a mixed ONNX file: an engine, where there is a GPU. Default:
                ONNX Runtime on the CPU executes the same graph with its fp16 roundings explicit.
            expected: outputs by name; default: those of the fp32 graph on ONNX Runtime.
            limits: default: those of fp16.
        """
        self._model, self._inputs, self._build = model, dict(inputs), build
        self._judge = ValueJudge(default_limits("tensor", "fp16") if limits is None else limits)
        if expected is None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / model.path.name
                path.write_bytes(model.write(frozenset(model.nodes), emulate=True))
                expected = _run(_on_cpu(path), self._inputs)
        self.expected = dict(expected)

    def __call__(self, kept: frozenset[str]) -> bool:
        """Whether every output is within limits with these nodes in fp32."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{self._model.path.stem}.mixed.onnx"
            path.write_bytes(self._model.write(kept, emulate=self._build is None))
            found = _run((self._build or _on_cpu)(path), self._inputs)
        return not any(self._differs(name, found) for name in self.expected)

    def _differs(self, name: str, found: Mapping[str, Array]) -> bool:
        if name not in found or found[name].shape != self.expected[name].shape:
            return True
        return self._judge.differ(self.expected[name], found[name])


def _on_cpu(path: Path) -> Runtime:
    from sidecar.runtimes import build

    return build(_variant(path))


def _variant(path: Path) -> VariantConfig:
    from sidecar.config import VariantConfig

    tree: dict[str, Any] = {
        "name": "mixed",
        "version": "1",
        "roles": ["mirror"],
        "runtime": {
            "kind": "onnxruntime",
            "path": str(path),
            # As written: a fusion would compute the rounded values in one go.
            "graph_optimization": "disabled",
        },
    }
    return VariantConfig.model_validate(tree)


def _run(runtime: Runtime, inputs: Mapping[str, Array]) -> dict[str, Array]:
    try:
        names = [spec.name for spec in runtime.signature.outputs]
        wanted = {spec.name: inputs[spec.name] for spec in runtime.signature.inputs}
        return dict(zip(names, runtime.infer(wanted), strict=True))
    finally:
        runtime.close()
