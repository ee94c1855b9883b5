"""Is there an NVIDIA driver, and which GPUs? Asked before TensorRT is touched.

Some TensorRT libraries answer a missing driver with an object that is a null pointer inside: it is
truthy in Python, and the first call on it kills the process. So the driver is asked first, through
its own C interface, where every answer is a status code. No CUDA context is created: a context
holds hundreds of megabytes of device memory, and the probe runs on machines that only build.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from typing_extensions import override

from sidecar.errors import SidecarError

DRIVER_LIBRARY = "libcuda.so.1"

_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_CAPABILITY_MINOR = 76


class NoDeviceError(SidecarError):
    """No driver, no such GPU, or a GPU this library cannot use. The message says which."""


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU the driver offers.

    Attributes:
        index: the ordinal, after ``CUDA_VISIBLE_DEVICES`` (the N of ``cuda:N``).
        name: as the driver calls it (``"NVIDIA GeForce RTX 4090"``).
        capability: compute capability, (major, minor).
        memory_bytes: device memory altogether.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @override
    def __str__(self) -> str:
        major, minor = self.capability
        return f"cuda:{self.index} ({self.name}, compute capability {major}.{minor})"


@dataclass(frozen=True, slots=True)
class Probe:
    """What the driver answered.

    Attributes:
        devices: every GPU, in the driver's order; empty where ``reason`` says why.
        cuda_version: newest CUDA the driver serves, ``"13.0"``; empty without a driver.
        reason: why there is no GPU; empty when there is one.
    """

    devices: tuple[GpuDevice, ...]
    cuda_version: str
    reason: str

    def device(self, index: int) -> GpuDevice | None:
        """The GPU with this index, if there is one."""
        return self.devices[index] if 0 <= index < len(self.devices) else None

    def why_not(self, index: int) -> str:
        """Why ``cuda:index`` cannot be used, as part of a sentence."""
        if self.reason:
            return self.reason
        known = ", ".join(str(device) for device in self.devices)
        return f"there is no cuda:{index}; the driver offers {known}"


def probe(library: str = DRIVER_LIBRARY) -> Probe:
    """Ask the driver what it offers. Never raises and creates no context.

    Args:
        library: the driver's shared library, as the loader finds it.
    """
    try:
        driver = load_driver(library)
    except OSError as error:
        return Probe((), "", f"no NVIDIA driver: {error}")
    except AttributeError as error:
        return Probe((), "", f"{library} is not an NVIDIA driver: {error}")
    try:
        check(driver, driver.cuInit(0), "cuInit")
        version = ctypes.c_int()
        check(driver, driver.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
        count = ctypes.c_int()
        check(driver, driver.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
        devices = tuple(_describe(driver, index) for index in range(count.value))
    except DriverError as error:
        return Probe((), "", f"the NVIDIA driver offers no GPU: {error}")
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    reason = "" if devices else "the NVIDIA driver is there, but it offers no GPU"
    return Probe(devices, cuda_version, reason)


def _describe(driver: ctypes.CDLL, index: int) -> GpuDevice:
    handle = ctypes.c_int()
    check(driver, driver.cuDeviceGet(ctypes.byref(handle), index), "cuDeviceGet")
    name = ctypes.create_string_buffer(256)
    check(driver, driver.cuDeviceGetName(name, len(name), handle), "cuDeviceGetName")
    memory = ctypes.c_size_t()
    check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle), "cuDeviceTotalMem")
    capability = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        status = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        check(driver, status, "cuDeviceGetAttribute")
        capability.append(value.value)
    text = name.value.decode(errors="replace")
    return GpuDevice(index, text, (capability[0], capability[1]), memory.value)


# --- the driver's C interface --------------------------------------------------------------------


class DriverError(Exception):
    """A call of the driver failed; the text names the call, the status and its meaning."""

    def __init__(self, call: str, status: int, meaning: str) -> None:
        super().__init__(f"{call} answered {meaning}")
        self.call = call
        self.status = status


_P = ctypes.c_void_p
_INT_P = ctypes.POINTER(ctypes.c_int)
_SIZE = ctypes.c_size_t
_UINT = ctypes.c_uint
_ADDRESS = ctypes.c_uint64  # CUdeviceptr

#: Argument types by call. Without them ctypes would pass 64-bit addresses as C ints. The names are
#: the exported ones: the header maps ``cuMemAlloc`` to ``cuMemAlloc_v2``, and so on; the names
#: without a suffix are the old 32-bit interface.
_CALLS: dict[str, list[type]] = {
    "cuInit": [_UINT],
    "cuDriverGetVersion": [_INT_P],
    "cuDeviceGetCount": [_INT_P],
    "cuDeviceGet": [_INT_P, ctypes.c_int],
    "cuDeviceGetName": [ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
    "cuDeviceGetAttribute": [_INT_P, ctypes.c_int, ctypes.c_int],
    "cuDeviceTotalMem_v2": [ctypes.POINTER(_SIZE), ctypes.c_int],
    "cuGetErrorName": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuGetErrorString": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(_P), ctypes.c_int],
    "cuDevicePrimaryCtxRelease_v2": [ctypes.c_int],
    "cuCtxSetCurrent": [_P],
    "cuMemAlloc_v2": [ctypes.POINTER(_ADDRESS), _SIZE],
    "cuMemFree_v2": [_ADDRESS],
    "cuMemHostAlloc": [ctypes.POINTER(_P), _SIZE, _UINT],
    "cuMemFreeHost": [_P],
    "cuMemcpyHtoDAsync_v2": [_ADDRESS, _P, _SIZE, _P],
    "cuMemcpyDtoHAsync_v2": [_P, _ADDRESS, _SIZE, _P],
    "cuStreamCreate": [ctypes.POINTER(_P), _UINT],
    "cuStreamSynchronize": [_P],
    "cuStreamDestroy_v2": [_P],
}


def load_driver(library: str = DRIVER_LIBRARY) -> ctypes.CDLL:
    """Load the driver and type its calls.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it is some other library.
    """
    driver = ctypes.CDLL(library)
    for name, arguments in _CALLS.items():
        call = getattr(driver, name)
        call.argtypes = arguments
        call.restype = ctypes.c_int
    return driver


def check(driver: ctypes.CDLL, status: int, call: str) -> None:
    """Raise ``DriverError`` unless ``status`` is success."""
    if status == 0:
        return
    parts = []
    for describe in (driver.cuGetErrorName, driver.cuGetErrorString):
        text = ctypes.c_char_p()
        # For statuses newer than itself a driver may answer without setting the text.
        if describe(status, ctypes.byref(text)) == 0 and text.value:
            parts.append(text.value.decode(errors="replace"))
    meaning = ": ".join(parts) if parts else "an unknown status"
    raise DriverError(call, status, f"{meaning} (status {status})")
