"""Every intermediate value of an ONNX graph in one run, and every node on given inputs in another.

Both are rewritten copies of the graph, in memory. In the first, wanted values are outputs too. In
the second ("forced"), each wanted value is moreover a new input that all its users read instead:
given the reference's values, the graph falls apart into the pieces between them, and one run gives
what each piece makes of right inputs.

ONNX Runtime runs both with its graph optimizations off, so that the values are there to be seen;
what those optimizations change is checked apart (``localize``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.errors import ArtifactError, MissingExtraError
from sidecar.runtimes import artifacts
from sidecar.validation.align import OnnxNode
from sidecar.validation.divergence import LocalizeError

if TYPE_CHECKING:
    from sidecar.config_runtime import OnnxRuntimeConfig
    from sidecar.runtimes.base import Array

_FORCED = "sidecar.forced."
#: Elements of a vector that may be a shape.
_SMALL = 64


class OnnxGraph:
    """An ONNX model whose values can be looked at.

    Attributes:
        name: the file's.
        nodes: of the graph, in its (topological) order.
        inputs, outputs: names, in order; initializers are no inputs.
        initializers: names.
        version: the opset of the standard operators.
    """

    def __init__(self, path: Path, config: OnnxRuntimeConfig | None = None) -> None:
        """Read the graph; weights in files of their own stay there.

        Raises:
            LocalizeError: it is an ORT-format model, which has no graph to rewrite.
            ArtifactError: it is missing, damaged, or no ONNX model.
            MissingExtraError: the package ``onnx`` is not installed.
        """
        if artifacts.sniff(path) == "ort":
            message = f"{path.name} is an ORT-format model, whose graph is fixed; localize with "
            message += "the .onnx file it was made from"
            raise LocalizeError(message)
        artifacts.require(path, {"onnx"}, "onnxruntime")
        try:
            import onnx
        except ModuleNotFoundError:
            message = "localization in an ONNX graph needs the package onnx: install "
            message += "model-sidecar[onnx]"
            raise MissingExtraError(message) from None
        self.name, self._path, self._config = path.name, path, config
        try:
            self._model = onnx.load(str(path), load_external_data=False)
            _load_small(self._model, path.parent)
        except Exception as error:  # noqa: BLE001 - protobuf's own errors
            message = f"{path.name} cannot be read as ONNX: {error}"
            raise ArtifactError(message) from None
        graph = self._model.graph
        self.initializers = {tensor.name for tensor in graph.initializer}
        self.inputs = [item.name for item in graph.input if item.name not in self.initializers]
        self.outputs = [item.name for item in graph.output]
        self.nodes = [_node(index, node) for index, node in enumerate(graph.node)]

    def computed(self) -> int:
        """How many values its nodes compute, constants left out."""
        return sum(
            bool(output)
            for node in self.nodes
            if node.op_type != "Constant"
            for output in node.outputs
        )

    def weight(self, name: str) -> Array:
        """An initializer's values, from wherever they lie."""
        from onnx import numpy_helper

        tensor = next(item for item in self._model.graph.initializer if item.name == name)
        array: Array = numpy_helper.to_array(tensor, base_dir=str(self._path.parent))
        return array

    def estimate_bytes(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> int:
        """How many bytes values take on these inputs, as far as shapes can be inferred."""
        import onnx

        graph = self._model.graph
        # Weights are told by type and shape: inference would copy them several times over.
        large = {item.name: item for item in graph.initializer if sum(item.dims) > _SMALL}
        given = {name: (item.data_type, item.dims) for name, item in large.items()}
        for name, array in self._feed(inputs).items():
            if array.dtype == object:
                return 0  # texts: what comes of them is not known before
            given[name] = (onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        sketch = onnx.helper.make_model(
            onnx.helper.make_graph(
                graph.node,
                graph.name,
                [onnx.helper.make_tensor_value_info(n, *known) for n, known in given.items()],
                [],
                [item for item in graph.initializer if item.name not in large],
            ),
            opset_imports=self._model.opset_import,
            functions=self._model.functions,
            ir_version=self._model.ir_version,
        )
        inferred = onnx.shape_inference.infer_shapes(sketch, data_prop=True)
        total = 0
        for item in inferred.graph.value_info:
            kind = item.type.tensor_type
            if item.name in wanted and kind.elem_type and kind.HasField("shape"):
                # An unknown size reads as 0: such values are left out.
                count = math.prod(size.dim_value for size in kind.shape.dim)
                total += count * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        return total

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Run the graph as it is; gives those of the wanted values that are numeric tensors.

        Raises:
            LocalizeError: ONNX Runtime cannot run it so, or not on this input.
        """
        import onnx

        model = self._copy()
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        return self._run(model, self._feed(inputs), wanted)

    def run_forced(
        self, inputs: Mapping[str, Array], forced: Mapping[str, Array], wanted: Sequence[str]
    ) -> dict[str, Array]:
        """Run every piece of the graph between forced values on those.

        Args:
            inputs: of the graph.
            forced: value name → array of the value's own dtype, read by its users in its stead.
            wanted: names of values to return, as the nodes make them (forced ones included);
                as in ``run``, only numeric tensors come back.

        Raises:
            LocalizeError: ONNX Runtime cannot run it so, or not on these values.
        """
        import onnx

        model = self._copy()
        renamed = {name: _FORCED + name for name in forced}
        rename_inputs(model.graph, renamed)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        for name, array in forced.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(renamed[name], kind, array.shape)
            )
        feed = self._feed(inputs) | {renamed[name]: array for name, array in forced.items()}
        return self._run(model, feed, wanted)

    def _copy(self) -> Any:
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        # What was written about shapes may not fit one row (a fixed batch size); ORT infers anew.
        del model.graph.value_info[:]
        return model

    def _feed(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            message = f"{self.name} takes an input {missing[0]!r}, which is not among those given "
            message += f"({', '.join(sorted(inputs)) or 'none'})"
            raise LocalizeError(message)
        return {name: inputs[name] for name in self.inputs}

    def _run(self, model: Any, feed: dict[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        from sidecar.runtimes import onnxrt  # before the library: it turns off its telemetry
        from sidecar.runtimes.failures import client_text

        import onnxruntime as ort  # isort: skip

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        # Weights beside the model are found from here: the copy has no file.
        folder = str(self._path.parent)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        try:
            for key, value in (self._config.session_options if self._config else {}).items():
                options.add_session_config_entry(key, value)
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            numeric = onnxrt._DATATYPES.keys() - {"tensor(string)"}
            names = [item.name for item in session.get_outputs() if item.type in numeric]
            if any(item.type == "tensor(string)" for item in session.get_inputs()):
                results = session.run(names, feed)
            else:
                values = {name: onnxrt._to_value(array) for name, array in feed.items()}
                found = session.run_with_ort_values(names, values)
                results = [onnxrt._from_value(value) for value in found]
        except Exception as error:  # noqa: BLE001 - ORT raises a dozen types with no common base
            text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", str(error))
            message = f"ONNX Runtime cannot run {self.name} with its values visible: "
            raise LocalizeError(message + client_text(text)) from None
        return dict(zip(names, results, strict=True))


def forced_values(
    reference: Mapping[str, Array], candidate: Mapping[str, Array]
) -> dict[str, Array]:
    """The reference's values in the dtypes in which the candidate's nodes take them.

    Rounding to a narrower type is the candidate's own doing at that value, and is measured there.
    """
    forced = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, array in reference.items():
            forced[name] = np.ascontiguousarray(array).astype(candidate[name].dtype, copy=False)
    return forced


class Pieces:
    """What lies between the aligned values of a graph."""

    def __init__(self, nodes: Sequence[OnnxNode], aligned: Collection[str]) -> None:
        self._makers = {output: node for node in nodes for output in node.outputs if output}
        self._aligned = frozenset(aligned)

    def of(self, value: str) -> list[OnnxNode]:
        """The nodes between a value and the aligned values before it; its own node last."""
        own = self._makers[value]
        found = {own.index: own}
        pending = [own]
        while pending:
            for name in pending.pop().inputs:
                node = self._makers.get(name)
                if node is not None and name not in self._aligned and node.index not in found:
                    found[node.index] = node
                    pending.append(node)
        # Constants only feed a node; they are no computation that could go wrong.
        before = sorted(found.keys() - {own.index})
        return [found[index] for index in before if found[index].op_type != "Constant"] + [own]


def _node(index: int, node: Any) -> OnnxNode:
    return OnnxNode(
        index=index,
        name=node.name,
        op_type=node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}",
        inputs=tuple(dict.fromkeys([*node.input, *outer_inputs(node)])),
        outputs=tuple(node.output),
        metadata={item.key: item.value for item in node.metadata_props},
    )


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs inside a node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _load_small(model: Any, folder: Path) -> None:
    """Load what shape inference wants to read (shapes, axes); it looks in the model alone."""
    from onnx import external_data_helper

    for tensor in model.graph.initializer:
        small = len(tensor.dims) <= 1 and sum(tensor.dims) <= _SMALL
        if small and external_data_helper.uses_external_data(tensor):
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = tensor.DEFAULT
            del tensor.external_data[:]


def outer_inputs(node: Any) -> Iterator[str]:
    """Values that a node's subgraphs (If, Loop, Scan) read from the graph around them."""
    for graph in subgraphs(node):
        own = {item.name for item in (*graph.input, *graph.initializer)}
        own |= {output for inner in graph.node for output in inner.output}
        for inner in graph.node:
            for name in (*inner.input, *outer_inputs(inner)):
                if name and name not in own:
                    yield name


def rename_inputs(graph: Any, renamed: Mapping[str, str]) -> None:
    """Let every node of a graph, and of the graphs inside it, read values under other names."""
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in renamed:
                node.input[position] = renamed[name]
        for inner in subgraphs(node):
            rename_inputs(inner, renamed)
