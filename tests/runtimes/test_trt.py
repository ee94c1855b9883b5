"""The engine cache, and what a machine without a GPU answers, with the real TensorRT for RTX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.config import VariantConfig
from sidecar.config_runtime import TensorRTConfig
from sidecar.errors import ArtifactError, MissingExtraError, SidecarError
from sidecar.runtimes import trt
from sidecar.runtimes.trt_build import (
    BuildProgress,
    build_engine,
    build_target,
    cache_key,
    device_index,
)
from sidecar.runtimes.trt_cache import EngineStore
from sidecar.runtimes.trt_library import Library, load_library
from sidecar.runtimes.trt_onnx import read_model
from sidecar.runtimes.trt_probe import GpuDevice, NoDeviceError, Probe, probe
from tests.runtimes.trt_models import WEIGHTS, linear, settings, why_not_executable
from tests.runtimes.trt_software import compile_driver

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


# --- the cache -----------------------------------------------------------------------------------


def test_the_second_start_finds_the_engine(tmp_path: Path):
    model = linear(tmp_path / "m.onnx", batch=2)
    first = build_engine(model, settings(tmp_path))
    second = build_engine(model, settings(tmp_path, contexts=5, device="cuda:1"))

    assert (first.built, second.built) == (True, False)
    assert second.path == first.path
    assert second.engine_sha256 == first.engine_sha256
    assert (second.inputs, second.profiles) == (first.inputs, first.profiles)


def test_what_changes_the_engine_misses_the_cache(tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    base = {"max_batch_size": 4}
    shape = {"min": [1, 4], "opt": [2, 4], "max": [4, 4]}
    changes = [
        {},
        {"max_batch_size": 8},
        {"tf32": True},
        {"optimization_level": 2},
        {"workspace_bytes": 1 << 28},
        {"profiles": [{"x": shape}]},
    ]
    engines = [build_engine(model, settings(tmp_path, **{**base, **c})) for c in changes]

    assert all(engine.built for engine in engines)
    assert len({engine.path for engine in engines}) == len(changes)


def test_changed_weights_miss_the_cache_wherever_they_lie(tmp_path: Path):
    external = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    model = linear(tmp_path / "m.onnx", batch=2, **external)
    first = build_engine(model, settings(tmp_path))
    assert not build_engine(model, settings(tmp_path)).built

    weights = tmp_path / "weights.bin"
    assert weights.read_bytes() == WEIGHTS.tobytes()
    weights.write_bytes((WEIGHTS + 1).tobytes())
    second = build_engine(model, settings(tmp_path))

    assert second.built
    assert second.key != first.key


def test_missing_and_outside_weights_are_refused(tmp_path: Path):
    external = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    model = linear(tmp_path / "m.onnx", batch=2, **external)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"needs weights\.bin"):
        build_engine(model, settings(tmp_path))

    model.write_bytes(model.read_bytes().replace(b"weights.bin", b"../eights.b"))
    with pytest.raises(ArtifactError, match="outside its own folder"):
        build_engine(model, settings(tmp_path))


def test_version_and_target_are_in_the_key(tmp_path: Path):
    library = load_library("tensorrt_rtx")
    newer = Library(
        library.kind, library.title, SimpleNamespace(__version__="99"), None, library.sink
    )
    model = read_model(linear(tmp_path / "m.onnx", batch=2))
    wanted = settings(tmp_path)
    keys = {
        cache_key(model, wanted, library, "portable"),
        cache_key(model, wanted, newer, "portable"),
        cache_key(model, wanted, library, "sm_75"),
    }
    assert len(keys) == 3


def test_a_damaged_entry_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = linear(tmp_path / "m.onnx", batch=2)
    engine = build_engine(model, settings(tmp_path))
    whole = engine.path.read_bytes()
    description = engine.path.with_suffix(".engine.json")
    tree = json.loads(description.read_text())

    def restored():
        caplog.clear()
        again = build_engine(model, settings(tmp_path))
        assert "is built again" in caplog.text
        assert again.built
        assert again.path == engine.path
        assert not build_engine(model, settings(tmp_path)).built
        assert not list(tmp_path.glob(".*.tmp"))

    engine.path.write_bytes(whole[:-1])
    restored()
    engine.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    restored()
    engine.path.unlink()
    restored()
    for text in ("", "{", "[]", "null", json.dumps({**tree, "key": "0"}), json.dumps({})):
        description.write_text(text)
        restored()
    (tmp_path / f".{engine.path.name}.dead.tmp").write_bytes(b"half")  # of a killed builder
    description.write_bytes(b"\xff\xfe")
    restored()


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path):
    (tmp_path / "file").write_text("")
    model = linear(tmp_path / "m.onnx", batch=2)
    with pytest.raises(SidecarError, match=r"set runtime\.cache_dir"):
        build_engine(model, settings(tmp_path / "file" / "cache"))


def test_a_model_replaced_during_the_build_is_not_cached(tmp_path: Path):
    model = linear(tmp_path / "m.onnx", batch=2)

    def replace_it(_: BuildProgress):
        linear(model, batch=3)

    with pytest.raises(ArtifactError, match="changed while its engine was being built"):
        build_engine(model, settings(tmp_path), replace_it)
    assert not list(tmp_path.glob("*.engine"))


_BUILD = """
import logging, sys
from pathlib import Path
from sidecar.runtimes.trt import build_engine
from tests.runtimes.trt_models import settings
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
engine = build_engine(Path(sys.argv[1]), settings(Path(sys.argv[2])))
print("RESULT", engine.built, engine.engine_sha256, flush=True)
"""


def test_two_processes_build_once(tmp_path: Path, request: pytest.FixtureRequest):
    model = linear(tmp_path / "m.onnx", batch=2)
    library = load_library("tensorrt_rtx")
    key = cache_key(
        read_model(model), settings(tmp_path), library, build_target(library, probe(), 0)
    )
    store = EngineStore(tmp_path, "m", key)
    command = [sys.executable, "-c", _BUILD, str(model), str(tmp_path)]
    root = request.config.rootpath
    with ExitStack() as stack:
        builders = []
        with store.lock():
            # Held here until both wait, so that the race is real and needs no luck.
            for _ in range(2):
                builder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
                builders.append(stack.enter_context(builder))
                stack.callback(builder.kill)
            for builder in builders:
                lines = iter(builder.stdout.readline, "")
                assert any("waiting for another process" in line for line in lines)
        outputs = [builder.communicate(timeout=60)[0] for builder in builders]

    results = [line.split() for out in outputs for line in out.splitlines() if "RESULT" in line]
    assert sorted(built for _, built, _ in results) == ["False", "True"]
    assert len({checksum for _, _, checksum in results}) == 1


# --- where it can run ----------------------------------------------------------------------------


def test_targets():
    rtx = load_library("tensorrt_rtx")
    full = Library("tensorrt", "TensorRT", rtx.module, rtx.logger, rtx.sink)
    turing = Probe((GpuDevice(0, "NVIDIA T4", (7, 5), 1),), "13.0", "")
    ada = Probe((GpuDevice(0, "NVIDIA L4", (8, 9), 1),), "13.0", "")
    none = Probe((), "", "no NVIDIA driver: none")

    assert build_target(rtx, none, 0) == "portable"
    assert build_target(rtx, ada, 0) == "portable"
    assert build_target(rtx, turing, 0) == "sm_75"
    assert build_target(full, ada, 0) == "NVIDIA L4 sm_89"
    with pytest.raises(NoDeviceError, match="cuda:0 cannot be used: no NVIDIA driver"):
        build_target(full, none, 0)
    with pytest.raises(NoDeviceError, match=r"no cuda:1; the driver offers cuda:0 \(NVIDIA L4"):
        build_target(full, ada, 1)


def test_the_device_must_be_a_gpu():
    assert [device_index(device) for device in ("cuda", "cuda:0", "cuda:12")] == [0, 0, 12]
    with pytest.raises(SidecarError, match="kind onnxruntime for the CPU"):
        device_index("cpu")


def test_a_missing_package_names_its_extra(tmp_path: Path):
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("tensorrt is installed here")
    wanted = TensorRTConfig(kind="tensorrt", path=tmp_path)
    with pytest.raises(MissingExtraError, match=r"pip install 'model-sidecar\[tensorrt\]'"):
        build_engine(linear(tmp_path / "m.onnx"), wanted)


def _variant(path: Path, **values: Any):
    runtime = {"kind": "tensorrt_rtx", "path": str(path), **values}
    return VariantConfig.model_validate(
        {"name": "v", "version": "1", "roles": ["serving"], "runtime": runtime}
    )


def test_bad_engine_files_are_refused_before_any_gpu_is_asked(tmp_path: Path):
    whole = build_engine(linear(tmp_path / "m.onnx", batch=2), settings(tmp_path)).path.read_bytes()
    bad = {
        "empty.engine": (b"", "is empty"),
        "text.plan": (b"no engine at all" * 40, "is not an engine but of no kind known here"),
        "cut.trt": (whole[:-1], f"was cut off: it has {len(whole) - 1} bytes"),
        "stub.engine": (whole[:10], "was cut off"),
        "other.engine": (b"ftrt" + whole[4:], "set the runtime's kind to tensorrt"),
        "model.pt": (b"PK", r"TensorRT takes \.onnx, or an engine"),
    }
    for name, (content, message) in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=message):
            trt.build(_variant(path))
    with pytest.raises(ArtifactError, match="No such file"):
        trt.build(_variant(tmp_path / "absent.engine"))


_RUN = """
import sys
from sidecar.config import VariantConfig
from sidecar.errors import SidecarError
from sidecar.runtimes import build
runtime = {"kind": "tensorrt_rtx", "path": sys.argv[1]}
variant = VariantConfig.model_validate(
    {"name": "v", "version": "1", "roles": ["serving"], "runtime": runtime}
)
try:
    build(variant)
