"""From trained models to the artifacts a sidecar serves, kept so that a second run starts at once.

Three formats a version: ``.pt2`` (an exported program), ONNX in fp32, and ONNX in int8 (static
quantization, calibrated on training digits). All three take ``image`` FP32 ``[-1, 1, 8, 8]`` and
give ``scores`` FP32 ``[-1, 10]``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sidecar.clock import SystemClock
from sidecar.demo import train as training
from sidecar.demo.train import Split
from sidecar.errors import MissingExtraError
from sidecar.runtimes.base import Array

if TYPE_CHECKING:
    from torch import nn

INPUT, OUTPUT = "image", "scores"
VERSIONS = tuple(recipe.version for recipe in training.RECIPES)
#: Format → how its file ends.
FORMATS = {"onnx": ".onnx", "int8": ".int8.onnx", "pt2": ".pt2"}
#: The newest version converted by somebody who lost its first step, the division of the pixels.
#: It still reads most digits right, which is how such a conversion gets into production.
BROKEN_FILE = f"digits-{VERSIONS[-1]}.broken.onnx"
#: What is rolled out, and taken back.
WORSE_FILE = f"digits-{training.WORSE.version}.onnx"
HOLD_OUT_FILE = "holdout.npz"
#: The same digits under the model's own names: what `sidecar validate` takes.
LABELLED_FILE, LABEL = "labelled.npz", "label"
RECORD_FILE = "trained.json"
_CALIBRATION_BATCH = 64

#: Module → what to install for it.
NEEDED = {
    "torch": "torch",
    "sklearn": "scikit-learn",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What lies in the output folder.

    Attributes:
        hold_out: digits that no version was trained on, nor calibrated with.
        cached: nothing had to be trained.
        seconds: how long it took to train, export, or look.
    """

    hold_out: Split
    cached: bool
    seconds: float


def file_name(version: str, form: str) -> str:
    """Return the name of one artifact (``digits-2.int8.onnx``)."""
    return f"digits-{version}{FORMATS[form]}"


def check_installed(needed: Mapping[str, str] = NEEDED) -> None:
    """Refuse in one line when a package the demo needs is missing.

    Raises:
        MissingExtraError: names what is missing, and the extra that brings it.
    """
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        message = f"the demo trains its models and needs {', '.join(missing)}: "
        message += "pip install 'model-sidecar[demo]'"
        raise MissingExtraError(message)


def prepare(output: Path, say: Say) -> Prepared:
    """Make the artifacts in ``output`` (an existing folder), or find them as an earlier run left
    them.

    Args:
        output: gets ``digits-*.{onnx,int8.onnx,pt2}``, ``holdout.npz`` and ``trained.json``.
        say: told in one line what is going on.

    Raises:
        MissingExtraError: a package is not installed.
    """
    check_installed()
    clock = SystemClock()
    start_ns = clock.monotonic_ns()
    key = cache_key()
    cached = _is_kept(output, key)
    if cached:
        say(f"models: kept from an earlier run ({output}); delete {RECORD_FILE} to train again")
    else:
        _make(output, key, say)
    with np.load(output / HOLD_OUT_FILE) as arrays:
        hold_out = Split(arrays["images"], arrays["labels"])
    return Prepared(hold_out, cached, (clock.monotonic_ns() - start_ns) / 1e9)


def cache_key() -> str:
    """Return a SHA-256 (hex) over the code that makes the artifacts and the packages it uses."""
    digest = hashlib.sha256()
    for source in (training.__file__, __file__):
        digest.update(Path(source).read_bytes())
    for package in sorted({*NEEDED.values(), "numpy", "onnxruntime"}):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "another distribution"  # onnxruntime comes under several names
        digest.update(f"{package}=={version}\n".encode())
    return digest.hexdigest()


def _artifacts() -> list[str]:
    models = [file_name(version, form) for version in VERSIONS for form in FORMATS]
    return [*models, BROKEN_FILE, WORSE_FILE, HOLD_OUT_FILE, LABELLED_FILE]


