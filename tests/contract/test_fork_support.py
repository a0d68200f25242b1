"""gRPC's fork handlers are off wherever Weir starts processes."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import controlplane, os, sys
assert "grpc" not in sys.modules
assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
"""


def test_it_is_off_before_grpc_is_imported() -> None:
    """Importing the package says so, and imports no gRPC itself: the switch is read only once, and a
    child that is forked during a call would hang before it is executed."""
    env = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=env, check=True, timeout=120)
