"""Which value of a PyTorch program is which value of an ONNX graph.

``torch.onnx.export(dynamo=True)`` names ONNX values after fx nodes and writes each node's fx text
(operator and arguments) into its metadata. A name alone proves nothing: ``view_1`` of the program
as saved and ``view_1`` after the exporter's decompositions can be two different values. So a name
counts when the fx text behind it is the same on both sides. What a name cannot give (a fused node,
a renamed output, a graph of the older exporter) is looked for by module, operator and position
within the module, and taken only where both sides have equally many.

Nothing here needs torch or onnx: both sides are described by plain values.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_USERS = re.compile(r"\[num_users=\d+\] ")
_TEXT = re.compile(r"%(?P<name>[\w.]+) : .*?= (?P<body>\w+\[target=.*)", re.DOTALL)
_REFERENCE = re.compile(r"%([\w.]+)")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n\s+(?P<code>.*))?')

#: Metadata keys that PyTorch's exporter writes on each node.
FX_TEXT = "pkg.torch.onnx.fx_node"
SCOPES = "pkg.torch.onnx.name_scopes"
STACK = "pkg.torch.onnx.stack_trace"


@dataclass(frozen=True, slots=True)
class FxValue:
    """One node of an exported program.

    Attributes:
        name: the fx node's.
        body: its operator and arguments as fx prints them (``parse_text``).
        module: path of the module that called it (``blocks.0.conv``).
        source: line of the model's code.
        shape: -1 where any size is allowed; ``None`` when it gives no tensor (a tuple, a size):
            then it is known only to verify others by.
    """

    name: str
    body: str
    module: str
    source: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node of an ONNX graph.

    Attributes:
        index: its position in the graph (topological, as ONNX demands).
        name, op_type, inputs, outputs: as in the file; subgraphs' outer inputs are among
            ``inputs``.
        metadata: its ``metadata_props``.
    """

    index: int
    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name, or what stands for one."""
        return self.name or f"{self.op_type}:{next(filter(None, self.outputs), '')}"


@dataclass(frozen=True, slots=True)
class Pair:
    """A value known on both sides.

    Attributes:
        value: the ONNX graph's name.
        reference: the other side's name.
        how: ``"name"`` (the same name, computed by the same text), ``"structure"`` (the same
            computation under another name), ``"output"`` (an output, by position), ``"module"``
            (the last value of a module), ``"same name"`` (two ONNX graphs, or no metadata to
            verify it by).
    """

    value: str
    reference: str
    how: str


def parse_text(text: str) -> tuple[str, str]:
    """(fx node name, operator with its arguments) of an fx text; empty strings if it is none.

    How often the node's value is used is left out: graph passes change that.
    """
    found = _TEXT.match(_USERS.sub("", text).strip())
    return (found["name"], found["body"]) if found else ("", "")


def module_of(metadata: Mapping[str, str]) -> str:
    """The module path in an ONNX node's metadata; ``""`` if there is none."""
    try:
        scopes = ast.literal_eval(metadata.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    # The last scope is the fx node itself; the first is the whole model, called "".
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) >= 2 else ""


def source_of(stack: str) -> str:
    """``file.py:14: code`` of the innermost line that is not PyTorch's own; ``""`` if none."""
    chosen = ""
    for frame in _FRAME.finditer(stack):
        parts = re.split(r"[/\\]", frame["file"])
        if "torch" in parts[:-1] and ("site-packages" in parts or "nn" in parts):
            continue
        chosen = f"{parts[-1]}:{frame['line']}"
        if frame["code"]:
            chosen += f": {frame['code'].strip()}"
    return chosen


def align_program(
    nodes: Sequence[OnnxNode],
    graph_outputs: Sequence[str],
    values: Mapping[str, FxValue],
    program_outputs: Sequence[str],
) -> list[Pair]:
    """Pair an ONNX graph's values with a program's.

    Args:
        nodes: of the graph, in topological order.
        graph_outputs: its outputs' names, in order.
        values: the program's nodes by name, in its order, placeholders left out.
        program_outputs: names of its tensor outputs, in order.

    Returns:
        In the graph's topological order; every name at most once on each side.
    """
    pairs = _Pairs(values)
    matches = match_texts(nodes, values)
    _by_name(nodes, values, matches, pairs)
    made = {output for node in nodes for output in node.outputs}
    if len(graph_outputs) == len(program_outputs):
        for value, reference in zip(graph_outputs, program_outputs, strict=True):
            if value in made:
                pairs.take(value, reference, "output")
    for value, name in _renamed(nodes, graph_outputs):
        if name in matches:
            pairs.take(value, matches[name], "structure")
    if not matches:
        for value, reference in _by_path(nodes, values):
            pairs.take(value, reference, "module")
    found = pairs.found
    return [found[output] for node in nodes for output in node.outputs if output in found]


