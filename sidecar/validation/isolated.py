"""A variant in a process of its own, so that one that crashes ends nothing but itself.

A library may end its process on an input or a file: by a segmentation fault, an abort, or the
kernel for want of memory. Offline that would lose the run of all other variants, and the verdict.
Here it is that variant's failure on that row: the process is started again, and the search for the
row that does it goes on. It is the monitor's mirror child, one for each variant.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from sidecar import runtimes
from sidecar.errors import ArtifactError, ExecutionError, SidecarError
from sidecar.frames import Frame
from sidecar.monitor import mirror_protocol as protocol
from sidecar.monitor.bundle import pack_many, unpack_many
from sidecar.monitor.mirror_link import Link
from sidecar.monitor.mirror_protocol import Page
from sidecar.runtimes.base import Array, Placement, Runtime

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config import VariantConfig

#: Processes that one variant may cost. A row is found among 1024 by halves with about ten.
LIVES_MAX = 16


#: Calls that travel together: what a frame costs is more than what a small model does.
_TOGETHER = 64


class CrashError(ExecutionError):
    """The variant ended its process.

    ``at``: which of several calls was under way, as far as that is known.
    """

    def __init__(self, message: str, at: int | None = None) -> None:
        super().__init__(message)
        self.at = at


def build(variant: VariantConfig, clock: Clock) -> Runtime:
    """Load a variant in a process of its own; one of kind ``remote``, which is elsewhere, here.

    Raises:
        ArtifactError: loading it ended the process.
        SidecarError: what the variant's runtime raises.
    """
    return start(variant, clock).finish()


def start(variant: VariantConfig, clock: Clock) -> Starting:
    """Start the process and return at once: those of several variants start side by side."""
    return Starting(variant, clock)


class Starting:
    """A variant whose process starts."""

    def __init__(self, variant: VariantConfig, clock: Clock) -> None:
        self._variant = variant
        self._life = None if variant.runtime.kind == "remote" else _Life(variant, clock)
        self._clock = clock

    def finish(self) -> Runtime:
        """Load it there; raises as ``build``."""
        if self._life is None:
            return runtimes.build(self._variant)
        return IsolatedRuntime(self._variant, self._life, self._clock)

    def close(self) -> None:
        """End it, where nobody waits for it any more."""
        if self._life is not None:
            self._life.close()


class IsolatedRuntime(Runtime):
    """One variant in another process. For one thread.

    Attributes:
        compute_ns: monotonic time of the last call around the model alone.
        crash: how it ended its process; ``""`` as long as it has not.
    """

    def __init__(self, variant: VariantConfig, life: _Life, clock: Clock) -> None:
        self._variant, self._clock = variant, clock
        self._life: _Life | None = life
        self._lives = 1
        self.compute_ns = 0
        self.crash = ""
        try:
            info = life.load()
        except BaseException:
            life.close()
            raise
        assert info.signature is not None
        super().__init__(info.signature, Placement(info.device, info.memory_bytes))

    @override
    def infer_impl(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        [answer] = self.infer_many([inputs])
        names = [spec.name for spec in self.signature.outputs]
        found = dict(zip(names, answer, strict=True))
        return [found[name] for name in outputs]

    def infer_many(self, calls: Sequence[Mapping[str, Array]]) -> Iterator[list[Array]]:
        """Execute each call, as ``infer`` does: all outputs of one after another.

        ``compute_ns`` is that of the one that was just given.

        Raises:
            CrashError: none of those that travelled together has an answer.
            ExecutionError: the next one failed.
        """
        names = [spec.name for spec in self.signature.outputs]
        for start in range(0, len(calls), _TOGETHER):
            life = self._alive()
            answers = life.run(calls[start : start + _TOGETHER])
            if isinstance(answers, CrashError):
                self._life, self.crash = None, str(answers)
                answers.at = None if answers.at is None else start + answers.at
                life.close()
                raise answers
            for answer in answers:
                self.compute_ns = answer.compute_ns
                if answer.outputs is None:
                    raise ExecutionError(answer.error)
                yield [answer.outputs[name] for name in names]

    def _alive(self) -> _Life:
        if self._life is not None:
            return self._life
        if self._lives >= LIVES_MAX:
            message = f"{self.crash}, as it did {self._lives} times: it is not started again"
            raise CrashError(message)
        self._lives += 1
        life = _Life(self._variant, self._clock)
        try:
            life.load()
        except SidecarError as error:
            life.close()
            message = f"{self.crash}, and could not be loaded again: {error}"
            raise CrashError(message) from None
        except BaseException:
            life.close()
            raise
        self._life = life
        return life

    @override
    def close(self) -> None:
        if self._life is not None:
            self._life.close()
            self._life = None


class _Life:
    """One process with the variant's copy."""

    def __init__(self, variant: VariantConfig, clock: Clock) -> None:
        self._variant = variant
        self._page_fd = Page.create()
        self._page = Page(self._page_fd)
        try:
            self._link = Link(self._page_fd, clock.monotonic_ns())
        except BaseException:
            self._close_page()
            raise

    def load(self) -> protocol.CopyInfo:
        key = self._variant.key
        tree = {key: self._variant.model_dump(mode="json")}
        self._link.send(protocol.BOOT, {"variants": tree, "keep": [key]})
        copy: protocol.CopyInfo | None = None
        while (frame := self._next()) is not None:
            if frame.kind == protocol.READY and copy is not None:
                return copy
            if "error" in frame.fields:
                raise ArtifactError(frame.fields["error"])
            signature = protocol.signature_from_plain(frame.fields["signature"])
            copy = protocol.CopyInfo(
                key, signature, frame.fields["device"], frame.fields["memory_bytes"]
            )
        raise ArtifactError(f"loading it {self._ended()}")

    def run(self, calls: Sequence[Mapping[str, Array]]) -> list[protocol.Answer] | CrashError:
        described, parts = pack_many(calls)
        jobs = {"inputs": described, "jobs": [[[self._variant.key, None]]] * len(calls)}
        # Where it cannot be sent the process is gone, which is what is read next.
        self._link.send(protocol.JOBS, jobs, parts)
        frame = self._next()
        if frame is None:
            executing = self._page.executing()
            return CrashError(f"it {self._ended()}", None if executing is None else executing[0])
        outputs = iter(unpack_many(frame.fields["outputs"], frame.parts))
        return [
            protocol.Answer(None if failure else next(outputs), failure, *rest)
            for [(failure, *rest)] in frame.fields["runs"]
        ]

    def _next(self) -> Frame | None:
        """Wait for a frame, as long as it takes (Ctrl-C ends it); ``None``: the process ended."""
        while True:
            frame = self._link.next()
            if frame == "ended":
                return None
            if isinstance(frame, Frame):
                return frame

    def _ended(self) -> str:
        how = self._link.how_it_ended()
        kind, _, number = how.partition(" ")
        if kind == "signal" and number.isdigit():
            name = _signal_name(int(number))
            how += f", {name}" if name else ""
            how += ": out of memory?" if name == "SIGKILL" else ""
        return f"ended its process ({how})"

    def close(self) -> None:
        self._link.close()
        self._close_page()

    def _close_page(self) -> None:
        self._page.close()
        os.close(self._page_fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""
