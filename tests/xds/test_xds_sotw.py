"""Conformance of the state-of-the-world stream, rule by rule of the xDS transport protocol.

Each test names the rule of https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol that it
checks. The machine has no input or output, so every interleaving can be written down.
"""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters.xds_resources import CDS, EDS, LDS, ORDER, RDS
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.adapters.xds_stream import NAMES_MAX, Receipt, SotwStream, View
from controlplane.model.dataplane import ChannelTraffic, DataPlane, Endpoint, RegionEndpoints
from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import ChannelName, RegionName
from tests.xds.lab import plan_of

A, B, UNKNOWN = "payments.alipay", "payments.bank", "payments.none"
CLUSTERS = 6
"""Three clusters a channel; `xds_clusters` says why."""
FAR = {"east": 7000, "north": 3000}


def dataplane(*closed: str, connect_ms: int = 250) -> DataPlane:
    """Two channels in two regions; those named fail closed."""
    return DataPlane(
        regions=tuple(
            RegionEndpoints(
                region=RegionName(name), endpoints=(Endpoint(host="10.0.0.1", port=port),)
            )
            for name, port in (("east", 1), ("north", 2))
        ),
        channels=tuple(
            ChannelTraffic(
                name=ChannelName(name), fail_closed=name in closed, connect_timeout_ms=connect_ms
            )
            for name in ("alipay", "bank")
        ),
    )


def view(epoch: int, config: DataPlane | None = None, *, confirmed: bool = True) -> View:
    """Return what may be sent at an epoch."""
    routes = {"alipay": FAR, "bank": FAR}
    return View(Snapshot.build(plan_of(epoch, routes), config or dataplane()), confirmed)


class Client:
    """The other end of one stream: sends requests, reads what is due."""

    def __init__(self, agent: str = "envoy", node: str = "n1") -> None:
        self.stream = SotwStream()
        self.node = base_pb2.Node(id=node, user_agent_name=agent)
        self.last: dict[str, Any] = {}

    def ask(
        self, type_url: str, *names: str, nonce: str = "", version: str = "", error: str = ""
    ) -> Receipt:
        """Send a request."""
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url, resource_names=names, response_nonce=nonce, version_info=version
        )
        if not self.stream.started:
            request.node.CopyFrom(self.node)
        if error:
            request.error_detail.CopyFrom(status_pb2.Status(code=3, message=error))
        return self.stream.receive(request)[0]

    def ack(self, type_url: str, *names: str, error: str = "") -> Receipt:
        """Answer the last response of a type."""
        last = self.last[type_url]
        return self.ask(type_url, *names, nonce=last.nonce, version=last.version_info, error=error)

    def read(self, at: View) -> list[Any]:
        """Return what is due."""
        found = [discovery_pb2.DiscoveryResponse.FromString(m.payload) for m in self.stream.due(at)]
        self.last.update((response.type_url, response) for response in found)
        return found

    def read_types(self, at: View) -> list[str]:
        """Return the types of what is due."""
        return [response.type_url for response in self.read(at)]


def names(response: Any, kind: Any) -> set[str]:
    """Names of the resources in a response."""
    found = set()
    for resource in response.resources:
        message = kind()
        assert resource.Unpack(message)
        found.add(getattr(message, "name", "") or message.cluster_name)
    return found


def eds_names(response: Any) -> set[str]:
    """Cluster names of a response with endpoints."""
    return {
        endpoint_pb2.ClusterLoadAssignment.FromString(r.value).cluster_name
        for r in response.resources
    }


def test_node_only_on_the_first_message() -> None:
    """Only the first request on a stream is guaranteed to carry the node identifier."""
    client = Client(node="first")
    client.ask(CDS)
    client.ask(EDS, A)
    assert client.stream.peer.name == "first"
    assert client.read_types(view(1)) == [CDS, EDS]


def test_wildcard_is_an_empty_first_subscription() -> None:
    """LDS and CDS: no names in the first request means all resources."""
    client = Client()
    client.ask(CDS)
    (response,) = client.read(view(1))
    assert len(response.resources) == CLUSTERS


def test_star_is_a_wildcard_too() -> None:
    """The name `*` subscribes to everything, together with other names."""
    client = Client()
    client.ask(CDS, "*", UNKNOWN)
    (response,) = client.read(view(1))
    assert len(response.resources) == CLUSTERS


def test_wildcard_ends_when_names_follow() -> None:
    """After names, an empty list is an unsubscription and no wildcard."""
    client = Client()
    client.ask(CDS, A)
    (response,) = client.read(view(1))
    assert len(response.resources) == 1
    client.ack(CDS)
    assert client.read(view(1)) == []
    (response,) = client.read(view(2, dataplane(connect_ms=99)))
    assert len(response.resources) == 0


def test_endpoints_have_no_wildcard() -> None:
    """EDS without names subscribes to nothing."""
    client = Client()
    client.ask(EDS)
    assert client.read(view(1)) == []


