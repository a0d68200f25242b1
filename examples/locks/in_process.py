"""A single-writer channel inside one process: the decorator refuses whoever is late.

python examples/locks/in_process.py
"""

# ruff: noqa: INP001, T201, ARG001 - a script that prints

from controlplane.locks.errors import StaleTokenError
from controlplane.locks.guards import MemoryGuard, fenced

guard = MemoryGuard()
sent: list[str] = []


@fenced(guard, "channel/alipay")
def send(message: str, *, token: int) -> None:
    """Write to the channel; runs only under the highest token seen."""
    sent.append(message)


def main() -> None:
    """Two holders, the first of them late."""
    send("from the first", token=(1 << 32) + 1)
    send("from the second", token=(1 << 32) + 2)
    try:
        send("too late", token=(1 << 32) + 1)
    except StaleTokenError as refused:
        print("refused:", refused)
    print(sent)


if __name__ == "__main__":
    main()
