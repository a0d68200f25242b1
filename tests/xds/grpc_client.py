"""A stock proxyless gRPC client as a process: xDS settings are global to a process.

Reads lines `count deadline_ms channel` from stdin, makes so many calls to
`xds:///payments.<channel>` at once, and answers each line with how many calls each region took
(`error:<code>` for failures) as JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import grpc

METHOD = "/demo.Payments/Pay"


def main() -> None:
    """Answer lines until stdin ends."""
    links: dict[str, grpc.Channel] = {}
    for line in sys.stdin:
        count, deadline_ms, channel = line.split()
        found: Counter[str] = Counter()
        if channel not in links:
            links[channel] = grpc.insecure_channel(f"xds:///payments.{channel}")
        pay = links[channel].unary_unary(METHOD)
        calls = [pay.future(b"", timeout=int(deadline_ms) / 1000) for _ in range(int(count))]
        for call in calls:
            try:
                found[call.result().decode()] += 1
            except grpc.RpcError as error:
                found[f"error:{error.code().name}"] += 1
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