except SidecarError as error:
    print(type(error).__name__, error)
print("ALIVE")
"""


@pytest.mark.parametrize("kind", ["onnx", "engine"])
def test_without_a_gpu_the_engine_is_kept_and_the_process_lives(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
):
    if not why_not_executable():
        pytest.skip("there is a GPU here")
    path = linear(tmp_path / "m.onnx", batch=2)
    if kind == "engine":
        path = build_engine(path, settings(tmp_path)).path
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path)],
        check=False, capture_output=True, text=True, timeout=60, cwd=request.config.rootpath,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NoDeviceError ")
    assert "cannot be executed on cuda:0" in done.stdout
    assert (probe().reason or str(probe().devices[0])) in done.stdout
    assert done.stdout.endswith("ALIVE\n")
    if kind == "onnx":
        (engine,) = tmp_path.glob("*.engine")
        assert f"engine built and cached at {engine}" in done.stdout


def test_a_gpu_the_library_cannot_use_gives_its_own_reason(
    tmp_path: Path, request: pytest.FixtureRequest
):
    if probe().devices:
        pytest.skip("there is a driver here; this test puts another in its place")
    # A driver that lists GPUs and can do little else: TensorRT itself finds it unfit.
    Path(compile_driver(tmp_path)).rename(tmp_path / "libcuda.so.1")
    path = linear(tmp_path / "m.onnx", batch=2)
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path)],
        check=False, capture_output=True, text=True, timeout=60, cwd=request.config.rootpath,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NoDeviceError engine built and cached at ")
    assert "cannot be executed on cuda:0 (Software GPU, compute capability 8.9): " in done.stdout
    assert "Cuda" in done.stdout.partition("8.9): ")[2]
    assert done.stdout.endswith("ALIVE\n")
