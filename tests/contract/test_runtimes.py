"""What every runtime promises (``runtimes/base.py``), over every kind of artifact."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sidecar.errors import ArtifactError, ExecutionError, SidecarError
from sidecar.protocol.datatypes import BY_NAME
from sidecar.runtimes import BUILTIN, build
from sidecar.runtimes.base import Runtime
from tests.contract.cases import ARTIFACTS, Artifact, Case, cuts, wrong_files
from tests.contract.cases import CASES as LOCAL_CASES
from tests.contract.remote_cases import REMOTE_CASES
from tests.support.models import assert_same, variant

# An AOTInductor package takes g++ a while, once a session.
pytestmark = pytest.mark.timeout(400)


def name(case: Case) -> str:
    return case.id


CASES = [*LOCAL_CASES, *REMOTE_CASES]

Loaded = tuple[Case, Runtime]
Found = tuple[Artifact, Path, dict]


@pytest.fixture(scope="module", params=CASES, ids=name)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    case: Case = request.param
    if reason := case.unavailable():
        pytest.skip(f"{case.kind} cannot run here: {reason}")
    runtime = build(case.make(request, tmp_path_factory.mktemp("model")))
    yield case, runtime
    runtime.close()


def check(case: Case, inputs: dict, results: dict) -> None:
    assert case.expected is not None
    for name, expected in case.expected(inputs).items():
        if case.rtol:
            assert results[name].dtype == expected.dtype
            np.testing.assert_allclose(
                results[name].astype(np.float64), expected, rtol=case.rtol, atol=case.rtol * 2
            )
        else:
            assert_same(results[name], expected)


def infer(runtime: Runtime, inputs: dict) -> dict:
    names = [spec.name for spec in runtime.signature.outputs]
    return dict(zip(names, runtime.infer(inputs), strict=True))


def same(results: dict, expected: dict) -> None:
    assert results.keys() == expected.keys()
    for name, array in expected.items():
        assert_same(results[name], array)


def test_every_kind_has_a_case():
    assert {case.kind for case in CASES} == set(BUILTIN)


def test_the_signature_is_the_models(loaded: Loaded):
    case, runtime = loaded
    signature = runtime.signature
    assert signature.inputs == case.inputs
    assert signature.outputs == case.outputs
    assert signature.max_batch_size == case.max_batch_size
    assert signature.platform
    assert signature.backend in {*BUILTIN, "tensorrt"}


def test_the_placement_says_where_it_is(loaded: Loaded):
    _, runtime = loaded
    assert runtime.placement.device
    assert runtime.placement.memory_bytes >= 0
    assert all(isinstance(value, str) for value in runtime.placement.details.values())


def test_outputs_are_right_and_fit_the_signature(loaded: Loaded):
    case, runtime = loaded
    for seed in range(3):
        inputs = case.example(seed)
        results = infer(runtime, inputs)
        check(case, inputs, results)
        for spec in case.outputs:
            array = results[spec.name]
            assert array.dtype == BY_NAME[spec.datatype].numpy
            assert array.ndim == len(spec.shape)
            assert all(want in {-1, got} for want, got in zip(spec.shape, array.shape, strict=True))


def test_outputs_come_in_the_order_asked_for(loaded: Loaded):
    case, runtime = loaded
    inputs = case.example(1)
    everything = infer(runtime, inputs)
    names = list(everything)
    for wanted in (names[::-1], names[:1], names[-1:]):
        results = runtime.infer(inputs, wanted)
        assert len(results) == len(wanted)
        same(dict(zip(wanted, results, strict=True)), {name: everything[name] for name in wanted})


def test_inputs_are_only_read(loaded: Loaded):
    """Views into a request's body: read-only, and not always aligned."""
    case, runtime = loaded
    inputs = case.example(2)
    expected = infer(runtime, {name: array.copy() for name, array in inputs.items()})
    lent, bodies = {}, {}
    for name, array in inputs.items():
        if array.dtype == object:
            lent[name] = array.copy()
            lent[name].flags.writeable = False
            continue
        bodies[name] = b"\0" + array.tobytes()
        flat = np.frombuffer(memoryview(bodies[name])[1:], np.uint8).view(array.dtype)
        lent[name] = flat.reshape(array.shape)
        assert not lent[name].flags.writeable
    same(infer(runtime, lent), expected)
    for name, body in bodies.items():
        assert body == b"\0" + inputs[name].tobytes()


def test_writable_inputs_are_only_read_too(loaded: Loaded):
    case, runtime = loaded
    inputs = case.example(3)
    before = {name: array.copy() for name, array in inputs.items()}
    runtime.infer(inputs)
    same(inputs, before)


def test_outputs_belong_to_the_caller(loaded: Loaded):
    """Neither inputs, nor the model's weights, nor other outputs, nor a later call share them."""
    case, runtime = loaded
    inputs = case.example(4)
    first = runtime.infer(inputs)
    kept = [array.copy() for array in first]
    for array in first:
        assert array.flags.writeable
        assert not any(np.shares_memory(array, given) for given in inputs.values())
    for index, array in enumerate(first):
        assert not any(np.shares_memory(array, other) for other in first[index + 1 :])
    for array in first:
        array[...] = b"overwritten" if array.dtype == object else 1
    overwritten = [array.copy() for array in first]
    for array, expected in zip(runtime.infer(inputs), kept, strict=True):
        assert_same(array, expected)
    runtime.infer(case.example(5))
    for array, expected in zip(first, overwritten, strict=True):
        assert_same(array, expected)


