"""No file of the project carries what a merge left behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKERS = ("<" * 7 + " ", "=" * 7 + "\n", ">" * 7 + " ")


def test_no_markers_of_a_merge() -> None:
    """A conflict that somebody committed is text to everybody but its reader."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 100
    found = []
    for name in names:
        try:
            lines = (ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)
        except UnicodeDecodeError:  # a picture
            continue
        found += [f"{name}:{at}" for at, text in enumerate(lines, 1) if text.startswith(MARKERS)]
    assert not found
