"""Delays packets between regions: a TUN device whose reader holds every packet for half a round
trip. The kernel here has no netem.

    python -m tests.fabric.delay DEVICE name=SUBNET,... a:b:MS ...

Packets of one pair keep their order (the delay is constant). The queue is bounded; beyond it
packets are dropped, as a router would.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
QUEUE_MAX = 10_000
"""Packets under way per pair."""
MTU = 2048


def open_tun(name: str) -> int:
    """Open a TUN device; return its file descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def parse(subnets: str, pairs: list[str]) -> dict[tuple[bytes, bytes], float]:
    """Map (source /24, target /24), three bytes each, to seconds."""
    prefix = {}
    for entry in subnets.split(","):
        name, _, network = entry.partition("=")
        prefix[name] = bytes(int(part) for part in network.split("/")[0].split(".")[:3])
    delays = {}
    for pair in pairs:
        a, b, ms = pair.split(":")
        delays[prefix[a], prefix[b]] = delays[prefix[b], prefix[a]] = float(ms) / 1000
    return delays


def forward(fd: int, delays: dict[tuple[bytes, bytes], float]) -> None:
    """Hold and pass on packets for ever."""
    queues: dict[tuple[bytes, bytes], deque[tuple[float, bytes]]] = {
        pair: deque() for pair in delays
    }
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        now = time.perf_counter()
        due = min((queue[0][0] for queue in queues.values() if queue), default=now + 1)
        poll.poll(max(0.0, (due - now) * 1000))
        now = time.perf_counter()
        try:
            while True:
                packet = os.read(fd, MTU)
                pair = (packet[12:15], packet[16:19])
                queue = queues.get(pair)
                if queue is not None and len(queue) < QUEUE_MAX:
                    queue.append((now + delays[pair], packet))
        except BlockingIOError:
            pass
        for queue in queues.values():
            while queue and queue[0][0] <= now:
                os.write(fd, queue.popleft()[1])


if __name__ == "__main__":
    forward(open_tun(sys.argv[1]), parse(sys.argv[2], sys.argv[3:]))
