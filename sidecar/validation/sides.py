"""The two sides of a localization: an ONNX graph, and what its values are paired with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.validation.align import (
    STACK,
    OnnxNode,
    Pair,
    align_graphs,
    align_program,
    explained,
    module_of,
    source_of,
)
from sidecar.validation.divergence import LocalizeError, ValueRow
from sidecar.validation.onnx_capture import OnnxGraph, Pieces

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Array
    from sidecar.validation.fx_capture import FxProgram

#: The share of a graph's fx texts that must be found in a program as saved; else it is decomposed.
_ENOUGH = 0.9


@dataclass(slots=True)
class Sides:
    """What is compared.

    Attributes:
        names: keys of the reference and the candidate.
        graph: the ONNX graph that values are forced into.
        pairs: its values and theirs, in topological order.
        feed, given: inputs under the names of the graph, and of the other side.
        forward: False when the graph belongs to the variant called reference.
        program: the other side, if it is a program, in the form that was chosen.
        saved: the same as it was saved.
        other: the other side, if it is a graph.
        notes: for the reader of the result.
    """

    names: tuple[str, str]
    graph: OnnxGraph
    pairs: list[Pair]
    feed: Mapping[str, Array]
    given: Mapping[str, Array]
    forward: bool = True
    program: FxProgram | None = None
    saved: FxProgram | None = None
    other: OnnxGraph | None = None
    notes: list[str] = field(default_factory=list)

    def capture(self, bytes_max: int) -> dict[str, Array]:
        """The other side's values, by the names they have in the graph."""
        names = {pair.reference: pair.value for pair in self.pairs}
        if self.program is not None:
            values = self.program.run(self.given, names.keys(), bytes_max=bytes_max)
        else:
            assert self.other is not None
            values = self.other.run(self.given, list(names))
        return {names[name]: array for name, array in values.items()}

    def describe(self, pair: Pair, pieces: Pieces) -> ValueRow:
        """A row with all its names, and nothing measured."""
        parts = pieces.of(pair.value)
        own = parts[-1]
        module, source = "", source_of(own.metadata.get(STACK, ""))
        modules = [module_of(own.metadata)]
        if self.program is not None:
            value = self.program.values[pair.reference]
            module, source = value.module, source or value.source
            modules = [modules[0] or module, *self._owners(parts)]
        elif self.other is not None:
            makers = (node for node in self.other.nodes if pair.reference in node.outputs)
            metadata = next(makers).metadata
            modules = [modules[0] or module_of(metadata)]
            source = source or source_of(metadata.get(STACK, ""))
        return ValueRow(
            value=pair.value,
            reference=pair.reference,
            how=pair.how,
            onnx_node=own.label,
            op_type=own.op_type,
            nodes=[node.label for node in parts],
            module=" + ".join(dict.fromkeys(name for name in modules if name)),
            source=source,
        )

    def _owners(self, parts: Sequence[OnnxNode]) -> list[str]:
        """Modules whose weights these nodes use: a batch norm folded into a convolution, say."""
        assert self.program is not None
        modules = {value.module for value in self.program.values.values()}
        owners = []
        for node in parts:
            for name in node.inputs:
                owner = name.rpartition(".")[0]
                if name in self.graph.initializers and owner in modules:
                    owners.append(owner)
        return owners


def open_sides(
    reference: VariantConfig, candidate: VariantConfig, inputs: Mapping[str, Array]
) -> Sides:
    """Read both artifacts and pair their values.

    Raises:
        LocalizeError: these two cannot be compared value by value.
        ArtifactError: an artifact is missing or damaged.
    """
    kinds = (reference.runtime.kind, candidate.runtime.kind)
    for variant in (reference, candidate):
        if variant.runtime.kind not in {"pytorch", "onnxruntime"}:
            raise LocalizeError(_unsupported(variant))
    if "onnxruntime" not in kinds:
        message = f"{reference.key} and {candidate.key} are both PyTorch programs; localization "
        message += "needs an ONNX graph (kind: onnxruntime) on one side"
        raise LocalizeError(message)
    names = (reference.key, candidate.key)
    forward = kinds[1] == "onnxruntime"
    owner, other = (candidate, reference) if forward else (reference, candidate)
    graph = OnnxGraph(owner.runtime.path, owner.runtime)  # type: ignore[union-attr, arg-type]
    notes = ["both sides were run on the CPU, ONNX Runtime without graph optimizations"]
    if other.runtime.kind == "onnxruntime":
        against = OnnxGraph(other.runtime.path, other.runtime)
        pairs = align_graphs(against.nodes, graph.nodes)
        if not pairs:
            message = f"{graph.name} and {against.name} share no name of a value: nothing can be "
            message += "aligned. Make one from the other with a tool that keeps names (ONNX "
            message += "Runtime's quantizer does), or localize each against the PyTorch program"
            raise LocalizeError(message)
        feed, given = (_fit(side.inputs, inputs, side.name, notes) for side in (graph, against))
        return Sides(names, graph, pairs, feed, given, other=against, notes=notes)
    from sidecar.validation.fx_capture import load_program

    saved = load_program(other.runtime.path)  # type: ignore[union-attr]
    program, pairs = _best_form(saved, graph, notes)
    feed = _fit(graph.inputs, inputs, graph.name, notes)
    given = _fit(program.inputs, inputs, program.name, notes)
    return Sides(names, graph, pairs, feed, given, forward, program, saved, None, notes)


def _unsupported(variant: VariantConfig) -> str:
    kind = variant.runtime.kind
    message = f"{variant.key} is of kind {kind}, whose values cannot be seen one by one"
    if kind.startswith("tensorrt"):
        message += ": making them outputs would change the engine. With --localize its .onnx file "
        message += "is looked at, and what must stay in fp32 (trt_cause.explain_engine)"
    else:
        message += "; localize with the model's own .pt2 or .onnx file"
    return message


def _best_form(
    saved: FxProgram, graph: OnnxGraph, notes: list[str]
) -> tuple[FxProgram, list[Pair]]:
    """The form of the program, as saved or decomposed, in which more of the graph is found."""
    pairs = align_program(graph.nodes, graph.outputs, saved.values, saved.outputs)
    chosen = saved
    # Decomposing takes seconds, and most values are found without it.
    enough = explained(graph.nodes, saved.values) >= _ENOUGH
    if not enough and (prepared := saved.decomposed()) is not None:
        more = align_program(graph.nodes, graph.outputs, prepared.values, prepared.outputs)
        if len(more) > len(pairs):
            chosen, pairs = prepared, more
    if not pairs:
        message = f"no value of {graph.name} can be found in {saved.name}: their nodes have no "
        message += "names in common, and the graph says nothing of its modules. Export it from "
        message += "this program: torch.onnx.export(torch.export.load(...), dynamo=True)"
        raise LocalizeError(message)
    counts = {how: sum(pair.how == how for pair in pairs) for pair in pairs for how in [pair.how]}
    told = ", ".join(f"{count} by {how}" for how, count in counts.items())
    notes.append(f"aligned: {told}")
    return chosen, pairs


def _fit(
    names: Sequence[str], inputs: Mapping[str, Array], artifact: str, notes: list[str]
) -> Mapping[str, Array]:
    """Inputs under the names an artifact gives them: by name, else by position."""
    if all(name in inputs for name in names) or len(names) != len(inputs):
        return inputs
    notes.append(f"inputs of {artifact} were taken by position: {', '.join(names)}")
    return dict(zip(names, inputs.values(), strict=True))
