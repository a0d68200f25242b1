"""How long a lost region keeps its weight, and what it costs the payer: real processes, real runs.

Every run starts a fresh `weir dev` with the default policy, moves the leading replica and the etcd
leader into the region that will be lost (the worst case; `--anywhere` leaves them where they are),
then sends SIGKILL or SIGSTOP to every process of the region at once. Measured until every live
subscriber gives the region nothing: plan watchers at the surviving replicas, and Envoy's own
configuration (asked every 50 ms). The payer is open loop and never sends a payment twice.

    python bench/failover.py --runs 10 --loss kill --loss hang
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from controlplane.clock import SystemClock
from controlplane.dev.ledger import double_charges
from controlplane.dev.measure import ENVOY, Recorder, violations
from controlplane.dev.remote import ask

LOSSES = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}
READY_S = 120
CALM_S = 3
WATCHED_S = 25
"""How long the payer is watched after the loss; covers the slowest channel's deadline."""
GIVE_UP_S = 40
CLOCK = SystemClock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured loss. Times in ms since the signal; -1 when not reached."""

    loss: str
    leader_lost: bool
    etcd_leader_lost: bool
    zero_ms: dict[str, int]
    failed_ms: int
    failed: int
    unknown: int
    outage_ms: int
    double_charges: int
    violations: int

    @property
    def everywhere_ms(self) -> int:
        """When the last live subscriber had followed."""
        times = list(self.zero_ms.values())
        return -1 if -1 in times else max(times)


def get(address: str, path: str, body: bytes | None = None) -> Any:
    """Ask one process; None when it does not answer well."""
    request = urllib.request.Request(f"http://{address}{path}", data=body)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


async def until(condition: Any, what: str, give_up_s: float = GIVE_UP_S) -> Any:
    """Wait for something observable."""
    end_ms = CLOCK.monotonic_ms() + 1000 * give_up_s
    while not (found := condition()):
        if CLOCK.monotonic_ms() > end_ms:
            raise TimeoutError(f"{what}: not within {give_up_s:g} s")
        await CLOCK.sleep_ms(50)
    return found


class Dev:
    """A fresh `weir dev` of this run."""

    def __init__(self, state_dir: Path, load: float) -> None:
        self.state_dir = state_dir
        args = ["dev", "--headless", "--state-dir", str(state_dir), "--load", f"{load:g}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "controlplane.cli.main", *args], stdout=subprocess.DEVNULL
        )

    @property
    def topology(self) -> dict[str, Any]:
        """What runs where; empty until it is ready."""
        if self.process.poll() is not None:
            raise RuntimeError(f"weir dev ended with {self.process.returncode}")
        path = self.state_dir / "topology.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def leader(self) -> str:
        """Region of the leading replica."""
        for replica in self.topology["replicas"]:
            status = get(replica["http"], "/api/status")
            if status and status.get("leader"):
                return str(status["leader_region"])
        return ""

    def etcd(self) -> tuple[str, dict[str, int]]:
        """Return the leading member's name and every member's id (as etcd writes it)."""
        processes = ask(self.state_dir, {"action": "list"})["processes"]
        names = [p["name"] for p in processes if p["role"] == "etcd"]
        members = dict(zip(names, self.topology["etcd"], strict=True))
        ids, leader = {}, ""
        for name, address in members.items():
            status = get(address, "/v3/maintenance/status", b"{}")
            if status:
                ids[name] = int(status["header"]["member_id"])
                if status["leader"] == status["header"]["member_id"]:
                    leader = name
        return leader, ids

    def calm(self) -> bool:
        """Everything runs and the last payments all succeeded."""
        if any(
            p["state"] != "running" for p in ask(self.state_dir, {"action": "list"})["processes"]
        ):
            return False
        plans = [get(r["http"], "/api/plan") for r in self.topology["replicas"]]
        if not all(plans) or len({plan["epoch"] for plan in plans}) != 1:
            return False
        if any(region["phase"] != "healthy" for region in plans[0]["regions"]):
            return False
        seconds = get(self.topology["payer"]["http"], "/stats")["seconds"][-CALM_S:]
        bad = any(second.get(kind) for second in seconds for kind in ("failed", "unknown"))
        return len(seconds) == CALM_S and not bad

    async def lead_from(self, region: str) -> None:
        """Move both leaderships into the region that will be lost."""
        for _ in range(12):
            await until(self.leader, "a replica leads")
            if self.leader() == region:
                break
            ask(self.state_dir, {"action": "kill-leader", "for_s": 0.5})
            await until(self.calm, "calm after moving the leader", READY_S)
        leader, ids = self.etcd()
        target = next(name for name in ids if f"-{region}-" in name)
        if f"-{region}-" not in leader:
            address = dict(zip(ids, self.topology["etcd"], strict=True))[leader]
            body = json.dumps({"targetID": str(ids[target])}).encode()
            get(address, "/v3/maintenance/transfer-leadership", body)
        await until(lambda: f"-{region}-" in self.etcd()[0], "etcd leader moved")
        await until(self.calm, "calm before the loss", READY_S)

    def stop(self) -> None:
        """Stop everything."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def failures_since(dev: Dev, before: int) -> list[dict[str, Any]]:
    """Read what the payer wrote down after the first `before` lines."""
    path = dev.state_dir / "payer.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines[before:]]


