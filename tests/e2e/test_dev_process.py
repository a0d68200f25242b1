"""Children that never outlive their parent, and what happens without that protection."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.dev.process import Child, claim_ports, free_port
from tests.support.dev_run import eventually, start_time

PARENT = """
import sys, time
from pathlib import Path
from controlplane.dev import process
if sys.argv[2] == "unprotected":
    process._die_with_parent = lambda parent: None
child = process.Child("sleeper", ["sleep", "300"], Path(sys.argv[1])).start()
print(child.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("protection", ["protected", "unprotected"])
def test_a_child_dies_with_its_parent(tmp_path: Path, protection: str) -> None:
    """Kill -9 of the parent takes the child along, also one that hangs. Without the request to
    the kernel it survives: it is that request, and nothing else, that cleans up."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log"), protection],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        began = start_time(child)
        os.kill(child, signal.SIGSTOP)
        parent.kill()
        parent.wait()
    if protection == "protected":
        eventually(lambda: start_time(child) != began, "the child is gone")
    else:
        assert start_time(child) == began
        os.kill(child, signal.SIGKILL)
        eventually(lambda: start_time(child) != began, "the child is gone now")


def test_a_child_may_be_started_again(tmp_path: Path) -> None:
    """A killed child is seen as dead, keeps its last words, and runs again with another pid."""
    child = Child("talker", ["sh", "-c", "echo alive; sleep 300"], tmp_path / "log").start()
    eventually(lambda: child.tail() == "alive", "its output is in the log")
    first = child.pid
    child.kill()
    assert not child.alive
    child.start()
    assert child.alive
    assert child.pid != first
    assert child.stop() == -signal.SIGTERM


def test_a_drawn_port_is_nobody_elses_while_its_process_lives() -> None:
    """Nothing listens there yet, or no longer: another process that draws ports leaves it alone all
    the same, and so does a later draw of our own. With the process its claim ends."""
    ours = free_port()
    code = (
        "import sys; from controlplane.dev.process import claim_ports, free_port;"
        "print(claim_ports([int(sys.argv[1])]), free_port())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ours)], capture_output=True, text=True, check=True
    )
    taken, theirs = done.stdout.split()
    assert taken == "False"
    assert not claim_ports([ours])
    assert claim_ports([int(theirs)])


def test_of_many_ports_all_are_claimed_or_none() -> None:
    """One of them in use or taken: the others stay free for somebody else."""
    taken = free_port()
    with socket.create_server(("127.0.0.1", 0)) as used:
        for port in (taken, used.getsockname()[1]):
            other = unclaimed()
            assert not claim_ports([other, port])
            assert claim_ports([other])


def unclaimed() -> int:
    """Return a port that is free and that nobody has claimed."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
