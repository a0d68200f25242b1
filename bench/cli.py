"""Whole processes of the command line against the local topology: what a person waits for.

The first rows are the physical limit: a bare interpreter, one that imports grpc, and one that also
makes a call. Usage: python bench/cli.py [runs] [--dark]   (default 20)

With --dark only the reads: with a quorum, while every etcd member hangs (SIGSTOP), and with two of
three killed.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from controlplane.dev.servers import scratch_root  # noqa: E402

WEIR = (sys.executable, "-m", "controlplane.cli.main")
READS = (
    "status", "regions", "channels", "routes", "breakers", "agents", "events", "failovers",
    "explain alipay", "doctor", "lock list", "version", "-o json status", "-o yaml status",
)  # fmt: skip
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


def run_ms(argv: list[str], env: dict[str, str], fine: tuple[int, ...] = (0,)) -> float:
    """Run a process and return how long it took, in ms; it must end with one of `fine`."""
    begin = time.perf_counter()
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    took_ms = (time.perf_counter() - begin) * 1000
    if done.returncode not in fine:
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
    """Print one row a read command and state of etcd, all asked of one replica that lives."""
    topology = json.loads((directory / "topology.json").read_text())
    south = {r["region"]: r["grpc"] for r in topology["replicas"]}["south"]
    pids = [pid for region in topology["regions"].values() for pid in region["pids"]]
    members = [p for p in pids if Path(f"/proc/{p}/comm").read_text().strip() == "etcd"]
    env = {**env, "WEIR_SERVER": south}

    def table(state: str, *, answers: bool) -> None:
        while ('"coordinated": true' in status(env)) is not answers:
            time.sleep(0.1)
        for name in (*READS[:10], "-o json status"):
            fine = (0, 1) if name == "doctor" else (0,)
            times = [run_ms([*WEIR, *name.split()], env, fine) for _ in range(runs)]
            show(f"{state}: weir {name}", times)

    table("quorum", answers=True)
    for pid in members:
        os.kill(pid, signal.SIGSTOP)
    table("hung", answers=False)
    for pid in members:
        os.kill(pid, signal.SIGCONT)
    table("quorum again", answers=True)
    for region in ("east", "north"):
        run_ms([*WEIR, "chaos", "kill-etcd", "--region", region], env)
    table("killed", answers=False)


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
