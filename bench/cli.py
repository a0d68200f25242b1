"""Whole processes of the command line against the local topology: what a person waits for.

The first rows are the physical limit: a bare interpreter, one that imports grpc, and one that also
makes a call. Usage: python bench/cli.py [runs] [--dark]   (default 20)

With --dark only what the reads call, over open channels, at every replica: with a quorum, while
every etcd member hangs (SIGSTOP), and with those of two regions killed.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from controlplane.dev.servers import scratch_root  # noqa: E402
from controlplane.v1 import admin_pb2 as pb  # noqa: E402
from controlplane.v1 import admin_pb2_grpc  # noqa: E402

WEIR = (sys.executable, "-m", "controlplane.cli.main")
READS = (
    "status", "regions", "channels", "routes", "breakers", "agents", "events", "failovers",
    "explain alipay", "doctor", "lock list", "version", "-o json status", "-o yaml status",
)  # fmt: skip
CALLS = {
    "GetStatus": pb.GetStatusRequest(),
    "ListRegions": pb.ListRegionsRequest(),
    "ListChannels": pb.ListChannelsRequest(),
    "ListAgents": pb.ListAgentsRequest(),
    "ListEvents": pb.ListEventsRequest(),
    "ListFailovers": pb.ListFailoversRequest(),
    "ExplainRoute": pb.ExplainRouteRequest(channel="alipay"),
}
CHANGES = (
    "drain south", "undrain south", "failover --from south", "failback south", "freeze",
    "unfreeze", "override alipay --weights east=7000,north=3000 --for 5m",
    "override alipay --clear",
)  # fmt: skip
ONE_CALL = """
import grpc, sys
from controlplane.v1 import admin_pb2 as pb
with grpc.insecure_channel(sys.argv[1]) as channel:
    channel.unary_unary(
        "/controlplane.v1.AdminService/GetStatus",
        pb.GetStatusRequest.SerializeToString,
        pb.GetStatusResponse.FromString,
    )(pb.GetStatusRequest())
"""


def run_ms(argv: list[str], env: dict[str, str]) -> float:
    """Run a process and return how long it took, in ms."""
    begin = time.perf_counter()
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    took_ms = (time.perf_counter() - begin) * 1000
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: {done.returncode}\n{done.stderr}")
    return took_ms


def show(name: str, times_ms: list[float]) -> None:
    """Print one row."""
    times_ms.sort()
    p99 = times_ms[min(len(times_ms) - 1, len(times_ms) * 99 // 100)]
    print(
        f"{name:58} {statistics.median(times_ms):7.0f} {p99:7.0f} {times_ms[-1]:7.0f}", flush=True
    )


def dark(runs: int, env: dict[str, str], directory: Path) -> None:
    """Print one row a read and state of etcd: calls over open channels, without a process
    around them."""
    topology = json.loads((directory / "topology.json").read_text())
    pids = [pid for region in topology["regions"].values() for pid in region["pids"]]
    members = [p for p in pids if Path(f"/proc/{p}/comm").read_text().strip() == "etcd"]

    def table(state: str, *, answers: bool) -> None:
        for replica in topology["replicas"]:
            there = {**env, "WEIR_SERVER": replica["grpc"]}
            while ('"coordinated": true' in status(there)) is not answers:
                time.sleep(0.1)
        for method, request in CALLS.items():
            times: list[float] = []
            for replica in topology["replicas"]:
                with grpc.insecure_channel(replica["grpc"]) as channel:
                    call = getattr(admin_pb2_grpc.AdminServiceStub(channel), method)
                    call(request)
                    for _ in range(runs):
                        begin = time.perf_counter()
                        call(request)
                        times.append((time.perf_counter() - begin) * 1000)
            show(f"{state}: {method}, {len(topology['replicas'])} replicas", times)

    table("quorum", answers=True)
    for pid in members:
        os.kill(pid, signal.SIGSTOP)
    table("every member hung", answers=False)
    for pid in members:
        os.kill(pid, signal.SIGCONT)
    table("quorum again", answers=True)
    for region in ("east", "north"):
        run_ms([*WEIR, "chaos", "kill-etcd", "--region", region], env)
    table("two regions' members killed", answers=False)


def status(env: dict[str, str]) -> str:
    """Return what `weir status` tells a program."""
    argv = [*WEIR, "-o", "json", "status"]
    return subprocess.run(
        argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout


def main(runs: int, *, in_the_dark: bool) -> int:
    """Start the topology, run everything, print a table."""
    with tempfile.TemporaryDirectory(prefix="weir-cli-", dir=scratch_root()) as directory:
        env = {**os.environ, "WEIR_STATE_DIR": directory}
        dev = subprocess.Popen(
            [*WEIR, "dev", "--headless", "--load", "5"],
            env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            for line in dev.stdout or ():
                if json.loads(line)["type"] == "ready":
                    break
            (dark if in_the_dark else measure)(runs, env, Path(directory))
        finally:
            dev.terminate()
            dev.communicate()
    return 0


def measure(runs: int, env: dict[str, str], directory: Path) -> None:
    """Print one row a command."""
    topology = json.loads((directory / "topology.json").read_text())
    address = topology["replicas"][0]["grpc"]
    limits = {
        "limit: python": ["-c", "pass"],
        "limit: python + import grpc": ["-c", "import grpc"],
        "limit: python + grpc + one call": ["-c", ONE_CALL, address],
    }
    print(f"{runs} runs each, whole process, ms{'':31} median     p99     max")
    for name, args in limits.items():
        show(name, [run_ms([sys.executable, *args], env) for _ in range(runs)])
    for name in READS:
        show(f"weir {name}", [run_ms([*WEIR, *name.split()], env) for _ in range(runs)])
    reason = ("--yes", "--reason", "bench")
    taken: dict[str, list[float]] = {name: [] for name in CHANGES}
    for _ in range(max(3, runs // 4)):
        for name in CHANGES:
            taken[name].append(run_ms([*WEIR, *name.split(), *reason], env))
    for name, times_ms in taken.items():
        show(f"weir {name}", times_ms)


if __name__ == "__main__":
    told = [word for word in sys.argv[1:] if word != "--dark"]
    sys.exit(main(int(told[0]) if told else 20, in_the_dark="--dark" in sys.argv))