def test_eight_threads_get_their_own_answers(loaded: Loaded):
    case, runtime = loaded
    examples = [case.example(10 + i, batch=1 + i % 3) for i in range(8)]
    expected = [infer(runtime, inputs) for inputs in examples]
    start = threading.Barrier(8)

    def work(index: int) -> None:
        start.wait(timeout=30)
        for round_ in range(25):
            at = (index + round_) % 8
            results = infer(runtime, examples[at])
            if case.rtol:  # a batched product may round differently from thread to thread
                for name, array in expected[at].items():
                    np.testing.assert_allclose(results[name], array, rtol=1e-5, atol=1e-5)
            else:
                same(results, expected[at])

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, index) for index in range(8)]:
            future.result(timeout=60)


@pytest.mark.parametrize("loaded", [c for c in CASES if c.max_batch_size], ids=name, indirect=True)
def test_a_batch_gives_what_its_rows_give(loaded: Loaded):
    case, runtime = loaded
    size = min(5, case.max_batch_size)
    batch = case.example(20, batch=size)
    together = infer(runtime, batch)
    for row in range(size):
        alone = infer(runtime, {name: array[row : row + 1] for name, array in batch.items()})
        for name, array in alone.items():
            part = together[name][row : row + 1]
            if case.rtol:
                np.testing.assert_allclose(part, array, rtol=case.rtol, atol=case.rtol)
            else:
                assert_same(np.ascontiguousarray(part), array)


@pytest.mark.parametrize("loaded", [c for c in CASES if c.failing], ids=name, indirect=True)
def test_a_failing_input_is_an_execution_error_and_the_copy_lives(loaded: Loaded):
    case, runtime = loaded
    for _ in range(3):
        with pytest.raises(ExecutionError) as caught:
            runtime.infer(case.failing)
        text = str(caught.value)
        assert text.startswith("the model failed on this input: ")
        assert len(text) < 500
        for leak in ("Traceback", ".cc:", ".cpp", ".h:", "site-packages", "\n"):
            assert leak not in text
        inputs = case.example(6)
        check(case, inputs, infer(runtime, inputs))


# One model per format is enough: closing does not depend on the model.
@pytest.mark.parametrize("case", [c for c in CASES if "identity" not in c.id], ids=name)
def test_close_is_idempotent_and_touches_no_other_copy(
    case: Case, request: pytest.FixtureRequest, tmp_path: Path
):
    if reason := case.unavailable():
        pytest.skip(f"{case.kind} cannot run here: {reason}")
    settings = case.make(request, tmp_path)
    one, other = build(settings), build(settings)
    inputs = case.example(0)
    kept = one.infer(inputs)
    values = [array.copy() for array in kept]
    one.close()
    one.close()
    for array, expected in zip(kept, values, strict=True):
        assert_same(array, expected)  # outputs outlive the copy
    check(case, inputs, infer(other, inputs))
    other.close()


# --- artifacts ------------------------------------------------------------------------------------


def _build(artifact: Artifact, path: Path, settings: dict) -> None:
    build(variant(artifact.kind, path, **settings)).close()


@pytest.fixture(scope="module", params=ARTIFACTS, ids=lambda artifact: artifact.id)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    found: Artifact = request.param
    if reason := found.unavailable():
        pytest.skip(f"{found.kind} cannot run here: {reason}")
    path, settings = found.make(request, tmp_path_factory.mktemp("artifact"))
    return found, path, settings


def test_a_missing_file_is_named(artifact: Found, tmp_path: Path):
    found, _, settings = artifact
    with pytest.raises(ArtifactError, match=r"nothing\.here does not exist"):
        _build(found, tmp_path / "nothing.here", settings)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="is a folder"):
        _build(found, tmp_path / "folder", settings)


@pytest.mark.parametrize("name", wrong_files())
def test_a_file_that_is_no_model_is_refused(artifact: Found, tmp_path: Path, name: str):
    found, source, settings = artifact
    path = tmp_path / source.name
    path.write_bytes(wrong_files()[name])
    with pytest.raises(ArtifactError, match=path.name):
        _build(found, path, settings)


def test_a_truncated_file_is_refused(artifact: Found, tmp_path: Path):
    found, source, settings = artifact
    whole = source.read_bytes()
    path = tmp_path / source.name
    for size in cuts(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=path.name):
            _build(found, path, settings)


def test_a_damaged_file_is_refused_or_loads(artifact: Found, tmp_path: Path):
    """Any byte may be wrong: an error, or a model; never a crash or a foreign exception."""
    found, source, settings = artifact
    whole = source.read_bytes()
    path = tmp_path / source.name
    refused = 0
    rng = np.random.default_rng(11)
    rounds = 25
    for place in rng.integers(0, len(whole), rounds):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with suppress(ArtifactError):
            _build(found, path, settings)
            refused -= 1
        refused += 1
    assert found.id in {"onnx", "state_dict-legacy"} or refused >= rounds * 3 // 4


def test_an_artifact_of_another_kind_names_the_kind_that_serves_it(
    request: pytest.FixtureRequest, tmp_path: Path
):
    files = {}
    for found in ARTIFACTS:
        if not found.unavailable():
            folder = tmp_path / found.id
            folder.mkdir()
            files[found.id] = (found.kind, found.make(request, folder)[0])
    for kind in sorted({kind for kind, _ in files.values()}):
        for label, (own, path) in files.items():
            if own == kind:
                continue
            with pytest.raises(ArtifactError) as caught:
                build(variant(kind, path))
            assert f"kind: {own}" in str(caught.value), label


def test_an_unknown_kind_lists_the_valid_ones(tmp_path: Path):
    settings = variant("onnxruntime", tmp_path / "x.onnx")
    runtime = settings.runtime.model_copy(update={"kind": "caffe"})
    with pytest.raises(SidecarError, match="'caffe' is unknown; choose one of: onnxruntime, "):
        build(settings.model_copy(update={"runtime": runtime}))
