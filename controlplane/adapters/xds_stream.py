"""The state of one ADS stream, without any input or output.

Theory (xDS transport protocol, state of the world). A client names the resources it wants of each
type; the server answers with a version and a nonce; the client's next request of that type carries
that nonce and is an ACK, or a NACK when `error_detail` is set. Rules kept here:

1. The node is on the first message only.
2. A request whose nonce is not the last one sent for its type is stale and changes nothing: the
   client will answer the newer response too, with its current names.
3. LDS and CDS: an empty first list of names means everything (wildcard), and so does `*`. An empty
   list after names unsubscribes. EDS and RDS have no wildcard.
4. LDS and CDS answers are always whole; a missing resource is deleted. So they are sent even when
   they are empty, while an answer about endpoints or routes is sent only if one is known. Unknown
   names are remembered, and answered when they come to exist.
5. After every change of clusters the endpoints are sent again (the client waits 15 s for them
   otherwise), and after every change of listeners the routes.
6. A version is sent once, and again for names that the client gave up and asks for once more. A
   NACK is not answered; the next change is.
7. Order of sending: clusters, endpoints, listeners, routes.
8. A client that reconnects and already has endpoints of a newer epoch gets none until this replica
   has caught up: nobody is taken back to an older plan.

Failure modes. Too many or too long names raise InvalidInputError: the stream is ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from controlplane.adapters.xds_resources import CDS, EDS, LDS, ORDER, RDS, SHORT
from controlplane.adapters.xds_snapshot import Shape, Snapshot, TypeSet, version_epoch
from controlplane.model.dataplane import PORT_MAX
from controlplane.model.errors import InvalidInputError
from controlplane.model.evidence import check_text
from controlplane.model.ids import Epoch

NAMES_MAX: Final = 1024
"""Names one stream may ask for per type: far above any number of channels."""
NAME_CHARS_MAX: Final = 256
WHOLE: Final = frozenset({CDS, LDS})
FOLLOWS: Final = {CDS: EDS, LDS: RDS}
"""What must be sent again after a type was sent."""
_NONCE_FIELD: Final = b"\x2a"
"""Tag of DiscoveryResponse.nonce (field 5, length-delimited)."""


class Receipt(StrEnum):
    """What a request turned out to be."""

    SUBSCRIBE = "subscribe"
    ACK = "ack"
    NACK = "nack"
    STALE = "stale"
    UNKNOWN_TYPE = "unknown_type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end. `listener` is the address an Envoy asks to listen at."""

    name: str = ""
    kind: str = "envoy"
    region: str = ""
    listener: tuple[str, int] | None = None

    @classmethod
    def of(cls, node: Any) -> Peer:
        """Read a node; raises InvalidInputError for a name that could not travel in a digest."""
        check_text("node.id", node.id)
        check_text("node.locality.region", node.locality.region)
        kind = "grpc" if node.user_agent_name.lower().startswith("grpc") else "envoy"
        return cls(
            name=node.id,
            kind=kind,
            region=node.locality.region,
            listener=_listener(node.metadata),
        )


def _listener(metadata: Any) -> tuple[str, int] | None:
    """Read `listener: {host, port}` of a node's metadata."""
    if "listener" not in metadata.fields:
        return None
    wanted = metadata.fields["listener"].struct_value.fields
    host, port = wanted["host"].string_value, int(wanted["port"].number_value)
    if not host or not 0 < port <= PORT_MAX:
        raise InvalidInputError("node.metadata.listener", "needs host and port (1 to 65535)")
    return host, port


NOBODY: Final = Peer()
"""The other end before its first message."""


@dataclass(frozen=True, slots=True)
class View:
    """What a stream may be sent now: the snapshot in force, whether anybody has vouched for it, and
    the largest staleness bound that has passed since (0: none)."""

    snapshot: Snapshot
    confirmed: bool
    expired_ms: int = 0

    def shape(self, peer: Peer) -> Shape:
        """Return the resources for this kind of client."""
        return self.snapshot.grpc if peer.kind == "grpc" else self.snapshot.envoy

    def get(self, peer: Peer, type_url: str) -> TypeSet | None:
        """Return the resources of one type for this client; None for a type that is not served."""
        if type_url == LDS and peer.kind == "envoy" and peer.listener:
            return self.snapshot.listeners(*peer.listener)
        shape = self.shape(peer)
        return shape.get(type_url, confirmed=self.confirmed, expired_ms=self.expired_ms)


@dataclass(slots=True)
class Subscription:
    """One type on one stream."""

    names: frozenset[str] = frozenset()
    wildcard: bool = False
    named: bool = False  # has ever asked by name
    nonce: str = ""
    version: str = ""  # last sent
    sent_names: frozenset[str] | None = frozenset()
    sent_epoch: Epoch = Epoch(0)
    acked_epoch: Epoch = Epoch(0)
    floor: Epoch = Epoch(0)
    unanswered: bool = False
    again: bool = False
    error: str = ""

    @property
    def wanted(self) -> frozenset[str] | None:
        """Names to send, None for all."""
        return None if self.wildcard else self.names


class Outgoing(NamedTuple):
    """One message to write, serialised."""

    type_url: str
    payload: bytes
    epoch: Epoch


