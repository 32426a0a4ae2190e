"""gRPC server reflection, as its clients see it."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from vla_core.testing import make_spec
from vla_serve import PolicyServer
from vla_serve.host.listen import Security
from vla_serve.server import SERVICE
from vla_serve.testing import TimedPolicy

pytest.importorskip("grpc_reflection", reason="needs the extra vla-serve[reflection]")

from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SPEC = make_spec(1)


def test_a_client_learns_the_api_from_the_server():
    with (
        PolicyServer(TimedPolicy(SPEC), reflection=True) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        known = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(known.get_services())
        service = DescriptorPool(known).FindServiceByName(SERVICE)
        method = service.methods_by_name["Predict"]
        assert "observation" in method.input_type.fields_by_name


def ask(channel, version="v1", metadata=()):
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = call(iter([request]), timeout=10, metadata=metadata)
    return {service.name for service in reply.list_services_response.service}


def test_both_names_of_the_protocol_answer_behind_the_token():
    security = Security(token="secret")
    with (
        PolicyServer(TimedPolicy(SPEC), reflection=True, security=security) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        for version in ("v1", "v1alpha"):
            assert SERVICE in ask(channel, version, [("authorization", "Bearer secret")])
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel, version)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_it_is_off_unless_asked_for():
    with PolicyServer(TimedPolicy(SPEC)) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