def explained(nodes: Sequence[OnnxNode], values: Mapping[str, FxValue]) -> float:
    """The share of a graph's fx texts that are found in a program; 0 when it has none."""
    texts = {parse_text(node.metadata.get(FX_TEXT, ""))[0] for node in nodes} - {""}
    return len(texts & match_texts(nodes, values).keys()) / len(texts) if texts else 0.0


class _Pairs:
    """Pairs taken so far: each name once, and tensors only."""

    def __init__(self, values: Mapping[str, FxValue]) -> None:
        self.found: dict[str, Pair] = {}
        self._free = {name for name, value in values.items() if value.shape is not None}

    def take(self, value: str, reference: str, how: str) -> None:
        if value not in self.found and reference in self._free:
            self.found[value] = Pair(value, reference, how)
            self._free.discard(reference)


def _by_name(
    nodes: Sequence[OnnxNode],
    values: Mapping[str, FxValue],
    matches: Mapping[str, str],
    pairs: _Pairs,
) -> None:
    for node in nodes:
        text = parse_text(node.metadata.get(FX_TEXT, ""))
        for output in node.outputs:
            if output in matches:
                same = output in values and text == (output, values[output].body)
                pairs.take(output, matches[output], "name" if same else "structure")
            elif output in values and not text[0]:
                pairs.take(output, output, "same name")


def _renamed(nodes: Sequence[OnnxNode], graph_outputs: Sequence[str]) -> Iterable[tuple[str, str]]:
    """(value, fx name): of all nodes made from one fx node, the one value that leaves them."""
    groups: dict[str, list[OnnxNode]] = defaultdict(list)
    users: dict[str, set[int]] = defaultdict(set)
    for node in nodes:
        groups[parse_text(node.metadata.get(FX_TEXT, ""))[0]].append(node)
        for value in node.inputs:
            users[value].add(node.index)
    groups.pop("", None)
    for name, group in groups.items():
        inside = {node.index for node in group}
        leaving = [
            output
            for node in group
            for output in node.outputs
            if output and (output in graph_outputs or users[output] - inside)
        ]
        if len(leaving) == 1:
            yield leaving[0], name


# --- by what is computed --------------------------------------------------------------------------


def match_texts(nodes: Sequence[OnnxNode], values: Mapping[str, FxValue]) -> dict[str, str]:
    """The program's name of each fx name that an ONNX graph's metadata speaks of.

    The texts are gone through in order. A text whose arguments are known is the program's node
    with the same operator and arguments. Where an argument is not known (its node was fused or
    decomposed away), the text is the program's node of the same module and form, if both sides
    have equally many such; and its arguments are then known too.
    """
    texts: dict[str, tuple[str, str]] = {}
    for node in nodes:
        name, body = parse_text(node.metadata.get(FX_TEXT, ""))
        if name and name not in texts:
            texts[name] = (body, module_of(node.metadata))
    matcher = _Matcher(texts, values)
    outputs = {parse_text(node.metadata.get(FX_TEXT, ""))[0]: node.outputs for node in nodes}
    for name in texts:
        matcher.match(name, outputs[name])
    return matcher.known


def _arguments(body: str) -> list[str]:
    return _REFERENCE.findall(body)


