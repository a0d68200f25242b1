"""A replica that serves ADS only, as a process of its own: it can be stopped and killed.

Arguments: its port, the ports of east and north. SIGUSR1 publishes the next epoch; every second
epoch sends all payments to north, every other to east.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc.aio

from controlplane.adapters.xds_ads import ADS_SERVER_OPTIONS, AdsService
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.clock import SystemClock
from controlplane.model.dataplane import ChannelTraffic, DataPlane, Endpoint, RegionEndpoints
from controlplane.model.ids import ChannelName, RegionName
from tests.xds.lab import plan


async def main(port: int, east: int, north: int) -> None:
    """Serve until killed."""
    dataplane = DataPlane(
        regions=tuple(
            RegionEndpoints(
                region=RegionName(name), endpoints=(Endpoint(host="127.0.0.1", port=at),)
            )
            for name, at in (("east", east), ("north", north))
        ),
        channels=(ChannelTraffic(name=ChannelName("alipay")),),
    )
    ads = AdsService(clock=SystemClock())

    def publish() -> None:
        epoch = 1 + (ads.snapshot.epoch if ads.snapshot else 0)
        weights = {"east": 0, "north": 10_000} if epoch % 2 == 0 else {"east": 10_000, "north": 0}
        ads.publish(Snapshot.build(plan(epoch, weights), dataplane))

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, publish)
    publish()
    server = grpc.aio.server(options=ADS_SERVER_OPTIONS)
    ads.register(server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*(int(argument) for argument in sys.argv[1:4])))
