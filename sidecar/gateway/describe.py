"""What the server says of its models: metadata, configuration, statistics, index."""

from __future__ import annotations

from typing import Any

from sidecar.gateway.pages import SlotSum
from sidecar.gateway.registry import Copy, Entry, Registry
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import model_config_pb2 as config_pb
from sidecar.runtimes.base import TensorSpec

EXTENSIONS: tuple[str, ...] = (
    "classification", "model_configuration", "model_repository",
    "model_repository(unload_dependents)", "schedule_policy", "statistics", "system_shared_memory",
    "binary_tensor_data", "parameters", "trace", "logging",
)  # fmt: skip

_READ_ONLY = frozenset({"RepositoryIndex", "SystemSharedMemoryStatus"})
_READ_WITHOUT_SETTINGS = frozenset({"TraceSetting", "LogSettings"})


def changes_state(method: str, request: Any) -> bool:
    """Whether a control call would change anything."""
    if method in _READ_WITHOUT_SETTINGS:
        return bool(request.settings)
    return method not in _READ_ONLY


def metadata(entry: Entry, copy: Copy) -> pb.ModelMetadataResponse:
    """``ModelMetadata``: full shapes, batch dimension included."""
    signature = copy.runtime.signature
    response = pb.ModelMetadataResponse(
        name=copy.model, versions=list(entry.serving), platform=signature.platform
    )
    for field, specs in (
        (response.inputs, signature.inputs),
        (response.outputs, signature.outputs),
    ):
        for spec in specs:
            field.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


def model_config(entry: Entry, copy: Copy) -> config_pb.ModelConfig:
    """``ModelConfig``, in which ``dims`` leave the batch dimension out."""
    signature = copy.runtime.signature
    batched = signature.max_batch_size > 0
    config = config_pb.ModelConfig(
        name=copy.model,
        platform=signature.platform,
        backend=signature.backend,
        max_batch_size=signature.max_batch_size,
    )
    config.version_policy.all.SetInParent()
    for spec in signature.inputs:
        tensor = config.input.add(name=spec.name, data_type=_type(spec), optional=spec.optional)
        tensor.dims.extend(_dims(spec, batched=batched))
    for spec in signature.outputs:
        output = config.output.add(name=spec.name, data_type=_type(spec))
        output.dims.extend(_dims(spec, batched=batched))
    gpu = copy.runtime.placement.device.startswith("cuda")
    group = config.instance_group.add(name=copy.key, count=1)
    group.kind = (
        config_pb.ModelInstanceGroup.KIND_GPU if gpu else config_pb.ModelInstanceGroup.KIND_CPU
    )
    if copy.batcher is not None:
        batching = entry.config.batching
        config.dynamic_batching.preferred_batch_size.append(batching.max_size)
        config.dynamic_batching.max_queue_delay_microseconds = int(batching.max_delay_ms * 1000)
        config.dynamic_batching.default_queue_policy.max_queue_size = batching.max_queue
    config.response_cache.enable = copy.cached
    config.parameters["variant"].string_value = copy.config.key
    return config


def _type(spec: TensorSpec) -> Any:
    return config_pb.DataType.Value(BY_NAME[spec.datatype].config_name)


def _dims(spec: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    return spec.shape[1:] if batched else spec.shape


def add_statistics(response: pb.ModelStatisticsResponse, copy: Copy, counts: SlotSum) -> None:
    """One version's row: ``counts`` of the copy that serves it, and of its fallback."""
    row = response.model_stats.add(
        name=copy.model,
        version=copy.version,
        last_inference=counts.counters["last_inference_ms"],
        inference_count=counts.counters["inferences"],
        execution_count=counts.counters["executions"],
    )
    for field, name in (
        ("success", "success"),
        ("fail", "fail"),
        ("queue", "queue"),
        ("compute_input", "decode"),
        ("compute_infer", "execute"),
        ("compute_output", "encode"),
        ("cache_hit", "cache_hit"),
        ("cache_miss", "cache_miss"),
    ):
        count, ns = counts.durations[name]
        duration = getattr(row.inference_stats, field)
        duration.count, duration.ns = count, ns
    for size, (executions, input_ns, execute_ns, output_ns) in counts.batches.items():
        batch = row.batch_stats.add(batch_size=size)
        for duration, ns in (
            (batch.compute_input, input_ns),
            (batch.compute_infer, execute_ns),
            (batch.compute_output, output_ns),
        ):
            duration.count, duration.ns = executions, ns
    placement = copy.runtime.placement
    if placement.memory_bytes:
        kind, _, index = placement.device.partition(":")
        row.memory_usage.add(
            type="GPU" if kind == "cuda" else "CPU",
            id=int(index) if index.isdigit() else 0,
            byte_size=placement.memory_bytes,
        )


def repository_index(registry: Registry, *, ready_only: bool) -> pb.RepositoryIndexResponse:
    """Every version of every model, with its state."""
    response = pb.RepositoryIndexResponse()
    for name, entry in registry.entries.items():
        versions = list(
            dict.fromkeys(
                v.version
                for v in entry.config.variants
                if {"serving", "previous"} & set(v.roles) or v.version in entry.serving
            )
        )
        for version in versions:
            loaded = version in entry.serving
            if ready_only and not loaded:
                continue
            response.models.add(
                name=name,
                version=version,
                state="READY" if loaded else entry.state,
                reason="" if loaded else entry.reason,
            )
    return response