def test_only_named_resources_are_sent() -> None:
    """EDS answers hold the subscribed assignments."""
    client = Client()
    client.ask(EDS, B)
    (response,) = client.read(view(1))
    assert eds_names(response) == {B}


def test_ack_carries_version_and_nonce_and_is_not_answered() -> None:
    """An ACK ends the exchange: sending it the same version again would never end."""
    client = Client()
    client.ask(CDS)
    client.read(view(1))
    assert client.ack(CDS) is Receipt.ACK
    assert client.read(view(1)) == []


def test_nack_is_not_answered_and_the_next_change_is_sent() -> None:
    """After a NACK the server waits for something new; the epoch is not applied."""
    client = Client()
    client.ask(EDS, A)
    client.read(view(1))
    assert client.ack(EDS, A, error="bad weight") is Receipt.NACK
    assert client.stream.error(EDS) == "bad weight"
    assert client.stream.applied_epoch == 0
    assert client.read(view(1)) == []
    assert client.read_types(view(2)) == [EDS]
    assert client.ack(EDS, A) is Receipt.ACK
    assert client.stream.applied_epoch == 2
    assert client.stream.error(EDS) == ""


def test_stale_nonce_changes_nothing() -> None:
    """'The server should not respond to a request with a stale nonce', whose names are old too."""
    client = Client()
    client.ask(EDS, A)
    client.read(view(1))
    old = client.last[EDS].nonce
    client.read(view(2))
    assert client.ask(EDS, A, B, nonce=old, version="1") is Receipt.STALE
    assert client.read(view(2)) == []
    assert client.stream.applied_epoch == 0
    assert client.ack(EDS, A) is Receipt.ACK
    assert client.stream.applied_epoch == 2


def test_nonces_differ_on_one_stream() -> None:
    """Every response of a stream has its own nonce, over all types."""
    client = Client()
    for type_url in (CDS, LDS):
        client.ask(type_url)
    client.ask(EDS, A)
    client.ask(RDS, "payments")
    nonces = [r.nonce for epoch in (1, 2, 3) for r in client.read(view(epoch))]
    assert len(set(nonces)) == len(nonces)


def test_order_of_types() -> None:
    """Clusters, endpoints, listeners, routes: whatever order they were asked for."""
    client = Client()
    client.ask(RDS, "payments")
    client.ask(LDS)
    client.ask(EDS, A)
    client.ask(CDS)
    assert client.read_types(view(1)) == list(ORDER)


def test_endpoints_follow_every_change_of_clusters() -> None:
    """A changed cluster warms until its endpoints come again, although they did not change."""
    client = Client()
    client.ask(CDS)
    client.ask(EDS, A, B)
    client.read(view(1))
    client.ack(CDS)
    client.ack(EDS, A, B)
    same_epoch = view(1, dataplane(connect_ms=99))
    assert client.read_types(same_epoch) == [CDS, EDS]


def test_subscribing_to_more_sends_more() -> None:
    """A grown list of names is answered at the same version."""
    client = Client()
    client.ask(EDS, A)
    client.read(view(1))
    client.ack(EDS, A)
    assert client.ack(EDS, A, B) is Receipt.SUBSCRIBE
    (response,) = client.read(view(1))
    assert eds_names(response) == {A, B}


def test_unsubscribing_sends_nothing() -> None:
    """A shrunk list of names needs no answer."""
    client = Client()
    client.ask(EDS, A, B)
    client.read(view(1))
    client.ack(EDS, A)
    assert client.read(view(1)) == []


@pytest.mark.parametrize("type_url", ORDER)
def test_who_asks_again_is_answered_again(type_url: str) -> None:
    """A client that gave a name up has forgotten the resource: asking for it again at the same
    version is answered, for it waits."""
    client = Client(agent="gRPC C-core")
    client.ask(type_url, A, B)
    client.read(view(1))
    client.ack(type_url, A)
    assert client.read(view(1)) == []
    client.ack(type_url, A, B)
    assert client.read_types(view(1)) == [type_url]
    client.ack(type_url, A, B)
    assert client.read(view(1)) == []


def test_unknown_names_are_remembered() -> None:
    """A name that does not exist yet is answered when it comes to exist."""
    client = Client()
    client.ask(EDS, A)
    only_b = View(Snapshot.build(plan_of(1, {"bank": FAR}), dataplane()), confirmed=True)
    assert client.read(only_b) == []
    (response,) = client.read(view(2))
    assert eds_names(response) == {A}


def test_listeners_and_clusters_are_whole_even_when_empty() -> None:
    """A gRPC client learns from a whole answer at once that its target does not exist."""
    client = Client(agent="gRPC C-core")
    client.ask(LDS, UNKNOWN)
    (response,) = client.read(view(1))
    assert response.type_url == LDS
    assert len(response.resources) == 0


def test_unknown_types_are_ignored() -> None:
    """A client may ask for types that this server does not know."""
    client = Client()
    assert client.ask("type.googleapis.com/envoy.x.Secret") is Receipt.UNKNOWN_TYPE
    assert client.read(view(1)) == []


