"""A stock proxyless gRPC client as a process: xDS settings are global to a process.

Reads lines `count deadline_ms` from stdin, makes so many calls to `xds:///payments.alipay` at once,
and answers each line with how many calls each region took (`error:<code>` for failures) as JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import grpc

METHOD = "/demo.Payments/Pay"


def main() -> None:
    """Answer lines until stdin ends."""
    with grpc.insecure_channel("xds:///payments.alipay") as link:
        pay = link.unary_unary(METHOD)
        for line in sys.stdin:
            count, deadline_ms = (int(word) for word in line.split())
            found: Counter[str] = Counter()
            calls = [pay.future(b"", timeout=deadline_ms / 1000) for _ in range(count)]
            for call in calls:
                try:
                    found[call.result().decode()] += 1
                except grpc.RpcError as error:
                    found[f"error:{error.code().name}"] += 1
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
