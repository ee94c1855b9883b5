"""tritonclient with system shared memory, the same calls over gRPC and over HTTP."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import harness
import ml_dtypes
import numpy as np
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from harness import Target, equal, holds, refused, status_of
from tritonclient.utils import InferenceServerException, serialized_byte_size

#: Keys are the machine's: two runs of these tests must not meet.
PREFIX = f"sidecar_clients_{os.getpid()}"


def module(target: Target) -> ModuleType:
    return tritonclient.grpc if target.api == "grpc" else tritonclient.http  # type: ignore[no-any-return]


def client(target: Target) -> Any:
    if target.api == "grpc":
        # Channels of one process share connections unless told otherwise; a connection of its own
        # may reach another of the server's workers.
        options = [("grpc.use_local_subchannel_pool", 1)]
        return tritonclient.grpc.InferenceServerClient(target.grpc, channel_args=options)
    return tritonclient.http.InferenceServerClient(target.http)


@contextlib.contextmanager
def region(name: str, byte_size: int) -> Iterator[tuple[Any, str]]:
    """A region of this process, not yet registered; its handle and key."""
    key = f"{PREFIX}_{name}"
    handle = shm.create_shared_memory_region(name, f"/{key}", byte_size, create_only=True)
    try:
        yield handle, f"/{key}"
    finally:
        shm.destroy_shared_memory_region(handle)


@contextlib.contextmanager
def registered(target: Target, name: str, byte_size: int) -> Iterator[Any]:
    with region(name, byte_size) as (handle, key), client(target) as c:
        c.register_system_shared_memory(name, key, byte_size)
        try:
            yield handle
        finally:
            c.unregister_system_shared_memory(name)


def shared_input(target: Target, name: str, shape: list[int], datatype: str, *where: Any) -> Any:
    made = module(target).InferInput(name, shape, datatype)
    made.set_shared_memory(*where)
    return made


def shared_output(target: Target, name: str, *where: Any) -> Any:
    made = module(target).InferRequestedOutput(name)
    made.set_shared_memory(*where)
    return made


def listed(c: Any, target: Target, name: str = "") -> dict[str, tuple[str, int, int]]:
    """The registered regions: name → (key, offset, byte_size)."""
    status = c.get_system_shared_memory_status(name)
    if target.api == "grpc":
        return {r.name: (r.key, r.offset, r.byte_size) for r in status.regions.values()}
    return {r["name"]: (r["key"], r["offset"], r["byte_size"]) for r in status}


def check_register_status_unregister(target: Target) -> None:
    with region("one", 256) as (_, key), region("two", 256) as (_, other), client(target) as c:
        c.register_system_shared_memory("one", key, 256)
        c.register_system_shared_memory("two", other, 128, offset=64)
        equal(listed(c, target), {"one": (key, 0, 256), "two": (other, 64, 128)}, "regions")
        equal(listed(c, target, "two"), {"two": (other, 64, 128)}, "one region")
        with refused(InferenceServerException, status_of(target, "ALREADY_EXISTS"), about="one"):
            c.register_system_shared_memory("one", other, 256)
        with refused(InferenceServerException, status_of(target, "NOT_FOUND"), about="three"):
            c.get_system_shared_memory_status("three")
        c.unregister_system_shared_memory("one")
        equal(list(listed(c, target)), ["two"], "regions after unregistering one")
        c.unregister_system_shared_memory()
        equal(listed(c, target), {}, "regions after unregistering all")


def check_infer_in_and_out(target: Target) -> None:
    first, second = np.arange(16, dtype=np.int32), np.full(16, 3, np.int32)
    with registered(target, "in", 128) as inside, registered(target, "out", 128) as outside:
        shm.set_shared_memory_region(inside, [first, second])
        inputs = [
            shared_input(target, "INPUT0", [1, 16], "INT32", "in", 64),
            shared_input(target, "INPUT1", [1, 16], "INT32", "in", 64, 64),
        ]
        outputs = [
            shared_output(target, "OUTPUT0", "out", 64, 64),
            shared_output(target, "OUTPUT1", "out", 64),
        ]
        with client(target) as c:
            result = c.infer("add_sub", inputs, outputs=outputs)
        # The answer describes what lies in shared memory, and holds none of it.
        found = result.get_output("OUTPUT0")
        if target.api == "grpc":
            equal((found.datatype, list(found.shape)), ("INT32", [1, 16]), "the output")
            holds(not found.HasField("contents"), f"the answer holds data: {found}")
            holds(not any(result.get_response().raw_output_contents), "the answer holds raw data")
        else:
            equal((found["datatype"], found["shape"]), ("INT32", [1, 16]), "the output")
            holds("data" not in found, f"the answer holds data: {found}")
        sums = shm.get_contents_as_numpy(outside, np.int32, [16], 64)
        differences = shm.get_contents_as_numpy(outside, np.int32, [16], 0)
        equal(sums.copy(), first + second, "sum")
        equal(differences.copy(), first - second, "difference")
        del sums, differences  # views of the region, which is about to be unmapped


def check_mixed_with_plain_tensors(target: Target) -> None:
    """Raw contents are counted over the inputs that are not in shared memory."""
    first, second = np.arange(16, dtype=np.int32), np.full(16, 3, np.int32)
    with registered(target, "in", 64) as inside:
        shm.set_shared_memory_region(inside, [first])
        plain = module(target).InferInput("INPUT1", [1, 16], "INT32")
        plain.set_data_from_numpy(second.reshape(1, 16))
        inputs = [shared_input(target, "INPUT0", [1, 16], "INT32", "in", 64), plain]
        with client(target) as c:
            for order in (inputs, inputs[::-1]):
                result = c.infer("add_sub", order)
                equal(result.as_numpy("OUTPUT0"), (first + second).reshape(1, 16), "sum")


def check_one_output_shared_and_one_not(target: Target) -> None:
    """The client finds raw contents by the output's place among all outputs."""
    first, second = np.arange(16, dtype=np.int32), np.full(16, 3, np.int32)
    inputs = []
    for name, array in (("INPUT0", first), ("INPUT1", second)):
        inputs.append(module(target).InferInput(name, [1, 16], "INT32"))
        inputs[-1].set_data_from_numpy(array.reshape(1, 16))
    with registered(target, "out", 64) as outside, client(target) as c:
        outputs = [
            shared_output(target, "OUTPUT0", "out", 64),
            module(target).InferRequestedOutput("OUTPUT1"),
        ]
        for order in (outputs, outputs[::-1]):
            result = c.infer("add_sub", inputs, outputs=order)
            equal(result.as_numpy("OUTPUT1"), (first - second).reshape(1, 16), "difference")
            sums = shm.get_contents_as_numpy(outside, np.int32, [16], 0)
            equal(sums.copy(), first + second, "sum")
            del sums


