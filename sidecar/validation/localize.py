"""Where two forms of a model first part: by value, node and module.

Three runs, whatever the size of the model: the reference with its values captured; the candidate's
graph with the same values visible; and the candidate's graph with the reference's values forced
into every piece of it (``onnx_capture``). The first and third give each value's local error, the
second and third what it inherited. torch.onnx.verification takes one session and one run a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.clock import Clock, SystemClock
from sidecar.errors import SidecarError
from sidecar.runtimes.failures import client_text
from sidecar.validation.divergence import CAUSES, Divergence, LocalizeError, ValueRow, too_large
from sidecar.validation.onnx_capture import Pieces, forced_values
from sidecar.validation.precision import coarser, infer_precision
from sidecar.validation.sides import Sides, open_sides
from sidecar.validation.value_errors import ValueJudge
from validators.dtypes import dtype_class, widen
from validators.limits import Limit, default_limits

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Array

#: ``on_progress(what, done, of)``.
Progress = Callable[[str, int, int], None]

#: Bound on each side's captured values. Three sides are held at most.
BYTES_MAX = 2 * 2**30

_STEPS = ("reading", "reference", "candidate", "forced", "comparing")


def localize(
    reference: VariantConfig,
    candidate: VariantConfig,
    inputs: Mapping[str, Array],
    *,
    limits: Sequence[Limit] | None = None,
    on_progress: Progress | None = None,
    bytes_max: int = BYTES_MAX,
    clock: Clock | None = None,
) -> Divergence:
    """Find the first value whose own computation differs.

    Both sides run on the CPU, and at least one must be an ONNX graph (kind ``onnxruntime``); the
    other may be an exported PyTorch program (``.pt2``) or a second ONNX graph. Where the reference
    is the ONNX graph and the candidate the program, values are forced into the ONNX graph all the
    same: a local error is a difference, whichever side is called right.

    Args:
        reference, candidate: the variants; their artifacts are read afresh.
        inputs: one request's, as ``Runtime.infer`` takes them; a single row that fails is best,
            since a whole value is judged as one row.
        limits: over metrics of the comparator ``tensor``; default: those of the coarser precision
            of the two. Values that are no floats must be equal.
        on_progress: told of each step.
        bytes_max: bound on the captured values of each side; known beforehand as far as shapes
            can be inferred, and held to while a program runs.
        clock: for ``seconds``.

    Raises:
        LocalizeError: these two cannot be compared so; says why and what to do.
        ArtifactError: an artifact is missing or damaged.
        MissingExtraError: ``torch`` or ``onnx`` is not installed.
    """
    clock = clock or SystemClock()
    started_ns = clock.monotonic_ns()
    tell = on_progress or (lambda *_: None)
    tell(_STEPS[0], 0, len(_STEPS))
    sides = open_sides(reference, candidate, inputs)
    if limits is None:
        precision = coarser(infer_precision(reference)[0], infer_precision(candidate)[0])
        limits = default_limits("tensor", precision)
    judge = ValueJudge(limits)
    aligned = [pair.value for pair in sides.pairs]
    if sides.graph.estimate_bytes(sides.feed, set(aligned)) > bytes_max:
        raise too_large(bytes_max)
    tell(_STEPS[1], 1, len(_STEPS))
    expected = sides.capture(bytes_max)
    tell(_STEPS[2], 2, len(_STEPS))
    free = sides.graph.run(sides.feed, aligned)
    usable, problems = _usable(aligned, expected, free)
    if not usable:
        raise LocalizeError(_nothing(sides, problems))
    forced = forced_values({name: expected[name] for name in usable}, free)
    tell(_STEPS[3], 3, len(_STEPS))
    local = sides.graph.run_forced(sides.feed, forced, list(usable))
    tell(_STEPS[4], 4, len(_STEPS))
    pieces, rows = Pieces(sides.graph.nodes, usable), []
    for pair in sides.pairs:
        row, name = sides.describe(pair, pieces), pair.value
        row.problem = problems.get(name, "")
        if not row.problem:
            judge.fill(row, expected[name], local[name], free[name])
        rows.append(row)
    found = _conclude(sides, rows, judge)
    if found.cause in {"none", "accumulated"}:
        _look_further(found, sides, judge, candidate if sides.forward else reference)
    found.seconds = (clock.monotonic_ns() - started_ns) / 1e9
    tell("done", len(_STEPS), len(_STEPS))
    return found


# --- what can be compared -------------------------------------------------------------------------


def _usable(
    aligned: Sequence[str], expected: Mapping[str, Array], free: Mapping[str, Array]
) -> tuple[dict[str, None], dict[str, str]]:
    """Values that can be compared, and of the others what is wrong."""
    usable: dict[str, None] = {}
    problems: dict[str, str] = {}
    for name in aligned:
        if name not in expected or name not in free:
            problems[name] = "not a tensor of numbers on both sides"
            continue
        ours, theirs = expected[name], free[name]
        classes = (dtype_class(ours.dtype), dtype_class(theirs.dtype))
        if ours.shape != theirs.shape:
            problems[name] = f"shape {list(ours.shape)} in the reference, {list(theirs.shape)} here"
        elif classes[0] != classes[1] or classes[0] not in {"float", "int", "bool"}:
            problems[name] = f"{ours.dtype} in the reference, {theirs.dtype} here"
        elif not ours.size:
            problems[name] = "it is empty on this input"
        else:
            usable[name] = None
    return usable, problems


def _nothing(sides: Sides, problems: Mapping[str, str]) -> str:
    name, problem = next(iter(problems.items()))
    message = f"no value of {sides.graph.name} can be compared: {len(problems)} have the same name "
    return message + f"on both sides but do not fit ({name!r}: {problem})"


# --- the finding ----------------------------------------------------------------------------------


def _conclude(sides: Sides, rows: list[ValueRow], judge: ValueJudge) -> Divergence:
    judged = [row for row in rows if not row.problem]
    first = next((row for row in judged if row.local_out), None)
    outputs = set(sides.graph.outputs)
    differ = any(row.total_out for row in judged if row.value in outputs)
    off = next((row for row in judged if row.total_out), None)
    cause = "local" if first else ("accumulated" if off else "none")
    skipped = [row for row in rows if row.problem]
    if skipped:
        row = skipped[0]
        sides.notes.append(f"{len(skipped)} were not judged ({row.value!r}: {row.problem})")
    text = CAUSES[cause]
    if first is not None:
        text = _sentence(first, differ, judge)
        sides.notes += _weights(sides, first)
    elif off is not None:
        text += f"; the first value out of limits is {off.value!r} (node {off.onnx_node})"
    limits = [str(limit) for limit in judge.limits]
    if cause == "none":
        text += f" ({', '.join(limits)})"
    return Divergence(
        *sides.names, cause, text, len(judged), sides.graph.computed(), 0.0, first, rows, differ,
        limits, sides.notes,
    )  # fmt: skip


def _sentence(row: ValueRow, differ: bool, judge: ValueJudge) -> str:
    where = f"{row.op_type} node {row.onnx_node!r}"
    if row.module:
        where += f" (module {row.module}{', ' + row.source if row.source else ''})"
    if row.metric == "non_finite":
        what = f"gives {row.local_error:.0f} values that are finite on the other side only"
    else:
        limit = next((f" (limit {each})" for each in judge.limits if each.metric == row.metric), "")
        what = f"is out of limits by itself: {row.metric} {row.local_error:.3g}{limit}"
    if row.how == "module":
        what += " (it was aligned by its module alone, and may be another value there)"
    end = "" if differ else "; the model's outputs stay within limits on this input"
    return f"{where} {what}, on the reference's own inputs{end}"


def _weights(sides: Sides, row: ValueRow) -> list[str]:
    """Which weights of the first diverging nodes are not the reference's, where names tell."""
    state = sides.program.state() if sides.program is not None else {}

    def theirs(name: str) -> Array | None:
        if sides.other is not None and name in sides.other.initializers:
            return sides.other.weight(name)
        return state.get(name)

    notes = []
    labels = set(row.nodes)
    names = [name for node in sides.graph.nodes if node.label in labels for name in node.inputs]
    for name in dict.fromkeys(names):
        known = theirs(name) if name in sides.graph.initializers else None
        if known is None:
            continue
        own = sides.graph.weight(name)
        if own.shape != known.shape:
            notes.append(f"weight {name!r} has another shape: {own.shape}, not {known.shape}")
        elif dtype_class(own.dtype) == "float":
            # fp16 makes infinities of large constants: the same one on both sides is no difference.
            with np.errstate(invalid="ignore"):
                delta = widen(own).astype(np.float64) - widen(known).astype(np.float64)
            apart = np.abs(np.nan_to_num(delta, nan=0.0, posinf=np.inf, neginf=-np.inf)).max()
            scale = np.abs(widen(known)).max()
            if apart > 1e-6 * scale:
                notes.append(
                    f"weight {name!r} differs from the reference's by up to {apart:.3g} (its "
                    f"largest is {scale:.3g}); fusing a batch norm into it does that rightly"
                )
    return notes


