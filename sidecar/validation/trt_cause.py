"""Why a TensorRT engine differs: its ONNX file, or nodes that must not be in fp16.

An engine's values cannot be looked at (docs/localize.md). What was built from is: the ONNX file is
localized on ONNX Runtime; and of a model in fp16 engines are built with some nodes in fp32, until
it is known which are needed. So this takes a GPU, which whoever compared an engine has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.clock import Clock
from sidecar.errors import SidecarError
from sidecar.runtimes import artifacts
from sidecar.validation.divergence import CAUSES, Divergence, LocalizeError
from sidecar.validation.localize import localize
from sidecar.validation.precision import infer_precision
from sidecar.validation.trt_bisect import Bisection, MixedModel, find_fp32_nodes

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Array, Runtime
    from sidecar.validation.plan import Plan

#: Engines that may be built; each takes seconds to minutes.
ENGINES_MAX = 40
#: Nodes that are named in the sentence; all of them are in ``notes``.
_NAMED = 8


def explain_engine(
    plan: Plan,
    candidate: VariantConfig,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    *,
    load: Callable[[VariantConfig], Runtime],
    clock: Clock,
) -> Divergence:
    """Find out why an engine disagrees on one request.

    Args:
        plan: the run.
        candidate: of kind ``tensorrt`` or ``tensorrt_rtx``.
        inputs: the request.
        expected: the reference's answer.
        load: loads a variant.
        clock: for ``seconds``.

    Raises:
        LocalizeError: neither can be done with what there is; says what it takes.
        SidecarError: an engine cannot be built.
    """
    notes: list[str] = []
    if infer_precision(candidate)[0] in {"fp16", "bf16"}:
        try:
            return _by_precision(plan, candidate, inputs, expected, load=load, clock=clock)
        except LocalizeError as error:
            notes.append(f"which nodes must stay in fp32 is not known: {error}")
    try:
        found = localize(plan.reference, _as_onnx(candidate), inputs, clock=clock)
    except SidecarError as error:
        raise LocalizeError("; ".join([*notes, str(error)])) from None
    if found.cause == "none":
        found.text = (
            f"{_name(candidate)} is right on ONNX Runtime: what differs is made by TensorRT"
        )
        found.text += " (`tf32`, or its choice of kernels)"
    found.notes += [*notes, f"an engine's values cannot be seen: {_name(candidate)} was localized"]
    return found


def _by_precision(
    plan: Plan,
    candidate: VariantConfig,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    *,
    load: Callable[[VariantConfig], Runtime],
    clock: Clock,
) -> Divergence:
    started_ns = clock.monotonic_ns()
    path = fp32_graph(plan, candidate)

    def build(graph: Path) -> Runtime:
        return load(_with_path(candidate, graph))

    found = find_fp32_nodes(path, inputs, build=build, expected=expected, budget=ENGINES_MAX)
    seconds = (clock.monotonic_ns() - started_ns) / 1e9
    keys = (plan.reference.key, candidate.key)
    text = _sentence(found, MixedModel(path).modules(), path.name)
    notes = [*found.steps, *(f"fp32: {name}" for name in found.kept)]
    return Divergence(*keys, "precision", text, 0, found.of, seconds, notes=notes)


def fp32_graph(plan: Plan, candidate: VariantConfig) -> Path:
    """The ONNX file of the candidate's version that is in fp32: its own, the reference's, another.

    Raises:
        LocalizeError: there is none.
    """
    others = [one for one in plan.model.variants if one.version == candidate.version]
    for variant in (candidate, plan.reference, *others):
        path: Path | None = getattr(variant.runtime, "path", None)
        if path is None or artifacts.sniff(path) != "onnx":
            continue
        if infer_precision(variant.model_copy(update={"precision": None}))[0] == "fp32":
            return path
    message = f"no variant of version {candidate.version} has its ONNX file in fp32, from which "
    message += "engines with some nodes in fp32 could be built; add one (kind: onnxruntime, role: "
    raise LocalizeError(message + "mirror)")


def _as_onnx(candidate: VariantConfig) -> VariantConfig:
    from sidecar.config import VariantConfig

    path: Path = candidate.runtime.path  # type: ignore[union-attr]
    if artifacts.sniff(path) != "onnx":
        message = f"{path.name} is an engine, whose values cannot be seen; give the variant the "
        raise LocalizeError(message + ".onnx file that it was built from")
    tree: dict[str, Any] = candidate.model_dump(mode="json", exclude_defaults=True)
    tree["runtime"] = {"kind": "onnxruntime", "path": str(path)}
    return VariantConfig.model_validate(tree)


def _with_path(candidate: VariantConfig, path: Path) -> VariantConfig:
    # The engine is kept beside the graph, in a folder that goes with it.
    runtime = candidate.runtime.model_copy(update={"path": path, "cache_dir": None})
    return candidate.model_copy(update={"runtime": runtime})


def _name(candidate: VariantConfig) -> str:
    return str(candidate.runtime.path.name)  # type: ignore[union-attr]


def _sentence(found: Bisection, modules: Mapping[str, str], name: str) -> str:
    engines = f"{found.checks} engines were built"
    if not found.kept:
        return f"{name} with every node in fp16 is right on this input ({engines})"
    named = [f"{node} ({modules[node]})" if modules.get(node) else node for node in found.kept]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    end = "; fewer may do" if found.exhausted else ""
    return (
        f"{CAUSES['precision']}: with {len(named)} of {found.of} in fp32 TensorRT is right: "
        f"{', '.join(named[:_NAMED])}{more} ({engines}{end})"
    )
