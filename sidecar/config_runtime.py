"""The part of the configuration that says what executes a variant (see ``config.py``)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

DatatypeName = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BF16", "BYTES",
]  # fmt: skip
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=_NAME, max_length=200)]


def _version_from_number(value: Any) -> Any:
    return str(value) if type(value) is int else value


# `version: 2` without quotes is what everybody writes first; 1.0 is refused, for 1.10 would be 1.1.
Version = Annotated[
    str,
    Field(pattern=_NAME, max_length=200),
    BeforeValidator(
        _version_from_number, json_schema_input_type=Annotated[str, Field(pattern=_NAME)] | int
    ),
]


class Settings(BaseModel):
    """The base of every node: frozen, and an unknown key is a mistake."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=False,
        allow_inf_nan=False,
        # Only the root's validator is ever used; building one for each node costs start-up time.
        defer_build=True,
    )


def _relative_to_config(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base_dir")
    if base is None:
        return path
    try:
        return (Path(base) / path.expanduser()).resolve()
    except RuntimeError:  # ~someone: no such user
        message = f"{str(path)!r}: the home directory is not known; write the whole path"
        raise ValueError(message) from None


def _existing(path: Path, info: ValidationInfo, *, folder: bool = False) -> Path:
    resolved = _relative_to_config(path, info)
    if not (info.context or {}).get("check_files"):
        return resolved
    message = None
    try:
        is_folder = stat.S_ISDIR(resolved.stat().st_mode)
    except FileNotFoundError:
        message = f"no such file: {path} (paths are relative to the config file)"
    except OSError as error:  # a name too long, a folder that may not be entered
        message = f"{path} cannot be read: {error.strerror}"
    else:
        if is_folder != folder:
            message = f"{path} is {'a folder' if is_folder else 'not a folder'}"
        elif not os.access(resolved, os.R_OK):
            message = f"{path} cannot be read: this user has no right to"
    if message is not None:
        raise ValueError(message)
    return resolved


def _existing_folder(path: Path, info: ValidationInfo) -> Path:
    return _existing(path, info, folder=True)


def check_address(value: str, info: ValidationInfo) -> str:
    """Check ``host:port`` or ``unix:path``; a socket's path is made absolute like any other.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if value.startswith("unix:"):
        name = value.removeprefix("unix:").removeprefix("//")
        path = str(_relative_to_config(Path(name), info)) if name else ""
        if not path or len(os.fsencode(path)) > _UNIX_PATH_BYTES_MAX:
            message = f"a socket's path has 1 to {_UNIX_PATH_BYTES_MAX} bytes, not {len(path)}"
            raise ValueError(message)
        return f"unix:{path}"
    if "//" in value:
        message = f"{value!r} is a URL; write host:port (127.0.0.1:9000), without a scheme"
        raise ValueError(message)
    host, colon, port = value.rpartition(":")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    if (
        not (colon and host and port.isascii() and port.isdigit())
        or len(port) > 5
        or int(port) > 65535
        or (":" in host and not is_ipv6)
        or any(character.isspace() for character in value)
    ):
        message = f"{value!r} is not an address; write host:port (127.0.0.1:9000, [::1]:9000)"
        raise ValueError(message)
    return value


def _check_target(value: str, info: ValidationInfo) -> str:
    if value.startswith(("dns:", "ipv4:", "ipv6:", "xds:")):
        return value  # gRPC's own name syntax; it is read by gRPC alone
    return check_address(value, info)


# sockaddr_un holds 108 bytes, the last of them a NUL.
_UNIX_PATH_BYTES_MAX = 107

AnyPath = Annotated[Path, AfterValidator(_relative_to_config)]
ExistingPath = Annotated[Path, AfterValidator(_existing)]
ExistingFolder = Annotated[Path, AfterValidator(_existing_folder)]
Address = Annotated[str, AfterValidator(check_address)]
Target = Annotated[str, AfterValidator(_check_target)]


class TensorConfig(Settings):
    """One input or output, for artifacts that do not carry it (TorchScript, state_dict)."""

    name: str = Field(min_length=1, description="As clients write it.")
    datatype: DatatypeName = Field(description="The protocol's name of it.")
    shape: tuple[Annotated[int, Field(ge=-1)], ...] = Field(
        description="Full shape with the batch dimension; -1 where any size is allowed."
    )


class WarmUpConfig(Settings):
    """Executions before a copy counts as ready, so that the first user does not pay for them."""

    runs: int = Field(1, ge=0, le=1000, description="Executions of each size; 0: none.")
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Batch sizes to warm up; default: 1 (and the largest batch, if batching)."
    )


class _InProcess(Settings):
    path: ExistingPath = Field(description="The model file, relative to the config file.")
    device: Device = Field("cpu", description="cpu, cuda, or cuda:0.")
    max_batch_size: int | None = Field(
        None, ge=0, le=65536,
        description="Largest first dimension accepted; 0: the model has no batch dimension.",
    )  # fmt: skip
    warm_up: WarmUpConfig = WarmUpConfig()


class OnnxRuntimeConfig(_InProcess):
    """ONNX Runtime, in process."""

    kind: Literal["onnxruntime"]
    intra_op_threads: int = Field(
        1, ge=0, le=1024,
        description="Threads inside one operator; 0: as many as cores. More than 1 only pays for "
        "large models with few requests at a time.",
    )  # fmt: skip
    inter_op_threads: int = Field(
        1, ge=0, le=1024, description="Threads that run independent operators; 0: as many as cores."
    )
    graph_optimization: Literal["disabled", "basic", "extended", "all"] = Field(
        "all", description="How far ONNX Runtime may rewrite the model."
    )
    memory_arena: bool = Field(
        True, description="Keep freed memory for the next run; off saves memory, costs time."
    )
    session_options: dict[str, str] = Field(
        default_factory=dict, description="Passed to SessionOptions.add_session_config_entry."
    )
    provider_options: dict[str, str] = Field(
        default_factory=dict, description="Options of the device's execution provider."
    )
    tf32: bool = Field(False, description="Allow TF32 matrix products on CUDA devices.")


class PyTorchConfig(_InProcess):
    """PyTorch, in process: exported programs, AOTInductor packages, TorchScript, state_dict."""

    kind: Literal["pytorch"]
    format: Literal["auto", "exported", "aoti", "torchscript", "state_dict"] = Field(
        "auto", description="What the file is; auto: told by its contents."
    )
    factory: str | None = Field(
        None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="module:callable that returns the nn.Module a state_dict is loaded into.",
    )  # fmt: skip
    factory_path: ExistingFolder | None = Field(
        None, description="A folder put on sys.path for `factory`."
    )
    factory_args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of `factory`."
    )
    intra_op_threads: int = Field(
        1, ge=0, le=1024, description="torch.set_num_threads of the process; 0: torch's default."
    )
    precision: Literal["as_exported", "fp32", "fp16", "bf16"] = Field(
        "as_exported", description="Cast weights of a TorchScript or state_dict module."
    )
    tf32: bool = Field(False, description="Allow TF32 matrix products on CUDA devices.")
    deterministic: bool = Field(False, description="Only deterministic algorithms; slower.")

    @model_validator(mode="after")
    def _factory(self) -> PyTorchConfig:
        if self.format == "state_dict" and self.factory is None:
            message = "a state_dict holds only weights; name the module's `factory` too"
            raise ValueError(message)
        return self


class ShapeRange(Settings):
    """One input's shapes in an optimization profile: min <= opt <= max, dimension by dimension."""

    min: tuple[Annotated[int, Field(ge=0)], ...] = Field(description="The smallest shape.")
    opt: tuple[Annotated[int, Field(ge=0)], ...] = Field(description="The shape to be fast for.")
    max: tuple[Annotated[int, Field(ge=0)], ...] = Field(description="The largest shape.")

    @model_validator(mode="after")
    def _ordered(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            message = "min, opt and max must have the same number of dimensions"
            raise ValueError(message)
        for low, middle, high in zip(self.min, self.opt, self.max, strict=True):
            if not low <= middle <= high:
                message = f"every dimension needs min <= opt <= max, not {low}, {middle}, {high}"
                raise ValueError(message)
        return self


class _TensorRTBase(_InProcess):
    device: Device = Field("cuda:0", description="cuda, or cuda:0.")
    cache_dir: AnyPath | None = Field(
        None, description="Where engines built from ONNX are kept; default: beside the model."
    )
    profiles: tuple[dict[str, ShapeRange], ...] = Field(
        (), description="Optimization profiles: input name to its min, opt and max shape."
    )
    workspace_bytes: int | None = Field(
        None, ge=0, description="Scratch memory a tactic may take; default: TensorRT's own."
    )
    optimization_level: int | None = Field(
        None, ge=0, le=5, description="How long the builder searches; default: TensorRT's own."
    )
    tf32: bool = Field(False, description="Allow TF32 matrix products.")
    contexts: int = Field(2, ge=1, le=64, description="Execution contexts: requests at one time.")


class TensorRTConfig(_TensorRTBase):
    """TensorRT: an engine, or an ONNX file built on first start."""

    kind: Literal["tensorrt"]


class TensorRTRTXConfig(_TensorRTBase):
    """TensorRT for RTX: the same code over the other library."""

    kind: Literal["tensorrt_rtx"]


class ClientTlsConfig(Settings):
    """How to trust another server, and be trusted by it."""

    ca: ExistingPath | None = Field(None, description="PEM; default: the system's roots.")
    certificate: ExistingPath | None = Field(None, description="PEM; for mutual TLS, with `key`.")
    key: ExistingPath | None = Field(None, description="PEM, without a passphrase.")
    server_name: str | None = Field(None, description="Expect this name in its certificate.")

    @model_validator(mode="after")
    def _pair(self) -> ClientTlsConfig:
        if (self.certificate is None) != (self.key is None):
            message = "certificate and key go together"
            raise ValueError(message)
        return self


class RemoteConfig(Settings):
    """Another server that speaks the protocol over gRPC: the usual case in a model pod."""

    kind: Literal["remote"]
    address: Target = Field(description="host:port, unix:path, or a name in gRPC's own syntax.")
    model_name: str | None = Field(None, description="Its name there; default: the same.")
    model_version: str | None = Field(
        None, description="Its version there; default: let the server choose."
    )
    dialect: Literal["triton", "kserve", "mlserver"] = Field(
        "triton", description="What the server speaks; streams and metadata differ."
    )
    tls: ClientTlsConfig | None = None
    timeout_s: float = Field(60, gt=0, le=86400, description="When the client sets no deadline.")
    connect_timeout_s: float = Field(
        30, gt=0, le=3600, description="How long start-up waits for the server to be ready."
    )
    max_message_bytes: int = Field(
        256 * 2**20, ge=4096, le=2**31 - 1, description="The largest answer taken from it."
    )
    warm_up: WarmUpConfig = WarmUpConfig(runs=0)


RuntimeConfig = Annotated[
    OnnxRuntimeConfig | PyTorchConfig | TensorRTConfig | TensorRTRTXConfig | RemoteConfig,
    Field(discriminator="kind"),
]
