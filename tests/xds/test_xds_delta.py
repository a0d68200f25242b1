"""Conformance of the incremental stream, rule by rule of the specification."""

from __future__ import annotations

from typing import Any, cast

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from controlplane.adapters.xds_delta import DeltaStream
from controlplane.adapters.xds_resources import CDS, EDS, LDS
from controlplane.adapters.xds_session import Session
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.adapters.xds_stream import Receipt, View
from tests.xds.lab import plan_of
from tests.xds.test_xds_sotw import UNKNOWN, A, B, dataplane, view

FAR = {"east": 7000, "north": 3000}
NEAR = {"east": 0, "north": 10_000}
CLUSTERS = sorted(f"{kind}.{name}" for kind in ("always", "payments", "unchecked")
                  for name in ("alipay", "bank"))  # fmt: skip


def mixed(epoch: int, alipay: dict[str, int]) -> View:
    """Return a view in which only one channel's weights change."""
    routes = {"alipay": alipay, "bank": FAR}
    return View(Snapshot.build(plan_of(epoch, routes), dataplane()), confirmed=True)


class Client:
    """The other end of one incremental stream."""

    def __init__(self) -> None:
        self.stream = DeltaStream()
        self.last: dict[str, Any] = {}

    def ask(
        self,
        type_url: str,
        *names: str,
        drop: tuple[str, ...] = (),
        nonce: str = "",
        error: str = "",
        holds: dict[str, str] | None = None,
    ) -> Receipt:
        """Send a request."""
        request = discovery_pb2.DeltaDiscoveryRequest(
            node=base_pb2.Node(id="n1", user_agent_name="envoy"),
            type_url=type_url,
            resource_names_subscribe=names,
            resource_names_unsubscribe=drop,
            response_nonce=nonce,
            initial_resource_versions=holds or {},
        )
        if error:
            request.error_detail.CopyFrom(status_pb2.Status(code=3, message=error))
        return self.stream.receive(request)[0]

    def ack(self, type_url: str, error: str = "") -> Receipt:
        """Answer the last response of a type."""
        return self.ask(type_url, nonce=self.last[type_url].nonce, error=error)

    def read(self, at: View) -> list[Any]:
        """Return what is due."""
        found = [
            discovery_pb2.DeltaDiscoveryResponse.FromString(m.payload) for m in self.stream.due(at)
        ]
        self.last.update((response.type_url, response) for response in found)
        return found

    def names(self, at: View) -> list[list[str]]:
        """Return the names in what is due."""
        return [sorted(r.name for r in response.resources) for response in self.read(at)]


def test_only_what_changed_is_sent() -> None:
    """A change of one channel sends that channel's endpoints and no other."""
    client = Client()
    client.ask(EDS, A, B)
    assert client.names(mixed(1, FAR)) == [[A, B]]
    client.ack(EDS)
    assert client.names(mixed(2, NEAR)) == [[A]]
    client.ack(EDS)
    assert client.stream.applied_epoch == 2


def test_epoch_without_change_is_applied_without_message() -> None:
    """A stream that needs nothing of an epoch has applied it."""
    client = Client()
    client.ask(EDS, A)
    client.read(view(1))
    client.ack(EDS)
    assert client.read(view(2)) == []
    assert client.stream.applied_epoch == 2


def test_epoch_without_change_is_not_applied_while_an_older_one_is_unanswered() -> None:
    """What is not acknowledged is not applied, whatever came after it."""
    client = Client()
    client.ask(EDS, A)
    client.read(view(1))
    client.read(view(2))
    assert client.stream.applied_epoch == 0
    assert client.stream.waiting
    client.ack(EDS)
    assert client.stream.applied_epoch == 2


def test_reconnecting_client_gets_the_difference() -> None:
    """What the client says it holds is not sent again."""
    first = Client()
    first.ask(EDS, A, B)
    first.read(mixed(1, FAR))
    held = {r.name: r.version for r in first.last[EDS].resources}
    again = Client()
    again.ask(EDS, A, B, holds=held)
    assert again.names(mixed(2, NEAR)) == [[A]]


def test_reconnecting_client_is_never_taken_back() -> None:
    """A client that holds epoch 9 gets no endpoints from a replica that is still at 8."""
    client = Client()
    client.ask(EDS, A, holds={A: "9.cafe"})
    assert client.read(view(8)) == []
    assert client.names(view(9)) == [[A]]


def test_wildcard_and_empty_answer() -> None:
    """An empty first subscription means everything, and is answered even if there is nothing."""
    client = Client()
    client.ask(CDS)
    client.ask(LDS)
    assert client.names(view(1)) == [CLUSTERS, []]


def test_what_is_gone_is_named() -> None:
    """A removed resource, and a name that never existed, are told as removed, once."""
    client = Client()
    client.ask(EDS, A, UNKNOWN)
    (response,) = client.read(view(1))
    assert list(response.removed_resources) == [UNKNOWN]
    client.ack(EDS)
    only_b = View(Snapshot.build(plan_of(2, {"bank": FAR}), dataplane()), confirmed=True)
    (response,) = client.read(only_b)
    assert list(response.removed_resources) == [A]
    client.ack(EDS)
    assert client.read(only_b) == []
    assert client.names(view(3)) == [[A]]


