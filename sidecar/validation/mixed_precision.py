"""An fp32 ONNX graph written with most of its nodes in fp16, and some kept in fp32.

TensorRT takes precision from the graph (11 is strongly typed, 10 is used so here): a node computes
in the type of its inputs, and a Cast stands wherever two nodes disagree. Which nodes can compute in
fp16 at all is read from ONNX's own operator schemas.

The same plan can be written a second way, to be executed on a CPU: every type stays fp32, and what
would be rounded to fp16 is rounded by a pair of Casts. That is needed because ONNX Runtime's CPU
kernels compute runs of fp16 nodes in fp32 and drop the Casts between them: 60,000 × 2 ÷ 2 is
60,000 there, and infinite on a GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from sidecar.validation.onnx_capture import outer_inputs, rename_inputs, subgraphs

_FLOAT, _FLOAT16 = 1, 10  # onnx.TensorProto.DataType
#: Quantized graphs say themselves what is computed how.
_LEFT_ALONE = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant"})
#: They look at a value's shape only, whatever its type.
_ANY_TYPE = frozenset({"Shape", "Size"})


def prepared(model: Any) -> Any:
    """A copy with a name on every node, constants as initializers, and types inferred.

    Args:
        model: an ``onnx.ModelProto`` with its weights in it.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept, taken = [], {node.name for node in graph.node}
    for index, node in enumerate(graph.node):
        value = next((item.t for item in node.attribute if item.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            value.name = node.output[0]
            graph.initializer.append(value)
            continue
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        kept.append(node)
    names = [node.name for node in kept]
    if len(set(names)) < len(names):  # ONNX asks for unique names; not every tool gives them
        for index, node in enumerate(kept):
            node.name = f"{node.name}#{index}" if names.count(node.name) > 1 else node.name
    nodes = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(copy)


def convertible(model: Any) -> list[str]:
    """Names of the nodes that can compute in fp16, in topological order, of a prepared model."""
    return list(_Plan(model).slots)


def write_mixed(model: Any, keep: Collection[str], *, emulate: bool = False) -> Any:
    """Write a prepared fp32 model with all nodes in fp16 that can be, but for ``keep``.

    Inputs and outputs keep their types. Weights beyond fp16's range become infinite, as a
    conversion that does not look makes them: then the node that uses them belongs in ``keep``.

    Args:
        model: as ``prepared`` gives it; it is not written into.
        keep: names of nodes that stay in fp32.
        emulate: write fp32 types and explicit rounding, see above.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ValueError: ``keep`` names a node that the model does not have.
    """
    plan = _Plan(model)
    unknown = sorted(set(keep) - {node.name for node in model.graph.node})
    if unknown:
        message = f"the model has no node {unknown[0]!r}"
        raise ValueError(message)
    return _Writer(model, plan, frozenset(keep), emulate).write()


class _Plan:
    """What can be converted: for each such node, which of its inputs and outputs."""

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.weights = {item.name: item for item in graph.initializer}
        self.types: dict[str, int] = {name: item.data_type for name, item in self.weights.items()}
        for item in (*graph.input, *graph.value_info, *graph.output):
            if item.type.HasField("tensor_type"):
                self.types[item.name] = item.type.tensor_type.elem_type
        versions = {item.domain: item.version for item in model.opset_import}
        self.slots: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        for node in graph.node:
            found = self._slots(node, versions)
            if found is not None:
                self.slots[node.name] = found

    def _slots(
        self, node: Any, versions: Mapping[str, int]
    ) -> tuple[frozenset[int], frozenset[int]] | None:
        """Positions of inputs and outputs that become fp16; ``None``: the node cannot."""
        import onnx

        left_alone = node.op_type in _LEFT_ALONE or any(subgraphs(node))
        known = all(name in self.types for name in (*node.input, *node.output) if name)
        if left_alone or not known or node.domain not in versions:
            return None
        try:
            schema = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
        except onnx.defs.SchemaError:
            return None
        narrow = {
            item.type_param_str
            for item in schema.type_constraints
            if "tensor(float16)" in item.allowed_type_strs
        }

        def chosen(names: Any, parameters: Any) -> Iterator[tuple[int, str]]:
            for index, name in enumerate(names):
                if name and self.types[name] == _FLOAT:
                    yield index, parameters[min(index, len(parameters) - 1)].type_str

        inputs, outputs = (
            [*chosen(node.input, schema.inputs)],
            [*chosen(node.output, schema.outputs)],
        )
        # An output's type must follow from an input's: Cast and its like say theirs themselves.
        following = {kind for _, kind in inputs} & narrow
        if not outputs or not {kind for _, kind in outputs if kind in narrow} <= following:
            return None
        narrowed = frozenset(index for index, kind in outputs if kind in following)
        if not narrowed:
            return None
        return frozenset(index for index, kind in inputs if kind in narrow), narrowed


class _Writer:
    def __init__(self, model: Any, plan: _Plan, keep: frozenset[str], emulate: bool) -> None:
        import onnx

        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._plan, self._keep, self._emulate = plan, keep, emulate
        self._outputs = {item.name for item in model.graph.output}
        self._nodes: list[Any] = []
        self._half: set[str] = set()  # values that fp16 nodes made
        self._made: set[str] = set()  # names of casts and converted weights so far

    def write(self) -> Any:
        graph = self._model.graph
        for source in list(graph.node):
            node = type(source)()
            node.CopyFrom(source)
            half = node.name in self._plan.slots and node.name not in self._keep
            inputs, outputs = self._plan.slots[node.name] if half else (frozenset(), frozenset())
            for index, name in enumerate(node.input):
                if self._plan.types.get(name) == _FLOAT and node.op_type not in _ANY_TYPE:
                    node.input[index] = self._read(name, half=index in inputs)
            outer = {name: self._read(name, half=False) for name in set(outer_inputs(node))}
            for inner in subgraphs(node):
                rename_inputs(inner, outer)
            self._nodes.append(node)
            for index in sorted(outputs):
                self._store(node, index)
        del graph.node[:]
        graph.node.extend(self._nodes)
        del graph.value_info[:]
        self._drop_unused()
        return self._model

    def _read(self, name: str, *, half: bool) -> str:
        """The name under which a value is had in fp16 or fp32; makes it if need be."""
        if half == (name in self._half):
            return name
        if not half:
            if self._emulate or name in self._outputs:
                return name  # it is there in fp32 already
            return self._cast(name, name + ".fp32", _FLOAT)
        made = name + ".fp16"
        if made in self._made:
            return made
        if name in self._plan.weights:
            return self._weight(name, made)
        return self._round(name, made) if self._emulate else self._cast(name, made, _FLOAT16)

    def _store(self, node: Any, index: int) -> None:
        """Take an fp16 node's output in."""
        name = node.output[index]
        if not name:
            return
        if self._emulate:
            node.output[index] = name + ".exact"
            self._round(name + ".exact", name)
        elif name in self._outputs:
            node.output[index] = name + ".fp16"
            self._made.add(name + ".fp16")
            self._cast(name + ".fp16", name, _FLOAT)
            return  # fp16 readers find the other name
        self._half.add(name)

    def _cast(self, name: str, made: str, kind: int) -> str:
        import onnx

        if made not in self._made:
            self._made.add(made)
            self._nodes.append(
                onnx.helper.make_node("Cast", [name], [made], name=f"cast:{made}", to=kind)
            )
        return made

    def _round(self, name: str, made: str) -> str:
        self._cast(name, made + ".rounded", _FLOAT16)
        return self._cast(made + ".rounded", made, _FLOAT)

    def _weight(self, name: str, made: str) -> str:
        from onnx import numpy_helper

        with np.errstate(over="ignore"):
            array = numpy_helper.to_array(self._plan.weights[name]).astype(np.float16)
        if self._emulate:
            array = array.astype(np.float32)
        self._model.graph.initializer.append(numpy_helper.from_array(array, made))
        self._made.add(made)
        return made

    def _drop_unused(self) -> None:
        graph = self._model.graph
        used = {item.name for item in graph.output}
        for node in graph.node:
            used.update(node.input)
            for inner in subgraphs(node):
                used.update(_read_in(inner))
        kept = [item for item in graph.initializer if item.name in used]
        kept = [type(item).FromString(item.SerializeToString()) for item in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _read_in(graph: Any) -> Iterator[str]:
    yield from (item.name for item in graph.output)
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from _read_in(inner)
