"""The services that every server has beside its own, asked over a real connection."""

from __future__ import annotations

import grpc
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controlplane.adapters.grpc_server import add_standard_services


async def test_health_reflection_and_channelz_answer_and_are_listed() -> None:
    """Health follows readiness, channelz answers, and reflection names every service, so that a
    tool without our protos finds them all."""
    ready = True
    server = grpc.aio.server()
    add_standard_services(server, lambda: ready)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as link:
            health = health_pb2_grpc.HealthStub(link)
            state = health_pb2.HealthCheckResponse.ServingStatus
            asked = health_pb2.HealthCheckRequest()
            assert (await health.Check(asked)).status == state.SERVING
            ready = False
            assert (await health.Check(asked)).status == state.NOT_SERVING
            seen = await channelz_pb2_grpc.ChannelzStub(link).GetServers(
                channelz_pb2.GetServersRequest()
            )
            assert seen.server
            calls = reflection_pb2_grpc.ServerReflectionStub(link).ServerReflectionInfo()
            await calls.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await calls.read()
            names = {service.name for service in answer.list_services_response.service}
            assert {
                "grpc.health.v1.Health",
                "grpc.channelz.v1.Channelz",
                "grpc.reflection.v1alpha.ServerReflection",
                "envoy.service.discovery.v3.AggregatedDiscoveryService",
                *(
                    f"controlplane.v1.{name}Service"
                    for name in ("Admin", "Agent", "Lock", "Peer", "Routing")
                ),
            } == names
    finally:
        await server.stop(None)