class _Matcher:
    """What ``match_texts`` knows so far."""

    def __init__(self, texts: Mapping[str, tuple[str, str]], values: Mapping[str, FxValue]) -> None:
        self.known: dict[str, str] = {}  # fx name in the ONNX graph → name in the program
        self._texts, self._values = texts, values
        self._taken: set[str] = set()
        self._by_body: dict[str, list[str]] = defaultdict(list)
        self._by_form: dict[tuple[str, str], list[str]] = defaultdict(list)
        # What is no node of the program (a weight, an input) has one name for both sides.
        arguments = {name for value in values.values() for name in _arguments(value.body)}
        self._fixed = arguments - values.keys()
        for value in values.values():
            self._by_body[value.body].append(value.name)
            self._by_form[value.module, self._form(value.body)].append(value.name)
        self._numbers: dict[str, int] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        for name, (body, module) in texts.items():
            key = (module, self._form(body))
            self._numbers[name] = self._counts[key]
            self._counts[key] += 1

    def _form(self, body: str) -> str:
        return _REFERENCE.sub(lambda match: match[0] if match[1] in self._fixed else "%", body)

    def match(self, name: str, outputs: Sequence[str]) -> None:
        """Find the program's node for one text; ``outputs`` are its ONNX node's."""
        found = self._exact(name) or self._alike(name)
        if not found:
            return
        self._bind(name, found)
        for mine, theirs in zip(
            _arguments(self._texts[name][0]),
            _arguments(self._values[found].body),
            strict=False,
        ):
            if mine not in self.known and theirs in self._values:
                self._bind(mine, theirs)
        if self._values[found].shape is None:  # a tuple: its elements are the node's outputs
            for index, output in enumerate(outputs):
                body = f"call_function[target=operator.getitem](args = (%{found}, {index}), "
                element = self._by_body.get(body + "kwargs = {})")
                if output and element and output not in self.known:
                    self._bind(output, element[0])

    def _bind(self, name: str, found: str) -> None:
        if found not in self._taken:
            self.known[name] = found
            self._taken.add(found)

    def _exact(self, name: str) -> str:
        body, module = self._texts[name]
        same = _REFERENCE.sub(lambda match: "%" + self.known.get(match[1], match[1]), body)
        free = [item for item in self._by_body.get(same, ()) if item not in self._taken]
        # An argument that nothing was found for may by chance be called like something else.
        assumed = any(item not in self.known and item in self._values for item in _arguments(body))
        if assumed:
            free = [item for item in free if self._values[item].module == module]
        if name in free:
            return name
        return next((item for item in free if self._values[item].module == module), "")

    def _alike(self, name: str) -> str:
        body, module = self._texts[name]
        key = (module, self._form(body))
        same = self._by_form.get(key, [])
        if len(same) != self._counts[key]:
            return ""
        found = same[self._numbers[name]]
        return "" if found in self._taken else found


def _by_path(nodes: Sequence[OnnxNode], values: Mapping[str, FxValue]) -> Iterable[tuple[str, str]]:
    """For the older (TorchScript) exporter: node names are module paths (``/blocks.0/conv/Conv``).

    A module's value is that of the last node in it; only modules called once can be told.
    """
    path = re.compile(r"^/(?P<path>.+)/(?P<op>\w+?)(_\d+)?$")
    theirs: dict[str, str] = {}
    for node in nodes:
        match, outputs = path.match(node.name), [value for value in node.outputs if value]
        if match and len(outputs) == 1:
            parts = match["path"].split("/")
            # /blocks/blocks.0/conv: each part that extends the one before replaces it.
            kept: list[str] = []
            for part in parts:
                if kept and part.startswith(f"{kept[-1]}."):
                    kept[-1] = part
                else:
                    kept.append(part)
            theirs[".".join(kept)] = outputs[0]
    ours: dict[str, str] = {}
    entered: Counter[str] = Counter()
    before = ""
    for item in values.values():
        if item.shape is None:
            continue
        if item.module != before:
            entered[item.module] += 1
            before = item.module
        ours[item.module] = item.name
    for module, value in theirs.items():
        if module and entered[module] == 1:
            yield value, ours[module]


def align_graphs(reference: Sequence[OnnxNode], candidate: Sequence[OnnxNode]) -> list[Pair]:
    """Pair the values of two ONNX graphs by name, in the candidate's topological order.

    Quantizers and precision converters keep the names of the values they work on and give their
    own (``…_QuantizeLinear_Output``) to what they add.
    """
    known = {output for node in reference for output in node.outputs if output}
    return [
        Pair(output, output, "same name")
        for node in candidate
        for output in node.outputs
        if output in known
    ]