def test_unsubscribed_names_are_forgotten() -> None:
    """After an unsubscription changes are not sent; a new subscription sends again."""
    client = Client()
    client.ask(EDS, A, B)
    client.read(mixed(1, FAR))
    client.ack(EDS)
    client.ask(EDS, drop=(A,))
    assert client.read(mixed(2, NEAR)) == []
    client.ask(EDS, A)
    assert client.names(mixed(2, NEAR)) == [[A]]


def test_subscribing_again_sends_again() -> None:
    """A client may ask again for what it was sent: it has lost it."""
    client = Client()
    client.ask(EDS, A)
    client.read(view(1))
    client.ack(EDS)
    client.ask(EDS, A)
    assert client.names(view(1)) == [[A]]


def test_subscription_with_a_stale_nonce_counts() -> None:
    """Only the acknowledgement in it is ignored."""
    client = Client()
    client.ask(EDS, A)
    client.read(view(1))
    client.read(mixed(2, NEAR))
    assert client.ask(EDS, B, nonce="1") is Receipt.STALE
    assert client.stream.applied_epoch == 0
    assert client.names(mixed(2, NEAR)) == [[B]]


def test_refused_change_is_not_repeated() -> None:
    """After a NACK the next change is sent, and only then anything is applied."""
    client = Client()
    client.ask(EDS, A)
    client.read(mixed(1, FAR))
    assert client.ack(EDS, error="no") is Receipt.NACK
    assert client.stream.error(EDS) == "no"
    assert client.read(mixed(2, FAR)) == []
    assert client.stream.applied_epoch == 0
    assert client.names(mixed(3, NEAR)) == [[A]]
    assert client.ack(EDS) is Receipt.ACK
    assert client.stream.applied_epoch == 3


def test_what_was_refused_is_not_forgotten_over_another_change() -> None:
    """The answer to a later change of another channel does not say that the refused one was
    applied: it comes along, and only a response that was taken with it counts."""
    client = Client()
    client.ask(EDS, A, B)
    client.read(mixed(1, FAR))
    client.ack(EDS)
    assert client.names(mixed(2, NEAR)) == [[A]]
    client.ack(EDS, error="no")
    routes = {"alipay": NEAR, "bank": NEAR}
    both = View(Snapshot.build(plan_of(3, routes), dataplane()), confirmed=True)
    assert client.names(both) == [[A, B]]
    client.ack(EDS, error="no")
    assert client.stream.applied_epoch == 1
    assert client.names(mixed(4, FAR)) == [[A, B]]
    client.ack(EDS)
    assert client.stream.applied_epoch == 4
    assert client.stream.refusal == ""


def test_giving_up_a_name_beside_the_wildcard_is_answered() -> None:
    """Who still has everything is told how the resource stands that it gave up by name: it goes on
    by the wildcard, or is gone."""
    client = Client()
    client.ask(CDS, "*", A, UNKNOWN)
    client.read(view(1))
    client.ack(CDS)
    client.ask(CDS, drop=(A,))
    assert client.names(view(1)) == [[A]]
    client.ask(CDS, drop=(UNKNOWN,))
    (response,) = client.read(view(1))
    assert list(response.removed_resources) == [UNKNOWN]
    assert client.read(view(1)) == []


def test_endpoints_follow_every_change_of_clusters() -> None:
    """A changed cluster warms until its endpoints come again."""
    client = Client()
    client.ask(CDS)
    client.ask(EDS, A, B)
    client.read(view(1))
    client.ack(CDS)
    client.ack(EDS)
    assert client.names(view(1, dataplane(connect_ms=99))) == [CLUSTERS, [A, B]]


def test_refresh_renews_only_what_expires() -> None:
    """A refresh sends the expiring assignments again."""
    client = Client()
    at = view(1, dataplane("bank"))
    client.ask(EDS, A, B)
    client.read(at)
    (message,) = client.stream.refresh(at)
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(message.payload)
    assert [r.name for r in response.resources] == [B]


def test_a_confirmation_beside_a_change_renews_what_expires() -> None:
    """A confirmation that comes together with a change of another channel renews the expiring
    endpoints all the same: plans that change with every tick must not let them expire."""
    client, config = Client(), dataplane("bank")
    client.ask(EDS, A, B)
    client.read(view(1, config))
    client.ack(EDS)
    session = Session(client.stream, cast("Any", None))
    routes = {"alipay": NEAR, "bank": FAR}
    changed = View(Snapshot.build(plan_of(2, routes), config), confirmed=True)
    sent = [
        resource.name
        for message in session.due(changed, 1)
        for resource in discovery_pb2.DeltaDiscoveryResponse.FromString(message.payload).resources
    ]
    assert sent == [A, B]
