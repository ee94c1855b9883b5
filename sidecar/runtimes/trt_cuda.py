"""Device memory and streams through the CUDA driver's own C interface.

The driver is on every machine with a GPU; ``cuda-python`` and ``libcudart`` are not, and a package
of tens of megabytes for a dozen calls would make the TensorRT extra heavier than it needs to be.
ctypes gives Python's lock back during each call, so that waiting for the GPU stops no other thread.
"""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Self

from sidecar.runtimes.trt_probe import DRIVER_LIBRARY, DriverError, check, load_driver

_STREAM_NON_BLOCKING = 1  # does not wait for the legacy default stream, which others may use
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class DeviceMemoryError(Exception):
    """The GPU (or pinned host memory) has no room for a buffer."""


class Cuda:
    """One GPU's primary context: the one that TensorRT, and every other library here, uses.

    Contexts are current per thread: each thread calls ``activate`` before its first other call.
    """

    def __init__(self, index: int, library: str = DRIVER_LIBRARY) -> None:
        """Retain the primary context of GPU ``index``.

        Raises:
            DriverError: the driver refuses.
            OSError: there is no driver (``probe`` first).
        """
        self._driver = load_driver(library)
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        self._retained = False
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._retained = True

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, name: str, *arguments: object) -> None:
        check(self._driver, getattr(self._driver, name)(*arguments), name)

    def activate(self) -> None:
        """Make this context the calling thread's: TensorRT takes its device from it."""
        self._call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Give the context back. Idempotent; everything in it must be freed before."""
        if self._retained:
            self._retained = False
            self._call("cuCtxSetCurrent", None)
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    # --- streams -------------------------------------------------------------------------------

    def create_stream(self) -> int:
        """A new stream's handle."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _STREAM_NON_BLOCKING)
        return stream.value or 0

    def synchronize(self, stream: int) -> None:
        """Wait until everything queued on ``stream`` is done; its faults are raised here."""
        self._call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Free ``stream``."""
        self._call("cuStreamDestroy_v2", stream)

    # --- memory --------------------------------------------------------------------------------

    def allocate_device(self, size: int) -> int:
        """An address of ``size`` > 0 bytes of device memory, aligned to at least 256 bytes."""
        address = ctypes.c_uint64()
        self._allocate("cuMemAlloc_v2", ctypes.byref(address), size)
        return address.value

    def free_device(self, address: int) -> None:
        """Free what ``allocate_device`` gave."""
        self._call("cuMemFree_v2", address)

    def allocate_pinned(self, size: int) -> int:
        """An address of ``size`` > 0 bytes of page-locked host memory.

        From ordinary memory the driver copies through a buffer of its own, and the copy is not
        asynchronous at all.
        """
        address = ctypes.c_void_p()
        self._allocate("cuMemHostAlloc", ctypes.byref(address), size, 0)
        return address.value or 0

    def free_pinned(self, address: int) -> None:
        """Free what ``allocate_pinned`` gave."""
        self._call("cuMemFreeHost", address)

    def _allocate(self, name: str, address: object, size: int, *arguments: object) -> None:
        try:
            self._call(name, address, size, *arguments)
        except DriverError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
            message = f"no room for {size} bytes ({name})"
            raise DeviceMemoryError(message) from error

    def upload(self, device: int, host: int, size: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes from host to device."""
        self._call("cuMemcpyHtoDAsync_v2", device, host, size, stream)

    def download(self, host: int, device: int, size: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes from device to host."""
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, stream)


class Buffer:
    """One tensor's device memory and its pinned counterpart; grows, and never shrinks.

    It ends at the largest tensor seen, which the optimization profiles bound.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device_size = self._host_size = 0
        self.device = 0
        self.host = 0

    def reserve_device(self, size: int) -> int:
        """Have at least ``size`` bytes on the device; an empty tensor still gets an address."""
        if size > self._device_size or not self.device:
            self._free_device()
            self.device = self._cuda.allocate_device(max(size, 256))
            self._device_size = max(size, 256)
        return self.device

    def reserve_host(self, size: int) -> int:
        """Have at least ``size`` pinned bytes."""
        if size > self._host_size or not self.host:
            self._free_host()
            self.host = self._cuda.allocate_pinned(max(size, 256))
            self._host_size = max(size, 256)
        return self.host

    @property
    def size(self) -> int:
        """Bytes held on the device."""
        return self._device_size

    def _free_device(self) -> None:
        if self.device:
            address, self.device, self._device_size = self.device, 0, 0
            self._cuda.free_device(address)

    def _free_host(self) -> None:
        if self.host:
            address, self.host, self._host_size = self.host, 0, 0
            self._cuda.free_pinned(address)

    def close(self) -> None:
        """Free both."""
        self._free_device()
        self._free_host()
