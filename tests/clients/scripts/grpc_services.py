"""What generic gRPC tools do: reflection (as grpcurl does) and health v1 (as probes do)."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import harness
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from harness import Target, equal, holds, refused

SERVICE = "inference.GRPCInferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING


def channel(target: Target) -> grpc.Channel:
    if target.ca is None:
        return grpc.insecure_channel(target.grpc)
    with open(target.ca, "rb") as pem:  # noqa: PTH123
        return grpc.secure_channel(target.grpc, grpc.ssl_channel_credentials(pem.read()))


def status(error: Any) -> str:
    return str(error.code().name)


def check_reflection_lists_services(target: Target) -> None:
    with channel(target) as opened:
        found = set(ProtoReflectionDescriptorDatabase(opened).get_services())
    for name in (SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"):
        holds(name in found, f"{name} is not listed: {sorted(found)}")


def check_reflection_describes_the_service(target: Target) -> None:
    with channel(target) as opened:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(opened))
        methods = {m.name: m for m in pool.FindServiceByName(SERVICE).methods}
        for name in (
            "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata",
            "ModelInfer", "ModelStreamInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex",
            "RepositoryModelLoad", "RepositoryModelUnload", "SystemSharedMemoryStatus",
            "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus",
            "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings",
        ):  # fmt: skip
            holds(name in methods, f"{name} is not described: {sorted(methods)}")
        stream = methods["ModelStreamInfer"]
        equal((stream.client_streaming, stream.server_streaming), (True, True), "streaming")
        # The imported file must come too, or a tool cannot print a ModelConfig.
        config = pool.FindMessageTypeByName("inference.ModelConfig")
        holds("max_batch_size" in config.fields_by_name, "ModelConfig has no max_batch_size")


def check_call_made_from_reflection_alone(target: Target) -> None:
    """No generated code: messages are made of what the server says of itself."""
    with channel(target) as opened:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(opened))
        method = pool.FindServiceByName(SERVICE).methods_by_name["ModelMetadata"]
        request = GetMessageClass(method.input_type)(name="add_sub")
        call = opened.unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        answer = call(request, timeout=60)
    equal([tensor.name for tensor in answer.inputs], ["INPUT0", "INPUT1"], "inputs")


def check_unknown_method(target: Target) -> None:
    with channel(target) as opened:
        for path in (f"/{SERVICE}/Nonesuch", "/made.up.Service/Call"):
            call = opened.unary_unary(path)
            with refused(grpc.RpcError, "UNIMPLEMENTED", status=status):
                call(b"", timeout=60)


def check_health_check(target: Target) -> None:
    with channel(target) as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        for name in ("", SERVICE):
            request = health_pb2.HealthCheckRequest(service=name)
            equal(stub.Check(request, timeout=60).status, SERVING, f"status of {name!r}")
        request = health_pb2.HealthCheckRequest(service="nonesuch")
        with refused(grpc.RpcError, "NOT_FOUND", status=status):
            stub.Check(request, timeout=60)


def check_health_watch(target: Target) -> None:
    with channel(target) as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        # More watches than a small pool has threads: none may hold one.
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
                   for _ in range(40)]  # fmt: skip
        for watch in watches:
            equal(next(watch).status, SERVING, "first status")
        request = health_pb2.HealthCheckRequest()
        equal(stub.Check(request, timeout=60).status, SERVING, "Check meanwhile")
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nonesuch"), timeout=60)
        equal(next(unknown).status, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, "unknown")
        for watch in [*watches, unknown]:
            watch.cancel()


def check_plaintext_health_listener(target: Target) -> None:
    """It answers probes, and nothing else: inference stays behind the listener with TLS."""
    with grpc.insecure_channel(target.health) as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        equal(stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status, SERVING, "status")
        with refused(grpc.RpcError, "UNIMPLEMENTED", status=status):
            opened.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=60)


if __name__ == "__main__":
    harness.main(dict(vars(sys.modules["__main__"])))