async def one_run(loss: str, region: str, load: float, *, worst: bool) -> Run:
    """Start, lose the region, measure, stop."""
    directory = Path(tempfile.mkdtemp(prefix="weir-failover-"))
    dev = Dev(directory / "dev", load)
    try:
        await until(lambda: dev.topology, "weir dev ready", READY_S)
        await until(dev.calm, "calm", READY_S)
        if worst:
            await dev.lead_from(region)
        return await lose(dev, loss, region)
    finally:
        dev.stop()
        shutil.rmtree(directory)


async def lose(dev: Dev, loss: str, region: str) -> Run:
    """Send the signal and watch."""
    topology = dev.topology
    survivors = [r["id"] for r in topology["replicas"] if r["region"] != region] + [ENVOY]
    recorder = Recorder(topology, CLOCK)
    async with recorder.recording():
        await until(lambda: all(map(recorder.latest, survivors)), "every subscriber seen")
        leader_lost = dev.leader() == region
        etcd_leader_lost = f"-{region}-" in dev.etcd()[0]
        before = len(failures_since(dev, 0))
        lost_wall_ms, lost_ms = CLOCK.wall_ms(), CLOCK.monotonic_ms()
        for pid in topology["regions"][region]["pids"]:
            os.kill(pid, LOSSES[loss])
        failed_ms = await watch_phase(topology, region, lost_ms)
        left_ms = WATCHED_S * 1000 - (CLOCK.monotonic_ms() - lost_ms)
        await CLOCK.sleep_ms(max(0, left_ms))
    zero = {name: recorder.zero_since(name, region, lost_ms) for name in survivors}
    failures = failures_since(dev, before)
    ends = [wall_ms(line["at"]) - lost_wall_ms for line in failures]
    return Run(
        loss=loss,
        leader_lost=leader_lost,
        etcd_leader_lost=etcd_leader_lost,
        zero_ms={name: -1 if at is None else at - lost_ms for name, at in zero.items()},
        failed_ms=failed_ms,
        failed=sum(line["outcome"] == "failed" for line in failures),
        unknown=sum(line["outcome"] == "unknown" for line in failures),
        # from the signal until the last payment that did not succeed was sent
        outage_ms=max(
            (end - int(line["waited_ms"]) for end, line in zip(ends, failures, strict=True)),
            default=0,
        ),
        double_charges=len(double_charges(map(Path, topology["ledgers"].values()))),
        violations=len(violations(recorder.seen)),
    )


def wall_ms(text: str) -> int:
    """Read an RFC 3339 time as Unix ms."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


async def watch_phase(topology: dict[str, Any], region: str, lost_ms: int) -> int:
    """Return when a surviving replica first calls the region failed, in ms; -1 when never."""
    addresses = [r["http"] for r in topology["replicas"] if r["region"] != region]
    while CLOCK.monotonic_ms() - lost_ms < WATCHED_S * 1000:
        for address in addresses:
            plan = await asyncio.to_thread(get, address, "/api/plan")
            states = {r["name"]: r["phase"] for r in plan["regions"]} if plan else {}
            if states.get(region) == "failed":
                return CLOCK.monotonic_ms() - lost_ms
        await CLOCK.sleep_ms(100)
    return -1


def report(runs: list[Run]) -> None:
    """Print one line a run and the quantiles of each kind of loss."""
    print("loss  leader etcd-leader  weight 0 at (ms)                       failed at  "
          "failed unknown  last bad payment  twice  broken")  # fmt: skip
    for run in runs:
        zero = "  ".join(f"{name} {ms}" for name, ms in run.zero_ms.items())
        print(
            f"{run.loss:<5} {'lost' if run.leader_lost else '-':<6} "
            f"{'lost' if run.etcd_leader_lost else '-':<11}  {zero:<38} {run.failed_ms:>9}  "
            f"{run.failed:>6} {run.unknown:>7}  {run.outage_ms:>13} ms  {run.double_charges:>5}  "
            f"{run.violations:>6}"
        )
    for loss in sorted({run.loss for run in runs}):
        mine = [run for run in runs if run.loss == loss]
        for label, values in (
            ("weight 0 everywhere, ms", [run.everywhere_ms for run in mine]),
            ("region failed, ms", [run.failed_ms for run in mine]),
            ("payments not answered well", [run.failed + run.unknown for run in mine]),
            ("last such payment sent at, ms", [run.outage_ms for run in mine]),
        ):
            print(f"{loss}: {label}: median {statistics.median(values):.0f}, "
                  f"max {max(values)}, n {len(values)}")  # fmt: skip


def main() -> int:
    """Run the campaign; exit 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind of loss")
    parser.add_argument("--loss", action="append", choices=sorted(LOSSES), help="default: both")
    parser.add_argument("--region", default="east")
    parser.add_argument("--load", type=float, default=40.0, help="payments per second")
    parser.add_argument("--anywhere", action="store_true", help="leave leaders where they are")
    parser.add_argument("--json", type=Path, help="write the runs here too")
    args = parser.parse_args()
    runs: list[Run] = []
    for number in range(args.runs):
        for loss in args.loss or sorted(LOSSES):
            run = asyncio.run(one_run(loss, args.region, args.load, worst=not args.anywhere))
            runs.append(run)
            print(f"run {number + 1} {loss}: weight 0 everywhere after {run.everywhere_ms} ms, "
                  f"{run.failed} failed, {run.unknown} unknown", file=sys.stderr)  # fmt: skip
            if args.json:
                args.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    report(runs)
    broken = any(run.double_charges or run.violations or run.everywhere_ms < 0 for run in runs)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
