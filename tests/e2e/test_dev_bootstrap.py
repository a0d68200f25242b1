"""From a bare machine to a running demo: make, the fetched uv, the system packages of the tests."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bootstrap(tmp_path: Path) -> ModuleType:
    """Load the script so that it writes below a directory of this test."""
    path = ROOT / "scripts/bootstrap_uv.py"
    spec = importlib.util.spec_from_file_location("bootstrap_uv", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.HOME = tmp_path / ".uv"
    return module


def wheel(script: str) -> bytes:
    """Make a wheel with one binary."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("uv-0.data/scripts/uv", script)
    return packed.getvalue()


def test_the_pinned_wheel_is_checked_and_unpacked(bootstrap: ModuleType) -> None:
    """Bytes with the pinned hash give a binary that runs; any other bytes give an error and leave
    no file behind."""
    good = wheel("#!/bin/sh\necho uv 0\n")
    with pytest.raises(bootstrap.BootstrapError, match="sha256"):
        bootstrap.unpack(good + b"!", hashlib.sha256(good).hexdigest())
    assert not bootstrap.HOME.exists()
    binary = bootstrap.unpack(good, hashlib.sha256(good).hexdigest())
    assert bootstrap.works(binary)
    assert [p.name for p in bootstrap.HOME.iterdir()] == ["bin"]


def test_wheels_are_pinned_for_both_machines(bootstrap: ModuleType) -> None:
    """x86_64 and aarch64 each have the pinned version and a whole sha256."""
    assert set(bootstrap.WHEELS) == {"x86_64", "aarch64"}
    for machine, (url, digest) in bootstrap.WHEELS.items():
        assert machine in url
        assert f"/uv-{bootstrap.VERSION}-" in url
        assert len(bytes.fromhex(digest)) == 32


def test_ways_are_tried_in_turn(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was fetched earlier is used again; where nothing can be had, one line says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for way in ("from_venv", "from_pip", "from_wheel"):
        monkeypatch.setattr(bootstrap, way, lambda: None)
    with pytest.raises(bootstrap.BootstrapError, match="install it yourself"):
        bootstrap.obtain()
    script = wheel("#!/bin/sh\n")
    kept = bootstrap.unpack(script, hashlib.sha256(script).hexdigest())
    assert bootstrap.obtain() == kept


def test_an_old_python_is_told_so(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below Python 3.11 the script ends with 1 and says how to name a newer one."""
    monkeypatch.setattr(bootstrap, "OLDEST_PYTHON", (sys.version_info[0] + 1, 0))
    assert bootstrap.main() == 1
    assert "make PYTHON=" in capsys.readouterr().err


def test_make_offers_what_the_contract_names() -> None:
    """`make` alone lists demo, test, check, bench and chaos, and does nothing else."""
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo", "test", "check", "bench", "chaos", "proto", "help"} <= {
        line.split()[1] for line in listed.splitlines()
    }


def test_missing_system_packages_are_named(tmp_path: Path) -> None:
    """Where apt is not to be had, the setup of the tests stops with 1 and names every package."""
    for tool in ("sed", "sort", "tr"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    script = (ROOT / "scripts/test_setup.sh").read_text()
    script = script.replace('PATH="$PATH:/usr/sbin:/sbin"', "")
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    for package in ("etcd-server", "redis-sentinel", "prometheus-alertmanager", "nftables"):
        assert package in done.stderr