def test_reconnecting_client_is_never_taken_back() -> None:
    """A client that knows epoch 9 gets no endpoints from a replica that is still at 8."""
    client = Client()
    client.ask(EDS, A, version="9.cafe")
    assert client.read(view(8)) == []
    assert client.read_types(view(9)) == [EDS]


@pytest.mark.parametrize("type_url", [CDS, LDS, RDS])
def test_a_version_of_digits_is_no_epoch(type_url: str) -> None:
    """Versions of what has no epoch are digests, some of digits only: a client that comes with one
    is served, and gets what changes later."""
    client = Client(agent="gRPC C-core")
    client.ask(type_url, A, version="123456789012")
    assert client.read_types(view(1)) == [type_url]


def test_reconnecting_client_is_answered() -> None:
    """The first request of a stream is answered even if its version is current: the server knows
    nothing of what the client still holds."""
    client = Client()
    at = view(3)
    client.ask(EDS, A, version=at.snapshot.envoy.types[EDS].version)
    assert client.read_types(at) == [EDS]


def test_shapes_differ_by_user_agent() -> None:
    """A gRPC client gets API listeners by the name of its target, Envoy gets none of them."""
    client = Client(agent="gRPC Python")
    client.ask(LDS, A)
    client.ask(RDS, A)
    assert client.read_types(view(1)) == [LDS, RDS]
    assert client.stream.peer.kind == "grpc"


def test_listener_at_the_address_the_node_asks_for() -> None:
    """Envoy's listener is where its node's metadata say; without metadata there is none."""
    client = Client()
    listener = client.node.metadata.get_or_create_struct("listener")
    listener.update({"host": "127.0.0.1", "port": 10_001})
    client.ask(LDS)
    (response,) = client.read(view(1))
    assert len(response.resources) == 1


@pytest.mark.parametrize("port", [0, 70_000, -1])
def test_listener_outside_the_ports_is_refused(port: int) -> None:
    """A node that asks for an impossible address ends its own stream."""
    client = Client()
    client.node.metadata.get_or_create_struct("listener").update({"host": "::1", "port": port})
    with pytest.raises(InvalidInputError, match="listener"):
        client.ask(LDS)


def test_names_are_bounded() -> None:
    """Nobody makes the server remember a million names."""
    client = Client()
    with pytest.raises(InvalidInputError, match="resource_names"):
        client.ask(EDS, *(f"n{i}" for i in range(NAMES_MAX + 1)))


def test_unconfirmed_plan_closes_what_fails_closed() -> None:
    """Without confirmation a fail-closed channel is sent empty, and opens with the next one."""
    client = Client()
    config = dataplane("bank")
    client.ask(EDS, A, B)
    (response,) = client.read(view(1, config, confirmed=False))
    assert _endpoint_counts(response) == {A: 2, B: 0}
    (response,) = client.read(view(1, config))
    assert _endpoint_counts(response) == {A: 2, B: 2}


def test_refresh_renews_only_what_expires() -> None:
    """A refresh sends the expiring assignments of this stream again, with a nonce of its own."""
    client = Client()
    at = view(1, dataplane("bank"))
    client.ask(EDS, A, B)
    client.read(at)
    (message,) = client.stream.refresh(at)
    response = discovery_pb2.DiscoveryResponse.FromString(message.payload)
    assert eds_names(response) == {B}
    assert response.nonce != client.last[EDS].nonce
    assert client.stream.refresh(view(1)) == []


def _endpoint_counts(response: Any) -> dict[str, int]:
    found = {}
    for resource in response.resources:
        cla = endpoint_pb2.ClusterLoadAssignment.FromString(resource.value)
        found[cla.cluster_name] = sum(len(e.lb_endpoints) for e in cla.endpoints)
    return found


moves = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.just(0)),
        st.tuples(st.just("ack"), st.sampled_from([0, 1])),  # 1: refuse
        st.tuples(st.just("stale"), st.just(0)),
        st.tuples(st.just("ask"), st.sampled_from([0, 1, 2])),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(moves)
def test_any_exchange_converges(script: list[tuple[str, int]]) -> None:
    """Whatever was sent, refused and repeated before: once the client acknowledges, it has applied
    the served epoch, nothing more is due, and the applied epoch never went back."""
    client, epoch, applied = Client(), 1, 0
    client.ask(EDS, A)
    client.read(view(epoch))
    for move, argument in script:
        if move == "publish":
            epoch += 1
        elif move == "ack":
            client.ack(EDS, A, error="no" if argument else "")
        elif move == "stale":
            client.ask(EDS, UNKNOWN, nonce="old", version="0")
        else:
            client.ack(EDS, *((A,), (A, B), (B,))[argument])
        client.read(view(epoch))
        assert client.stream.applied_epoch >= applied
        applied = client.stream.applied_epoch
    epoch += 1
    client.read(view(epoch))
    client.ack(EDS, *client.stream.types[EDS].names)
    assert client.stream.applied_epoch == epoch
    assert not client.stream.waiting
    assert client.read(view(epoch)) == []
