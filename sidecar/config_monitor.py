"""The part of the configuration that says how live traffic is watched (see ``config.py``)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sidecar.config_runtime import Address, AnyPath, Settings
from sidecar.config_secret import Secret

FieldUse = Literal["keep", "hash", "drop"]


class ChannelConfig(Settings):
    """From the gateway to the monitor: bounded, never waited for; what does not fit is counted."""

    max_bytes: int = Field(
        32 * 2**20, ge=4096, description="Held by each worker for the monitor; beyond it dropped."
    )
    max_exchange_bytes: int = Field(
        4 * 2**20, ge=64, description="Request and response of one exchange; larger ones are not "
        "mirrored, and counted.",
    )  # fmt: skip
    queue_bytes: int = Field(
        64 * 2**20, ge=4096, description="Held by the monitor until they are run."
    )


class MirrorConfig(Settings):
    """Running sampled exchanges again on other variants, at low priority and within a budget."""

    sample_rate: float = Field(
        0.1, ge=0, le=1, description="Share of requests that are taken; shrinks under pressure."
    )
    cpu_share: float = Field(
        0.25, gt=0, le=1,
        description="Of this machine's processor time, for mirrors and comparisons together.",
    )  # fmt: skip
    nice: int = Field(10, ge=0, le=19, description="Priority of the monitor; 19 is the lowest.")
    timeout_s: float = Field(
        10, gt=0, le=3600, description="An execution that takes longer counts as that version's "
        "error, and its copy is started anew.",
    )  # fmt: skip
    noise_rate: float = Field(
        0.1, ge=0, le=1,
        description="Share of the sample on which the reference runs again in another batch, to "
        "know its own noise.",
    )  # fmt: skip
    device: str | None = Field(
        None, pattern=r"^(cpu|cuda(:\d+)?)$",
        description="Where the monitor's copies live; must be chosen when serving is on a GPU.",
    )  # fmt: skip
    memory_max_bytes: int | None = Field(
        None, ge=2**20, description="The mirror child is ended and started anew beyond it; off: "
        "null.",
    )  # fmt: skip


class CasesConfig(Settings):
    """Exchanges that are kept: a sample, the worst, the first of each kind of failure."""

    reservoir: int = Field(50, ge=0, le=100_000, description="A uniform sample of all compared.")
    worst: int = Field(
        20, ge=0, le=100_000, description="The worst of each metric that has a limit."
    )
    per_failure: int = Field(10, ge=0, le=100_000, description="The first of each kind of failure.")
    max_bytes: int = Field(256 * 2**20, ge=4096, description="On disk; then the oldest go.")
    time_to_live_s: float = Field(7 * 86400, gt=0, description="Then a case is deleted.")
    inputs: FieldUse = Field(
        "drop",
        description="What becomes of inputs, which may be personal: keep; hash (SHA-256); drop. "
        "Only a case with its inputs kept can be replayed.",
    )
    fields: dict[str, FieldUse] = Field(
        default_factory=dict, description="The same for single inputs or outputs, by name."
    )


class StoreConfig(Settings):
    """One PostgreSQL database for all replicas: what they count is judged together, and one of them
    decides. Without it the store is a SQLite file in `state_dir`, of this monitor alone."""

    url: Secret = Field(
        description="postgresql://USER:PASSWORD@HOST:5432/DATABASE?sslmode=require; usually "
        "`${NAME}`: environment.",
    )
    sync_s: float = Field(
        1, ge=0.1, le=60, description="How often counts are exchanged with the other replicas."
    )
    lease_s: float = Field(
        10, ge=1, le=300, description="Who decides says so this often anew, or another one does."
    )
    timeout_s: float = Field(5, gt=0, le=60, description="Of connecting, and of one statement.")
    route_wait_s: float = Field(
        30, ge=0, le=3600, description="A gateway that has no route table yet (a fresh pod) is not "
        "ready until it has the fleet's, or for so long; then it routes as configured, and says "
        "so.",
    )  # fmt: skip


class MonitorConfig(Settings):
    """The process that compares, judges and tells; it may fail without any request failing."""

    enabled: bool | None = Field(
        None,
        description="Default: when a variant is a reference, a mirror, a candidate or a previous "
        "version, labels are taken, or something is to be told (`telemetry`).",
    )
    state_dir: AnyPath | None = Field(
        None, description="Evidence and cases are kept here; default: `sidecar-state` beside the "
        "config.",
    )  # fmt: skip
    socket: AnyPath | None = Field(
        None, description="Where gateway and monitor meet; default: `tap.sock` in `state_dir`."
    )
    grpc: Address = Field(
        "127.0.0.1:9002", description="Status, evidence, certificates, cases, verdicts."
    )
    http: Address | None = Field(
        None, description="An HTTP listener: late labels, and the verdict that Argo Rollouts and "
        "Flagger ask for; off: null.",
    )  # fmt: skip
    health: Address | None = Field(
        None, description="A plaintext gRPC health listener of the monitor; off: null."
    )
    pages: AnyPath | None = Field(
        None, description="Where a gateway in a container of its own keeps its counts, for the "
        "monitor to read: a folder on a volume that both mount; default: `pages` beside `socket`.",
    )  # fmt: skip
    store: StoreConfig | None = None
    flush_s: float = Field(
        2, gt=0, le=3600, description="How often evidence is written to the store."
    )
    channel: ChannelConfig = ChannelConfig()
    mirror: MirrorConfig = MirrorConfig()
    cases: CasesConfig = CasesConfig()
