"""The files of the page are what they claim to be, and come from this package alone."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest

from controlplane.adapters.console import load_files

ROOT = files("controlplane") / "console"


def test_vendored_files_have_their_recorded_hashes() -> None:
    """The chart library is byte for byte what was taken from its package: nobody edited it here."""
    recorded = {}
    for line in (ROOT / "vendor/SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        recorded[name] = digest
    vendored = {
        entry.name for entry in (ROOT / "vendor").iterdir() if entry.name.startswith("uPlot")
    }
    assert vendored == set(recorded)
    for name, digest in recorded.items():
        body = (ROOT / "vendor" / name).read_bytes()
        assert hashlib.sha256(body).hexdigest() == digest, name


OURS = sorted(name for name in load_files(ROOT) if not name.startswith("vendor/"))


@pytest.mark.parametrize("name", OURS)
def test_no_file_of_ours_reaches_outside(name: str) -> None:
    """No address of another site, no inline script or style, no markup made from strings."""
    text = (ROOT / name).read_text()
    addresses = set(re.findall(r"https?://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
    assert all(address.startswith("http://${") for address in addresses), addresses
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=\"|\son[a-z]+=\"", text)


def test_every_file_the_page_names_is_served() -> None:
    """A file that was renamed or left out of the package would be a blank page."""
    served = load_files(ROOT)
    page = (ROOT / "index.html").read_text()
    named = re.findall(r"(?:href|src)=\"console/([^\"]+)\"", page)
    imported = {
        target
        for name in served
        if name.endswith(".js") and not name.startswith("vendor/")
        for target in re.findall(r"from \"\./([^\"]+)\"", (ROOT / name).read_text())
    }
    assert set(named) >= imported
    assert set(named) <= set(served)
    assert "SHA256SUMS" not in served
