"""The command line against replicas of neighbouring versions: it reads them, and says how far apart they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from controlplane import __version__
from controlplane.cli import doctor
from controlplane.cli.exits import DEADLINE, FAILED, OK, UNREACHABLE
from controlplane.dev.process import Child
from controlplane.dev.servers import wait_until
from controlplane.v1 import admin_pb2 as pb
from tests.operate.lab import Lab
from tests.operate.skew import NEWER, OLDER, WORDS, grown, relay, shrunk
from tests.operate.test_cli import READS, driven
from tests.operate.test_lifecycle import config_file, metric

FORMATS = (("-o", "table"), ("-o", "json"), ("-o", "yaml"))
CHANGE = ("freeze", "--reason", "x", "--yes", "-o", "json")
AS_VERSION = """
import sys
import controlplane
controlplane.__version__ = sys.argv.pop(1)
from controlplane.cli import main
main.run()
"""
"""A process of this code that calls itself another version."""


@pytest.mark.parametrize("rewrite", [grown, shrunk])
async def test_reads_understand_the_version_before_and_after(lab: Lab, rewrite) -> None:
    """Unknown fields, words nobody has heard of, and fields that are not there yet: every read command
    prints something in every format, and nothing ends in a traceback."""
    lines = [((*fmt, *line), OK) for line in READS for fmt in FORMATS]
    async with relay(lab.address(), rewrite) as address:
        told, _ = await driven(address, lines)
    for (line, _), (code, out, err) in zip(lines, told, strict=True):
        expected = {OK, FAILED} if "doctor" in line else {OK}  # what is not said is no good news
        assert code in expected, (line, out, err)
        assert not err, (line, err)
        assert out
        if "json" in line:
            json.loads(out)
    whole = "\n".join(out for _, out, _ in told)
    if rewrite is grown:
        assert {"quarantined", "doubtful"} <= {word for word in WORDS.values() if word in whole}
        assert NEWER in whole


async def test_a_change_is_made_at_a_newer_replica(lab: Lab) -> None:
    """A change against the next minor version is accepted and told, with a stage we do not know."""
    async with relay(lab.address(), grown) as address:
        ((code, out, err),), _ = await driven(address, [(CHANGE, OK)])
    assert code == OK, err
    assert json.loads(out)["stage"] == WORDS["stage"]


async def test_a_replica_that_does_not_know_a_command_or_an_option_is_not_misled(lab: Lab) -> None:
    """An older replica lacks a method: the line says so. One that does not know `local` would move everybody's
    payments: the dry run shows that it does not, and nothing is asked of it."""
    readiness = ("readiness", "south", "--lag", "1s", "--reason", "x", "--yes")
    local = ("drain", "south", "--local", "--reason", "x", "--yes")

    async with relay(lab.address(), shrunk, frozenset({"SetReadiness"})) as address:
        told, _ = await driven(address, [(readiness, FAILED)])
    ((code, _, err),) = told
    assert code == FAILED
    assert f"does not know SetReadiness: another version than this weir {__version__}" in err

    replica = lab.replicas["east"]
    async with relay(lab.address(), lambda _: None) as address:
        # etcd answers, so the real replica refuses; one that ignores the field accepts
        ((code, _, err),), _ = await driven(address, [(local, 3)])
        assert "refused by coordinated" in err
    async with relay(lab.address(), lambda _: None, drop_local=True) as address:
        ((code, _, err),), _ = await driven(address, [(local, FAILED)])
    assert code == FAILED
    assert "does not know --local" in err
    assert (await replica.store.intents()).drains == ()


@pytest.mark.parametrize(
    ("cli", "replica", "result"),
    [(__version__, NEWER, "ok"), (NEWER, __version__, "ok"), (OLDER, __version__, "ok"),
     (__version__, "0.3.0", "failed"), ("0.3.0", __version__, "failed")],
)  # fmt: skip
def test_the_doctor_names_who_is_how_far_apart(
    operate_etcd: list[str], tmp_path: Path, cli: str, replica: str, result: str
) -> None:
    """A replica process and a command of other versions, for real: neighbours are well, two minor versions
    apart are not, and the line names both."""
    path, rpc, http = config_file(operate_etcd, tmp_path, f"skew-{cli}-{replica}".replace(".", "-"))
    argv = [sys.executable, "-c", AS_VERSION, replica, "controlplane", "--config", str(path)]
    child = Child("replica", argv, tmp_path / "replica.log").start()
    try:
        wait_until(lambda: metric(http, "weir_leader 1.0"), "leads", 60)
        line = ["--server", f"127.0.0.1:{rpc}", "-o", "json", "doctor"]
        checks: dict[str, dict[str, str]] = {}

        def told() -> bool:
            done = subprocess.run(
                [sys.executable, "-c", AS_VERSION, cli, *line],
                capture_output=True, text=True, timeout=100, check=False,
            )  # fmt: skip
            if done.returncode not in {UNREACHABLE, DEADLINE}:  # too late: asked again
                checks.update({c["check"]: c for c in json.loads(done.stdout)["checks"]})
            return "versions" in checks

        wait_until(told, "doctor", 60)
    finally:
        child.stop()
    assert checks["versions"]["result"] == result, checks["versions"]
    assert checks["versions"]["seen"] == f"this weir {cli}, east-0 {replica}"
    assert bool(checks["versions"]["remedy"]) == (result == "failed")


def test_a_version_that_is_none_is_said_and_survived() -> None:
    """A build without a proper number is a warning, not a traceback."""
    for odd in ("main-4f2a", "7", "0.2rc1.1", "v0.1.0"):
        status = pb.GetStatusResponse(replica="east-0", version=odd)
        (finding,) = doctor._versions(status, Counter())
        assert finding.result == "warning", odd
        assert odd in finding.seen