def _look_further(found: Divergence, sides: Sides, judge: ValueJudge, owner: VariantConfig) -> None:
    """No node is at fault: see whether graph optimizations or decompositions are."""
    from sidecar.runtimes import build as build_runtime

    plain = sides.graph.run(sides.feed, sides.graph.outputs)
    try:
        runtime = build_runtime(owner)
        try:
            names = [spec.name for spec in runtime.signature.outputs]
            served = dict(zip(names, runtime.infer(_only(runtime, sides.feed)), strict=True))
        finally:
            runtime.close()
    except SidecarError as error:
        served = {}
        found.notes.append(f"{owner.key} was not run as configured: {client_text(str(error))}")
    if _differ(judge, plain, served):
        _replace(found, "optimization", "; graph_optimization: disabled shows it right")
        return
    if sides.program is None or sides.saved is None or sides.program is sides.saved:
        return
    before = sides.saved.run(sides.given, sides.saved.outputs, bytes_max=BYTES_MAX)
    after = sides.program.run(sides.given, sides.program.outputs, bytes_max=BYTES_MAX)
    ours = dict(zip(sides.program.outputs, sides.saved.outputs, strict=True))
    if _differ(judge, {name: before[ours[name]] for name in after if ours[name] in before}, after):
        _replace(found, "decomposition", "")


def _only(runtime: Any, feed: Mapping[str, Array]) -> dict[str, Array]:
    return {spec.name: feed[spec.name] for spec in runtime.signature.inputs if spec.name in feed}


def _differ(judge: ValueJudge, one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return any(
        one[name].shape == other[name].shape and judge.differ(one[name], other[name])
        for name in one.keys() & other.keys()
        if dtype_class(one[name].dtype) in {"float", "int", "bool"} and one[name].size
    )


def _replace(found: Divergence, cause: str, more: str) -> None:
    found.cause, found.text, found.outputs_differ = cause, CAUSES[cause] + more, True
