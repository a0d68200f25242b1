"""Children that never outlive their parent, and what happens without that protection."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.dev.process import Child
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