def _is_kept(output: Path, key: str) -> bool:
    """True when the record fits the code and every file is as the record says."""
    try:
        record = json.loads((output / RECORD_FILE).read_text(encoding="utf-8"))
        files: dict[str, str] = record["files"] if record["key"] == key else {}
        return set(files) == set(_artifacts()) and all(
            _sha256(output / name) == expected for name, expected in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no record, or one that something else wrote: train


def _make(output: Path, key: str, say: Say) -> None:
    (output / RECORD_FILE).unlink(missing_ok=True)
    say("models: loading torch and the digits")
    train_digits, hold_out = training.load_digits()
    weights: dict[str, str] = {}
    for recipe in training.RECIPES:
        say(
            f"models: training version {recipe.version} "
            f"({recipe.epochs} epochs over {len(train_digits.labels)} digits)"
        )
        model = training.train(recipe, train_digits)
        weights[recipe.version] = training.weights_hash(model)
        say(f"models: exporting version {recipe.version} as .pt2, ONNX and int8 ONNX")
        export_all(model, recipe.version, train_digits.images, output)
    say("models: and one conversion that is broken on purpose")
    break_conversion(output / file_name(VERSIONS[-1], "onnx"), output / BROKEN_FILE)
    say(f"models: and version {training.WORSE.version}, trained on wrong labels for one digit")
    worse = training.train(training.WORSE, train_digits)
    weights[training.WORSE.version] = training.weights_hash(worse)
    with _quiet():
        _export_onnx(worse, output / WORSE_FILE)
    np.savez(output / HOLD_OUT_FILE, images=hold_out.images, labels=hold_out.labels)
    np.savez(output / LABELLED_FILE, image=hold_out.images, label=hold_out.labels)
    files = {name: _sha256(output / name) for name in _artifacts()}
    record = {"key": key, "weights_sha256": weights, "files": files}
    # Last, so that an interrupted run never leaves a record of files it did not finish.
    text = json.dumps(record, indent=2) + "\n"
    (output / RECORD_FILE).write_text(text, encoding="utf-8")


def export_all(model: nn.Module, version: str, calibration: Array, output: Path) -> None:
    """Write one version in every format.

    Args:
        model: in eval mode.
        calibration: float32 ``[n, 1, 8, 8]``; training digits, never held-out ones.
        output: an existing folder.
    """
    onnx_path = output / file_name(version, "onnx")
    with _quiet():
        _export_torch(model, output / file_name(version, "pt2"))
        _export_onnx(model, onnx_path)
        _quantize(onnx_path, calibration, output / file_name(version, "int8"))


def _export_torch(model: nn.Module, path: Path) -> None:
    import torch

    # Two rows in the example: torch.export would take a batch of one as a constant.
    example = torch.zeros(2, 1, 8, 8)
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), path)


def _export_onnx(model: nn.Module, path: Path) -> None:
    import torch

    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: {0: "batch"}},
    )
    # One file: weights beside the model (the default above a size) are easily left behind.
    program.save(path, external_data=False)


def break_conversion(source: Path, target: Path) -> None:
    """Write an ONNX model of ``export_all`` again, with its normalization constant turned to 1.

    Raises:
        ValueError: the graph does not begin by dividing by ``PIXEL_MAX``.
    """
    import onnx

    model = onnx.load(source)
    first = model.graph.node[0]
    constants = {item.name: item for item in model.graph.initializer}
    divisor = constants.get(first.input[-1])
    if first.op_type != "Div" or divisor is None:
        message = f"{source.name} does not begin by dividing by {training.PIXEL_MAX:g}"
        raise ValueError(message)
    divisor.CopyFrom(onnx.numpy_helper.from_array(np.array(1, np.float32), divisor.name))
    onnx.save(model, target)


def _quantize(source: Path, calibration: Array, target: Path) -> None:
    """Quantize convolutions and matrix products: weights by channel, activations by ranges.

    Weights get seven of their eight bits: processors with AVX2 or AVX-512 but without VNNI add
    products of int8 in sixteen bits, which overflow with eight. There the same file gave other
    answers than elsewhere (scores off by 3 of 60, where 0.4 is what quantization costs).
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = np.array_split(calibration, -(-len(calibration) // _CALIBRATION_BATCH))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[Array] = iter(batches)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say about themselves (no torchvision here, future deprecations):
    nobody who runs a demo can act on it. Errors are raised, not logged, and stay visible.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
