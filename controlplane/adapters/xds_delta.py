"""The state of one incremental ADS stream, without any input or output.

An option: Envoy has an open bug with reconnecting delta streams (envoy #34334), so bootstraps ask
for state of the world. Rules kept here, from the specification of the incremental protocol:

1. The server remembers what the client holds and sends only what differs; what is gone is named in
   `removed_resources`, so is a name that was asked for and does not exist.
2. On a new stream `initial_resource_versions` says what the client holds already.
3. An empty first subscription to LDS or CDS means everything; so does `*`.
4. Subscribing again to a held name sends it again.
5. Subscriptions count whatever the nonce says; a nonce only tells which response is answered.
6. A response that was refused is not repeated; with the next change it is sent again, so that an
   answer to that change is never taken for one to what was refused.
7. Who gives up a name and still has everything (wildcard) is told how that resource stands.

Versions: a digest of the content; for endpoints `<epoch>.<digest>`, where only the digest decides
whether to send. A stream that needs nothing of an epoch has applied it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from controlplane.adapters.xds_resources import EDS, ORDER
from controlplane.adapters.xds_snapshot import TypeSet, version_epoch
from controlplane.adapters.xds_stream import (
    FOLLOWS,
    NOBODY,
    WHOLE,
    Outgoing,
    Peer,
    Receipt,
    View,
    check_names,
    refusal,
)
from controlplane.model.ids import Epoch

ABSENT = ""
"""Held version of a name that was asked for and does not exist."""
UNSURE = "?"
"""Held version where the client must be told again how the resource stands."""


@dataclass(slots=True)
class DeltaSubscription:
    """One type on one stream. `held` maps names to the digests the client has, or ABSENT."""

    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    held: dict[str, str] = field(default_factory=dict)
    nonce: str = ""
    answered: bool = True
    greeted: bool = False
    epoch: Epoch = Epoch(0)
    acked_epoch: Epoch = Epoch(0)
    floor: Epoch = Epoch(0)
    error: str = ""
    sent: frozenset[str] = frozenset()
    """Names in the last response."""
    refused: frozenset[str] = frozenset()


@dataclass(slots=True)
class DeltaStream:
    """Incremental xDS: `receive` takes requests, `due` gives what is to be sent."""

    peer: Peer = NOBODY
    types: dict[str, DeltaSubscription] = field(default_factory=dict)
    started: bool = False
    asked: bool = False
    """Whether a request may have made something due; a mere acknowledgement does not."""
    _counter: int = 0

    def receive(self, request: Any) -> tuple[Receipt, str]:
        """Take one DeltaDiscoveryRequest; return what it was and its type."""
        if not self.started:
            self.peer, self.started = Peer.of(request.node), True
        type_url: str = request.type_url
        if type_url not in ORDER:
            return Receipt.UNKNOWN_TYPE, type_url
        sub = self.types.get(type_url)
        first = sub is None
        if sub is None:
            sub = self.types[type_url] = DeltaSubscription()
            self._resume(sub, type_url, request.initial_resource_versions)
        self._subscribe(sub, type_url, request, first=first)
        named = request.resource_names_subscribe or request.resource_names_unsubscribe
        self.asked = self.asked or first or bool(named)
        if not request.response_nonce:
            return Receipt.SUBSCRIBE, type_url
        if request.response_nonce != sub.nonce:
            return Receipt.STALE, type_url
        sub.answered = True
        if request.HasField("error_detail"):
            sub.error, sub.refused = request.error_detail.message, sub.refused | sub.sent
            return Receipt.NACK, type_url
        sub.acked_epoch, sub.error, sub.refused = sub.epoch, "", frozenset()
        return Receipt.ACK, type_url

    @staticmethod
    def _resume(sub: DeltaSubscription, type_url: str, versions: Any) -> None:
        check_names(versions)
        for name, version in versions.items():
            sub.held[name] = version.rpartition(".")[2]
            if type_url == EDS:
                sub.floor = max(sub.floor, version_epoch(version))

    @staticmethod
    def _subscribe(sub: DeltaSubscription, type_url: str, request: Any, *, first: bool) -> None:
        added = set(request.resource_names_subscribe)
        removed = set(request.resource_names_unsubscribe)
        check_names(sub.names | added)
        if type_url in WHOLE and ("*" in added or (first and not added)):
            sub.wildcard = True
        if "*" in removed:
            sub.wildcard = False
        if not first:
            for name in added:
                sub.held.pop(name, None)
        sub.names = (sub.names | added) - removed - {"*"}
        if sub.wildcard:
            sub.held |= dict.fromkeys(removed - {"*"}, UNSURE)
        else:
            sub.held = {name: held for name, held in sub.held.items() if name in sub.names}

    def due(self, view: View) -> list[Outgoing]:
        """Return what this stream has to be sent, in order, and note it as sent."""
        out: list[Outgoing] = []
        self.asked = False
        for type_url in ORDER:
            sub = self.types.get(type_url)
            resources = view.get(self.peer, type_url) if sub else None
            if sub is None or resources is None or resources.epoch < sub.floor:
                continue
            message = self._difference(sub, resources)
            if message is None:
                continue
            out.append(message)
            follower = self.types.get(FOLLOWS.get(type_url, ""))
            if follower is not None and follower.greeted:
                follower.held = dict.fromkeys(follower.held, UNSURE)
        return out

    def refresh(self, view: View) -> list[Outgoing]:
        """Send the endpoints that expire once more, unchanged, so that they do not."""
        sub = self.types.get(EDS)
        shape, resources = view.shape(self.peer), view.get(self.peer, EDS)
        if sub is None or resources is None or sub.epoch != resources.epoch or sub.error:
            return []
        names = [n for n in sub.names & shape.fail_closed if n in resources.packed]
        return [self._message(sub, resources, names, [])] if names else []

    def _difference(self, sub: DeltaSubscription, resources: TypeSet) -> Outgoing | None:
        wanted = set(resources.packed) if sub.wildcard else sub.names
        changed = [
            name
            for name in sorted(wanted | (sub.names & set(resources.packed)))
            if name in resources.packed and sub.held.get(name) != resources.digests[name]
        ]
        gone = [
            name
            for name in sorted(set(sub.held) | sub.names)
            if name not in resources.packed and sub.held.get(name) != ABSENT
        ]
        sub.epoch = sub.floor = resources.epoch
        if not changed and not gone and (sub.greeted or not sub.wildcard):
            if sub.answered and not sub.error:
                sub.acked_epoch = resources.epoch
            return None
        again = sub.refused & wanted & resources.packed.keys()
        return self._message(sub, resources, sorted(again.union(changed)), gone)

    def _message(
        self, sub: DeltaSubscription, resources: TypeSet, names: Collection[str], gone: list[str]
    ) -> Outgoing:
        self._counter += 1
        sub.sent = frozenset(names)
        sub.nonce, sub.answered, sub.greeted = str(self._counter), False, True
        response = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=resources.version,
            type_url=resources.type_url,
            removed_resources=gone,
            nonce=sub.nonce,
        )
        for name in names:
            digest = resources.digests[name]
            entry = response.resources.add(
                name=name, version=f"{resources.epoch}.{digest}" if resources.epoch else digest
            )
            entry.resource.ParseFromString(resources.packed[name])
            sub.held[name] = digest
        for name in gone:
            if name in sub.names:
                sub.held[name] = ABSENT
            else:
                sub.held.pop(name, None)
        return Outgoing(resources.type_url, response.SerializeToString(), resources.epoch)

    @property
    def routes_traffic(self) -> bool:
        """Whether this stream has been sent endpoints: only then can it lag behind a plan."""
        sub = self.types.get(EDS)
        return sub is not None and any(held != ABSENT for held in sub.held.values())

    @property
    def applied_epoch(self) -> Epoch:
        """Epoch of the newest endpoints that were acknowledged or needed no change; 0 when none."""
        sub = self.types.get(EDS)
        return sub.acked_epoch if sub else Epoch(0)

    @property
    def refusal(self) -> str:
        """Why the client refuses what it was sent last, with the type; empty when it does not."""
        return refusal(self.types)

    @property
    def waiting(self) -> bool:
        """Whether endpoints were sent that are not acknowledged."""
        sub = self.types.get(EDS)
        return sub is not None and not sub.answered

    def error(self, type_url: str) -> str:
        """Return why the client refused this type last; empty when it did not."""
        sub = self.types.get(type_url)
        return sub.error if sub else ""
