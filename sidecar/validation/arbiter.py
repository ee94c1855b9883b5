"""The reference in float64: how far its own precision is from the truth.

PyTorch's benchmark checks do the same: a difference that fp32 itself shows against float64 is not
the fault of another fp32. Only exported programs (``.pt2``) can be cast as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.errors import RequestError
from sidecar.runtimes import artifacts
from sidecar.runtimes.failures import client_text
from sidecar.validation.compare_sets import Policies, compare_rows
from sidecar.validation.layout import Caller, RaggedError, Rows, pick, rows_in
from sidecar.validation.tally import Tally

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Array

#: Rows it is asked about.
ROWS_MAX = 256


def measure(
    reference: VariantConfig, caller: Caller, rows: Rows, policies: Policies
) -> tuple[Tally | None, str]:
    """Compare the reference with itself in float64, on the CPU.

    Args:
        reference: its configuration.
        caller: its copy.
        rows: the first of them are used.
        policies: of its outputs.

    Returns:
        What was measured, or ``None`` and the reason.
    """
    what = f"no float64 arbiter: {reference.key} "
    if reference.runtime.kind != "pytorch":
        return None, f"{what}is of kind {reference.runtime.kind}; an exported program is needed"
    if artifacts.sniff(reference.runtime.path) != "torch_exported":
        return None, f"{what}is no exported program (.pt2)"
    some = pick(rows, 0, min(rows_in(rows), ROWS_MAX))
    try:
        truth = caller.run(some, caller.largest)
        exact = _Double(reference, caller).run(some)
    except (RequestError, RaggedError) as error:
        return None, f"{what}fails: {error}"
    except Exception as error:  # noqa: BLE001 - a graph with float32 written into it may do anything
        return None, f"{what}cannot compute in float64: {client_text(str(error))}"
    same = {name: array for name, array in truth.items() if name in exact}
    chosen = {name: policy for name, policy in policies.items() if name in exact}
    if not same:
        return None, f"{what}gives no float64, although it was cast"
    tally = Tally(chosen)
    tally.add(compare_rows(exact, same, chosen), rows_in(some))
    return tally, ""


class _Double:
    """An exported program, cast to float64."""

    def __init__(self, reference: VariantConfig, caller: Caller) -> None:
        import torch

        from sidecar.runtimes import torch_exported

        assert reference.runtime.kind == "pytorch"
        exported = torch.export.load(reference.runtime.path)
        _, constants, _ = torch_exported._exported_inputs("", exported)
        _, positions, _ = torch_exported._exported_outputs("", exported)
        module = exported.module().double()
        module.graph.set_codegen(torch.fx.graph.CodeGen())
        module.recompile()
        self._torch = torch
        self._run = torch_exported._flat_runner(module, constants, positions)
        self._signature, self._batched = caller.runtime.signature, caller.layout.batched

    def run(self, rows: Rows) -> Rows:
        """Outputs that are float64; others are left out (a class, or a cast in the graph)."""
        if not self._batched:
            pieces = [self._call(pick(rows, at, at + 1)) for at in range(rows_in(rows))]
            names = pieces[0].keys()
            return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
        return self._call(rows)

    def _call(self, rows: Rows) -> Rows:
        given = rows if self._batched else {name: array[0] for name, array in rows.items()}
        tensors = [self._tensor(given[spec.name]) for spec in self._signature.inputs]
        with self._torch.inference_mode():
            found = self._run(tensors)
        names = [spec.name for spec in self._signature.outputs]
        arrays: dict[str, Array] = {
            name: tensor.numpy()
            for name, tensor in zip(names, found, strict=True)
            if tensor.dtype == self._torch.float64
        }
        return arrays if self._batched else {name: a[np.newaxis] for name, a in arrays.items()}

    def _tensor(self, array: Array) -> Any:
        wide = array.astype(np.float64) if array.dtype.kind not in "iub" else array.copy()
        return self._torch.from_numpy(np.ascontiguousarray(wide))