@dataclass(slots=True)
class SotwStream:
    """State of the world: `receive` takes requests, `due` gives what is to be sent."""

    peer: Peer = NOBODY
    types: dict[str, Subscription] = field(default_factory=dict)
    started: bool = False
    asked: bool = False
    """Whether a request may have made something due; a mere acknowledgement does not."""
    _counter: int = 0

    def receive(self, request: Any) -> tuple[Receipt, str]:
        """Take one DiscoveryRequest; return what it was and its type."""
        if not self.started:
            self.peer, self.started = Peer.of(request.node), True
        type_url: str = request.type_url
        if type_url not in ORDER:
            return Receipt.UNKNOWN_TYPE, type_url
        sub = self.types.setdefault(type_url, Subscription())
        if request.response_nonce and request.response_nonce != sub.nonce:
            return Receipt.STALE, type_url
        first = not sub.nonce
        if first and request.version_info:
            sub.floor = version_epoch(request.version_info)
        self.asked |= self._subscribe(sub, type_url, request.resource_names) or first
        if first or not request.response_nonce:
            return Receipt.SUBSCRIBE, type_url
        answered, sub.unanswered = sub.unanswered, False
        if request.HasField("error_detail"):
            sub.error = request.error_detail.message
            return Receipt.NACK, type_url
        if not answered:
            return Receipt.SUBSCRIBE, type_url
        sub.acked_epoch, sub.error = sub.sent_epoch, ""
        return Receipt.ACK, type_url

    @staticmethod
    def _subscribe(sub: Subscription, type_url: str, names: Iterable[str]) -> bool:
        """Take the names of a request; tell whether they changed."""
        wanted = frozenset(names)
        if wanted == sub.names and not sub.wildcard and sub.named:
            return False
        check_names(wanted)
        before = sub.wanted
        if type_url in WHOLE:
            sub.wildcard = "*" in wanted or (not wanted and not sub.named)
        sub.named = sub.named or bool(wanted)
        sub.names = wanted - {"*"}
        if not sub.wildcard:  # what a client gave up it has forgotten, and may ask for again
            sub.sent_names = sub.names if sub.sent_names is None else sub.sent_names & sub.names
        return sub.wanted != before

    def due(self, view: View) -> list[Outgoing]:
        """Return what this stream has to be sent, in order, and note it as sent."""
        out: list[Outgoing] = []
        self.asked = False
        for type_url in ORDER:
            sub = self.types.get(type_url)
            if sub is None:
                continue
            resources = view.get(self.peer, type_url)
            if resources is None or not self._is_due(type_url, sub, resources):
                continue
            out.append(self._send(type_url, sub, resources, sub.wanted))
            follower = self.types.get(FOLLOWS.get(type_url, ""))
            if follower is not None and follower.nonce:
                follower.again = True
        return out

    def refresh(self, view: View) -> list[Outgoing]:
        """Send the endpoints that expire once more, unchanged, so that they do not."""
        sub = self.types.get(EDS)
        shape, resources = view.shape(self.peer), view.get(self.peer, EDS)
        if sub is None or resources is None or sub.version != resources.version or sub.error:
            return []
        names = shape.fail_closed & sub.names
        return [self._send(EDS, sub, resources, names)] if names else []

    @staticmethod
    def _is_due(type_url: str, sub: Subscription, resources: TypeSet) -> bool:
        if type_url not in WHOLE and not resources.known(sub.names):
            return False
        if resources.epoch < sub.floor:
            return False
        grown = sub.sent_names is not None and (
            sub.wanted is None or not sub.names <= sub.sent_names
        )
        return sub.again or not sub.nonce or grown or sub.version != resources.version

    def _send(
        self, type_url: str, sub: Subscription, resources: TypeSet, names: frozenset[str] | None
    ) -> Outgoing:
        self._counter += 1
        sub.nonce = str(self._counter)
        sub.version, sub.sent_epoch = resources.version, resources.epoch
        sub.sent_names = sub.wanted
        sub.unanswered, sub.again = True, False
        sub.floor = max(sub.floor, resources.epoch)
        nonce = sub.nonce.encode()
        payload = resources.body(names) + _NONCE_FIELD + bytes([len(nonce)]) + nonce
        return Outgoing(type_url, payload, resources.epoch)

    @property
    def routes_traffic(self) -> bool:
        """Whether this stream has been sent endpoints: only then can it lag behind a plan."""
        sub = self.types.get(EDS)
        return sub is not None and bool(sub.nonce) and bool(sub.names)

    @property
    def applied_epoch(self) -> Epoch:
        """Epoch of the newest endpoints that were acknowledged; 0 when none."""
        sub = self.types.get(EDS)
        return sub.acked_epoch if sub else Epoch(0)

    def error(self, type_url: str) -> str:
        """Return why the client refused this type last; empty when it did not."""
        sub = self.types.get(type_url)
        return sub.error if sub else ""

    @property
    def refusal(self) -> str:
        """Why the client refuses what it was sent last, with the type; empty when it does not."""
        return refusal(self.types)

    @property
    def waiting(self) -> bool:
        """Whether endpoints were sent that are not acknowledged."""
        sub = self.types.get(EDS)
        return sub is not None and sub.unanswered


def refusal(types: Mapping[str, Any]) -> str:
    """Return `<type>: <error>` of the first refused type."""
    refused = (
        f"{SHORT[url]}: {types[url].error}" for url in ORDER if url in types and types[url].error
    )
    return next(refused, "")


def check_names(names: Iterable[str]) -> None:
    """Refuse more names, or longer ones, than any honest client sends."""
    kept = list(names)
    if len(kept) > NAMES_MAX:
        raise InvalidInputError("resource_names", f"{len(kept)} names; at most {NAMES_MAX}")
    if any(len(name) > NAME_CHARS_MAX for name in kept):
        raise InvalidInputError("resource_names", f"a name exceeds {NAME_CHARS_MAX} characters")
