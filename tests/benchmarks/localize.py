"""Localization of one perturbed layer, against torch's own tool with intermediate values."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from tests.benchmarks.tools import Row

BLOCKS, WIDTH, LAYER = 40, 64, 20


def localization(rounds: int) -> list[Row]:
    """A transformer-like stack of 201 values; one row of one weight is 1.5 times too large.

    Ours starts from the two files and reads them in each round; torch's tool is given the program
    and the graph in memory, once, since it takes minutes. It starts a session for each value.
    """
    from torch.onnx.verification import verify_onnx_program

    from sidecar.validation.localize import localize
    from tests.support.models import variant

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = _export(Path(folder))
        x = np.random.default_rng(0).normal(size=(8, WIDTH)).astype(np.float32)
        reference = variant("pytorch", Path(folder) / "m.pt2")
        candidate = variant("onnxruntime", Path(folder) / "m.onnx")
        ours_s, reading_s = [], []

        def round_of_ours():
            start = time.perf_counter()
            steps = {}

            def note(what, *_):
                steps[what] = time.perf_counter()

            found = localize(reference, candidate, {"x": x}, on_progress=note)
            reading_s.append(steps["reference"] - start)
            ours_s.append(time.perf_counter() - start)
            return found

        # Before and after theirs: the machine may be busier at one end of those minutes.
        for _ in range(max(rounds // 2, 1)):
            round_of_ours()
        theirs_s, values, named = _verify(verify_onnx_program, exported, x)
        for _ in range(max(rounds - rounds // 2, 1)):
            found = round_of_ours()
    first = found.first
    right = first is not None and first.module == f"blocks.{LAYER}.up" and first.value == named
    ours = statistics.median(ours_s)
    detail = f"{ours:.2f} s, {statistics.median(reading_s):.2f} of it reading the files "
    detail += f"({found.aligned} of {found.total} values), against {theirs_s:.0f} s "
    detail += f"({values} values); first: {first.onnx_node if first else 'none'}"
    detail += f", module {first.module}" if first else ""
    ratio = theirs_s / ours
    return [
        Row(
            "localization of a perturbed layer against torch.onnx.verification",
            "≥ 50× faster, right node named",
            f"{ratio:.0f}×, {'right' if right else 'WRONG'} node",
            ratio >= 50 and right and found.aligned >= 100,
            detail,
        )
    ]


def _verify(verify, exported, x) -> tuple[float, int, str]:
    """Seconds, values compared, and the first that torch's own thresholds call different."""
    import torch

    logging.disable(logging.WARNING)
    try:
        start = time.perf_counter()
        infos = verify(exported, (torch.from_numpy(x),), compare_intermediates=True)
        seconds = time.perf_counter() - start
    finally:
        logging.disable(logging.NOTSET)
    off = (info.name for info in infos if info.max_abs_diff > 0.01 or info.max_rel_diff > 0.1)
    return seconds, len(infos), next(off, "")


def _export(folder: Path):
    """Write ``m.pt2`` and ``m.onnx``, the latter perturbed; give what torch's tool takes."""
    import onnx_ir
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)
            self.up = nn.Linear(WIDTH, 2 * WIDTH)
            self.down = nn.Linear(2 * WIDTH, WIDTH)

        def forward(self, x):
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block() for _ in range(BLOCKS)])
            self.head = nn.Linear(WIDTH, 10)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    torch.manual_seed(0)
    shapes = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
    program = torch.export.export(Stack().eval(), (torch.randn(8, WIDTH),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "m.pt2")
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    weight = exported.model.graph.initializers[f"blocks.{LAYER}.up.weight"]
    values = weight.const_value.numpy().copy()
    values[3] *= 1.5
    weight.const_value = onnx_ir.tensor(values)
    exported.save(folder / "m.onnx")
    return exported
