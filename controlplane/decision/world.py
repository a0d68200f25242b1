"""The topology, compiled once: arrays and positions that every tick needs.

A memo of a pure function: the same topology object gives the same world. It is found by identity,
because hashing a large topology costs more than a tick; holding the topology keeps the identity
true.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from controlplane.decision import codec
from controlplane.decision.weights import Load
from controlplane.model.ids import ChannelName, RegionName
from controlplane.model.topology import Topology

WORLDS_KEPT: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is derived from a topology. Cells are numbered region-major: region x C + channel."""

    topology: Topology
    fingerprint: str
    load: Load
    regions: tuple[RegionName, ...]
    channels: tuple[ChannelName, ...]
    # channels that each region serves
    served_by: dict[RegionName, int]
    region_index: dict[RegionName, int]
    channel_index: dict[ChannelName, int]
    # served cells, in the order of the plan's breakers, and each cell's place among them
    served: tuple[tuple[RegionName, ChannelName], ...]
    place: dict[str, int]
    # regions that serve each channel, as sorted names
    serving: tuple[tuple[RegionName, ...], ...]
    # the different ones among them, and which one is each channel's
    kinds: tuple[tuple[RegionName, ...], ...]
    kind: npt.NDArray[np.intp]

    def cell(self, region: RegionName, channel: ChannelName) -> int:
        """Return the number of a cell; KeyError when unknown."""
        return self.region_index[region] * len(self.channel_index) + self.channel_index[channel]


_worlds: dict[int, World] = {}


def compiled(topology: Topology) -> World:
    """Return the world of a topology."""
    world = _worlds.get(id(topology))
    if world is not None and world.topology is topology:
        return world
    world = _compile(topology)
    while len(_worlds) >= WORLDS_KEPT:
        _worlds.pop(next(iter(_worlds)))
    _worlds[id(topology)] = world
    return world


def _compile(topology: Topology) -> World:
    regions = {region.name: i for i, region in enumerate(topology.regions)}
    channels = {channel.name: i for i, channel in enumerate(topology.channels)}
    serving = tuple(
        tuple(sorted(name for name in channel.regions if name in regions))
        for channel in topology.channels
    )
    served = tuple(
        (region.name, channel.name)
        for region in topology.regions
        for channel, names in zip(topology.channels, serving, strict=True)
        if region.name in names
    )
    kinds = {names: i for i, names in enumerate(dict.fromkeys(serving))}
    return World(
        topology=topology,
        fingerprint=f"{zlib.crc32(codec.dumps(codec.to_json(topology))):08x}",
        load=Load.of(topology),
        regions=tuple(regions),
        channels=tuple(channels),
        served_by=Counter(region for region, _ in served),
        region_index=regions,
        channel_index=channels,
        served=served,
        place={f"{region}/{channel}": i for i, (region, channel) in enumerate(served)},
        serving=serving,
        kinds=tuple(kinds),
        kind=np.array([kinds[names] for names in serving], dtype=np.intp),
    )