def check_bytes_and_small_floats(target: Target) -> None:
    arrays = harness.samples(ml_dtypes.bfloat16)
    for datatype in ("BYTES", "FP16", "BF16", "BOOL"):
        array = arrays[datatype]
        sent = array
        if datatype == "BYTES":
            sent = tritonclient.utils.serialize_byte_tensor(array)
        size = serialized_byte_size(sent) if datatype == "BYTES" else array.nbytes
        with registered(target, "in", size) as inside, registered(target, "out", 4096) as outside:
            shm.set_shared_memory_region(inside, [sent])
            model = f"identity_{datatype.lower()}"
            inputs = [shared_input(target, "INPUT", [2, 3], datatype, "in", size)]
            outputs = [shared_output(target, "OUTPUT", "out", 4096)]
            with client(target) as c:
                c.infer(model, inputs, outputs=outputs)
            answer = shm.get_contents_as_numpy(outside, array.dtype, [2, 3])
            equal(answer.copy(), array, datatype)
            del answer


def check_registered_with_an_offset(target: Target) -> None:
    """Offsets add up: the region's within the key, and the tensor's within the region."""
    rows = np.arange(8, dtype=np.float32)
    with region("part", 256) as (handle, key), client(target) as c:
        c.register_system_shared_memory("part", key, 128, offset=64)
        try:
            shm.set_shared_memory_region(handle, [rows], offset=64 + 32)
            inputs = [shared_input(target, "INPUT", [1, 8], "FP32", "part", 32, 32)]
            result = c.infer("identity_fp32", inputs)
            equal(result.as_numpy("OUTPUT"), rows.reshape(1, 8), "answer")
        finally:
            c.unregister_system_shared_memory("part")


def check_the_region_outlives_unregistering(target: Target) -> None:
    """It is the client's: a server that removes it breaks the client's next registration."""
    with region("mine", 64) as (_, key), client(target) as c:
        for _ in range(2):
            c.register_system_shared_memory("mine", key, 64)
            c.unregister_system_shared_memory("mine")
        holds(Path(f"/dev/shm{key}").exists(), "the server removed the client's region")


