"""Envoy's configuration as files, so that it starts with no control plane at all.

Theory. Envoy reads listeners, clusters, routes and endpoints from files and watches their directory
for renames (`path_config_source` with `watched_directory`). An agent that keeps these files current
is a control plane of one machine: whatever else is gone, Envoy starts cold with the last good plan.

Rules
- A file changes only by rename, after its bytes are on disk: nobody ever reads half of one.
- Order: endpoints, clusters, routes, listener. Nothing is named before it exists.
- An older epoch than the one on disk is refused.
- A channel that fails closed carries `endpoint_stale_after`; `write` is repeated while the plan is
  confirmed and renews it. Unconfirmed, its endpoints are written empty: a cold start from an old
  disk must not revive a fenced region.

Failure modes. A full or read-only disk raises OSError; the files stay as they were. A damaged file
is written anew when the agent starts, and Envoy takes it then.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format

from controlplane.adapters import xds_resources as shape
from controlplane.adapters.xds_clusters import envoy_clusters
from controlplane.adapters.xds_resources import CDS, EDS, LDS, RDS
from controlplane.adapters.xds_snapshot import Snapshot, TypeSet, version_epoch
from controlplane.model.dataplane import ChannelTraffic, DataPlane
from controlplane.model.ids import Epoch
from controlplane.model.plan import Plan

CDS_FILE: Final = "cds.json"
RDS_FILE: Final = "rds.json"
LDS_FILE: Final = "lds.json"


def eds_file(channel: str) -> str:
    """Name of the file with one channel's endpoints."""
    return f"eds-{channel}.json"


class XdsFiles:
    """Keeps the files of one Envoy below `directory`, for a listener at `listener`."""

    def __init__(self, directory: Path, dataplane: DataPlane, *, listener: tuple[str, int]) -> None:
        self._directory = directory.absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._dataplane = dataplane
        self._listener = listener
        self._written: dict[str, bytes] = {}
        self._epoch = self._epoch_on_disk()

    @property
    def epoch(self) -> Epoch:
        """Epoch of the files on disk; 0 when there are none."""
        return self._epoch

    def write(self, plan: Plan, *, confirmed: bool) -> bool:
        """Bring the files to a plan; False when the disk already holds a newer one,
        or the plan carries a local override: only committed weights come to disk.

        Call it again with every confirmation: only expiring endpoints are then written again.
        Raises InvalidInputError for a plan that must not reach a data plane.
        """
        if plan.epoch < self._epoch or plan.local is not None:
            return False  # a local override ends with its replica; files outlive everybody
        snapshot = Snapshot.build(plan, self._dataplane)
        endpoints = snapshot.envoy.get(EDS, confirmed=confirmed)
        assert endpoints is not None
        channels = [
            channel
            for channel in self._dataplane.channels
            if shape.cluster_name(channel.name) in endpoints.packed
        ]
        for channel in channels:
            body = endpoints.body(frozenset({shape.cluster_name(channel.name)}))
            renew = confirmed and channel.fail_closed
            self._put(eds_file(channel.name), body, always=renew)
        self._epoch = plan.epoch
        self._put(CDS_FILE, self._clusters(channels))
        self._put(RDS_FILE, snapshot.envoy.types[RDS].body(None))
        self._put(LDS_FILE, self._listeners(channels))
        self._forget({eds_file(channel.name) for channel in channels})
        return True

    def _source(self, name: str) -> dict[str, Any]:
        return shape.file_source(str(self._directory / name), str(self._directory))

    def _clusters(self, channels: list[ChannelTraffic]) -> bytes:
        clusters: dict[str, Any] = {}
        for channel in channels:
            source = self._source(eds_file(channel.name))
            clusters |= envoy_clusters(channel, self._dataplane, source)
        return TypeSet.of(CDS, Epoch(0), clusters).body(None)

    def _listeners(self, channels: list[ChannelTraffic]) -> bytes:
        host, port = self._listener
        listener = shape.envoy_listener(host, port, channels, self._source(RDS_FILE))
        return TypeSet.of(LDS, Epoch(0), {shape.LISTENER: listener}).body(None)

    def _put(self, name: str, body: bytes, *, always: bool = False) -> None:
        if self._written.get(name) == body and not always:
            return
        response = discovery_pb2.DiscoveryResponse.FromString(body)
        text = json_format.MessageToJson(response, preserving_proto_field_name=True)
        path, fresh = self._directory / name, self._directory / f".{name}.new"
        with fresh.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        fresh.rename(path)
        self._written[name] = body

    def _forget(self, kept: set[str]) -> None:
        for path in self._directory.glob(eds_file("*")):
            if path.name not in kept:
                path.unlink()
                self._written.pop(path.name, None)

    def _epoch_on_disk(self) -> Epoch:
        paths = self._directory.glob(eds_file("*"))
        return max((_epoch_of(path) for path in paths), default=Epoch(0))


def _epoch_of(path: Path) -> Epoch:
    """Return the epoch of a file with endpoints; 0 for one that is damaged, it is written anew."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Epoch(0)
    version = found.get("version_info") if isinstance(found, dict) else None
    return version_epoch(version) if isinstance(version, str) else Epoch(0)
