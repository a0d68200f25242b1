"""The failover laboratory.

    python -m tests.fabric [SCENARIO ...] [--runs 20] [--rate 20] [--out DIR] [--add]
                          [--minutes M] [--labs 2]
    python -m tests.fabric --peers [PEER ...]
    python -m tests.fabric --report [--out DIR]       Markdown of the results in DIR

Scenarios take turns until each has its runs. With `--add`, runs that DIR holds count: a campaign that
was cut is continued by the same command, and several may work on one DIR at once.

Needs root (namespaces, nft, /dev/net/tun). Enters a network and mount namespace of its own first,
so that nothing outside is touched and nothing is left.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see controlplane/__init__.py

_INSIDE = "FABRIC_INSIDE"


def main() -> int:
    """Parse arguments, enter the namespaces, run."""
    from tests.fabric.scenarios import SCENARIOS  # noqa: PLC0415 - only after the re-exec decision

    parser = argparse.ArgumentParser(prog="python -m tests.fabric", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"any of {', '.join(SCENARIOS)}; default all")
    parser.add_argument("--runs", type=int, default=20, help="runs a scenario")
    parser.add_argument("--rate", type=float, default=20, help="payments per second")
    parser.add_argument("--out", type=Path, default=Path("build/fabric"), help="where results go")
    parser.add_argument("--peers", action="store_true", help="run the others (HAProxy, …) instead")
    parser.add_argument("--add", action="store_true", help="add to the runs that DIR holds")
    parser.add_argument("--minutes", type=float, default=0, help="begin no run after this time")
    parser.add_argument("--labs", type=int, default=1, help="laboratories at work at once")
    parser.add_argument("--report", action="store_true", help="print what DIR holds as Markdown")
    options = parser.parse_args()
    unknown = set() if options.peers else set(options.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.report:
        return _report(options.out)
    if options.labs > 1:
        return _several(options.labs, add=options.add, out=options.out)
    if os.environ.get(_INSIDE) != "1":
        os.environ[_INSIDE] = "1"
        inside = ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, "-m",
                  "tests.fabric", *sys.argv[1:]]  # fmt: skip
        os.execvp("unshare", inside)
    from tests.fabric.campaign import campaign, compare  # noqa: PLC0415

    chosen, act = options.scenarios or list(SCENARIOS), campaign
    if options.peers:
        chosen, act = options.scenarios, compare
    return act(
        chosen,
        runs=options.runs,
        rate=options.rate,
        out=options.out.absolute(),
        add=options.add,
        minutes=options.minutes,
    )


def _report(out: Path) -> int:
    from tests.fabric.peers import FAULTS, PEERS  # noqa: PLC0415
    from tests.fabric.results import Results, markdown  # noqa: PLC0415
    from tests.fabric.scenarios import SCENARIOS  # noqa: PLC0415

    results = Results(out)
    peers = [f"{peer.name}/{fault}" for peer in PEERS for fault in FAULTS]
    for names, file in ((list(SCENARIOS), "table.txt"), (peers, "peers.txt")):
        if tables := results.summarise(names, file):
            sys.stdout.write(markdown(tables) + "\n")
    return 0


def _several(labs: int, *, add: bool, out: Path) -> int:
    """Run the same command several times at once, on one folder of results."""
    if not add:
        shutil.rmtree(out / "runs", ignore_errors=True)
    argv = [sys.executable, "-m", "tests.fabric", *sys.argv[1:], "--add", "--labs", "1"]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(labs)]
    tables = [process.communicate()[0] for process in running]
    sys.stdout.write(tables[-1])
    return max(process.returncode for process in running)


if __name__ == "__main__":
    sys.exit(main())