def check_every_connection_knows_the_region(target: Target) -> None:
    """With several workers a registration has reached all of them when it returns."""
    rows = np.arange(8, dtype=np.float32)
    with registered(target, "in", 32) as inside:
        shm.set_shared_memory_region(inside, [rows])
        for _ in range(8 * target.workers):
            with client(target) as c:
                inputs = [shared_input(target, "INPUT", [1, 8], "FP32", "in", 32)]
                equal(
                    c.infer("identity_fp32", inputs).as_numpy("OUTPUT"), rows.reshape(1, 8), "rows"
                )


def check_bad_regions(target: Target) -> None:
    wrong, absent = status_of(target, "INVALID_ARGUMENT"), status_of(target, "NOT_FOUND")
    error = InferenceServerException
    with client(target) as c:
        with refused(error, wrong, absent):
            c.register_system_shared_memory("gone", f"/{PREFIX}_nonesuch", 64)
        for key in ("/../etc/passwd", "/", "", "/a/b"):
            with refused(error, wrong, absent):
                c.register_system_shared_memory("bad", key, 64)
        with region("small", 64) as (_, key):
            with refused(error, wrong):
                c.register_system_shared_memory("small", key, 65)
            with refused(error, wrong):
                c.register_system_shared_memory("small", key, 64, offset=8)
            with refused(error, wrong):
                c.register_system_shared_memory("small", key, 0)
        equal(listed(c, target), {}, "regions after refusals")


def check_bad_references(target: Target) -> None:
    wrong, absent = status_of(target, "INVALID_ARGUMENT"), status_of(target, "NOT_FOUND")
    error = InferenceServerException
    with registered(target, "in", 64), client(target) as c:
        cases = {
            "unknown": ("nonesuch", 64),
            "too long": ("in", 65),
            "beyond the end": ("in", 64, 1),
            "far beyond": ("in", 64, 2**62),
            "too short for the shape": ("in", 60),
        }
        for what, where in cases.items():
            inputs = [shared_input(target, "INPUT", [1, 16], "FP32", *where)]
            try:
                with refused(error, wrong, absent):
                    c.infer("identity_fp32", inputs)
            except AssertionError as reason:
                raise harness.WrongError(f"{what}: {reason}") from reason
        plain = module(target).InferInput("INPUT", [1, 16], "FP32")
        plain.set_data_from_numpy(np.zeros((1, 16), np.float32))
        for what, where in {"no room": ("in", 60), "unknown": ("nonesuch", 64)}.items():
            try:
                with refused(error, wrong, absent):
                    c.infer(
                        "identity_fp32", [plain], outputs=[shared_output(target, "OUTPUT", *where)]
                    )
            except AssertionError as reason:
                raise harness.WrongError(f"output, {what}: {reason}") from reason
        equal(c.infer("identity_fp32", [plain]).as_numpy("OUTPUT").shape, (1, 16), "after all")


def check_truncated_region(target: Target) -> None:
    """A client that shrinks its region gets an error; mapped, the server would die of SIGBUS."""
    if target.access == "map":
        return  # this setting is for trusted clients, and docs say so
    with registered(target, "in", 8192), client(target) as c:
        key = f"/dev/shm/{PREFIX}_in"
        descriptor = os.open(key, os.O_RDWR)
        try:
            os.ftruncate(descriptor, 0)
            inputs = [shared_input(target, "INPUT", [1, 2048], "FP32", "in", 8192)]
            with refused(InferenceServerException, status_of(target, "INVALID_ARGUMENT")):
                c.infer("identity_fp32", inputs)
        finally:
            os.ftruncate(descriptor, 8192)  # this client's own mapping must not meet it either
            os.close(descriptor)
        equal(c.is_server_live(), True, "live")


def check_cuda_shared_memory_is_refused(target: Target) -> None:
    """Nothing can be registered, so nothing is, and unregistering all of it is no error."""
    with client(target) as c:
        with refused(InferenceServerException, status_of(target, "UNIMPLEMENTED"), about="CUDA"):
            c.register_cuda_shared_memory("gpu", b"AAAA", 0, 64)
        status = c.get_cuda_shared_memory_status()
        equal(len(status.regions if target.api == "grpc" else status), 0, "regions")
        c.unregister_cuda_shared_memory()


if __name__ == "__main__":
    harness.main(dict(vars(sys.modules["__main__"])))
