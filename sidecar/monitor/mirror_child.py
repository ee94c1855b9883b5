"""The mirror child: a process that holds the monitor's copies of the models, and executes them.

``python -m sidecar.monitor.mirror_child CHANNEL_FD PAGE_FD``, spawned by ``mirror.py``. A model
that hangs or dies takes this process with it, and nothing else. It knows nothing of comparing: jobs
in, answers out.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar import runtimes
from sidecar.config import VariantConfig
from sidecar.errors import SidecarError
from sidecar.frames import Frame, Receiver, send
from sidecar.monitor import mirror_protocol as protocol
from sidecar.monitor.bundle import pack_many, unpack_many
from sidecar.monitor.mirror_protocol import Answer, Composition, Page, Run

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array, Runtime

_PR_SET_PDEATHSIG = 1
_ERROR_CHARACTERS_MAX = 500


class Child:
    """The copies, and the loop over frames."""

    def __init__(self, channel: socket.socket, page: Page) -> None:
        self._channel = channel
        self._page = page
        self._copies: dict[str, Runtime] = {}

    def run(self) -> None:
        """Serve until the monitor closes the channel."""
        receiver = Receiver(self._channel, max_bytes=protocol.FRAME_BYTES_MAX)
        while (frame := receiver.receive()) is not None:
            if frame.kind == protocol.BOOT:
                self._load(frame.fields["variants"], set(frame.fields["keep"]))
            elif frame.kind == protocol.JOBS:
                self._execute(frame)

    def _load(self, variants: Mapping[str, Any], keep: set[str]) -> None:
        for index, (key, tree) in enumerate(variants.items()):
            self._page.loading(index)
            try:
                runtime = runtimes.build(VariantConfig.model_validate(tree))
            # A library may raise anything for a file it does not like; the others shall load.
            except Exception as error:  # noqa: BLE001
                text = str(error) if isinstance(error, SidecarError) else _described(error)
                send(self._channel, protocol.COPY, {"key": key, "error": text})
                continue
            finally:
                self._page.loading(None)
            signature = protocol.signature_to_plain(runtime.signature)
            fields = {"key": key, "signature": signature, "device": "", "memory_bytes": 0}
            if key in keep:
                self._copies[key] = runtime
                fields["device"] = runtime.placement.device
                fields["memory_bytes"] = runtime.placement.memory_bytes
            else:
                runtime.close()
            send(self._channel, protocol.COPY, fields)
        # A collection in the middle of a run would be counted as that version's time.
        gc.collect()
        gc.freeze()
        send(self._channel, protocol.READY, {})

    def _execute(self, frame: Frame) -> None:
        inputs = unpack_many(frame.fields["inputs"], frame.parts)
        outputs: list[Mapping[str, Array]] = []
        runs: list[list[list[Any]]] = []
        for job, wanted in enumerate(frame.fields["jobs"]):
            rows: list[list[Any]] = []
            for number, (variant, plain) in enumerate(wanted):
                composition = None if plain is None else Composition.from_plain(plain)
                answer = self._run(job, number, Run(variant, composition), inputs)
                if answer.outputs is not None:
                    outputs.append(answer.outputs)
                rows.append([answer.failure, answer.error, answer.compute_ns, answer.started_ns])
            runs.append(rows)
        described, parts = pack_many(outputs)
        send(self._channel, protocol.RESULTS, {"outputs": described, "runs": runs}, parts)

    def _run(self, job: int, number: int, run: Run, inputs: list[dict[str, Array]]) -> Answer:
        runtime = self._copies.get(run.variant)
        if runtime is None:
            return Answer(failure="absent", error="there is no copy of it")
        own = inputs[job]
        batch = own if run.composition is None else _composed(own, run.composition, inputs)
        self._page.begin(job, number, start := monotonic_ns())
        try:
            arrays = runtime.infer(batch)
            took = monotonic_ns() - start
            names = [spec.name for spec in runtime.signature.outputs]
            outputs = dict(zip(names, arrays, strict=True))
        # A model is code: whatever it raises is its answer to this input.
        except BaseException as error:  # noqa: BLE001
            text = str(error) if isinstance(error, SidecarError) else _described(error)
            took = monotonic_ns() - start
            return Answer(None, "error", text[:_ERROR_CHARACTERS_MAX], took, start)
        finally:
            self._page.end()
        if run.composition is not None:
            outputs = _own_rows(outputs, own, run.composition, inputs)
        return Answer(outputs, compute_ns=took, started_ns=start)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _rows(arrays: Mapping[str, Array]) -> int:
    return next((len(array) for array in arrays.values() if array.ndim), 0)


def _composed(
    own: Mapping[str, Array], composition: Composition, inputs: list[dict[str, Array]]
) -> dict[str, Array]:
    """The batch: the others' rows around the job's own, or its own repeated."""
    if not composition.others:
        return {name: np.concatenate([own[name]] * composition.times) for name in own}
    before = [inputs[index] for index in composition.others[: composition.before]]
    after = [inputs[index] for index in composition.others[composition.before :]]
    everything = [*before, own, *after]
    return {name: np.concatenate([arrays[name] for arrays in everything]) for name in own}


def _own_rows(
    outputs: Mapping[str, Array],
    own: Mapping[str, Array],
    composition: Composition,
    inputs: list[dict[str, Array]],
) -> dict[str, Array]:
    start = sum(_rows(inputs[index]) for index in composition.others[: composition.before])
    end = start + _rows(own)
    return {name: array[start:end] for name, array in outputs.items()}


def main(arguments: list[str]) -> None:
    """``python -m sidecar.monitor.mirror_child CHANNEL_FD PAGE_FD``."""
    parent = os.getppid()
    # A model that hangs with Python's lock held would never see that the monitor is gone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before that was asked for
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's
    channel = socket.socket(fileno=int(arguments[0]))
    with contextlib.suppress(OSError):  # the monitor is gone, in the middle of an answer
        Child(channel, Page(int(arguments[1]))).run()
    # Not an ordinary exit: a runtime's threads must not keep it.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
