"""Write the dashboards as JSON; `--check` only tells whether they are up to date (exit 1 if not)."""

from __future__ import annotations

import sys
from pathlib import Path

from boards import BOARDS
from grafana_foundation_sdk.cog.encoder import JSONEncoder

HERE = Path(__file__).parent / "dashboards"


def rendered() -> dict[Path, str]:
    """Map every file to its content."""
    return {
        HERE / f"{name}.json": JSONEncoder(sort_keys=True, indent=1).encode(make().build()) + "\n"
        for name, make in BOARDS.items()
    }


def main() -> int:
    """Write or check."""
    files = rendered()
    stale = [
        p
        for p in sorted({*HERE.glob("*.json"), *files})
        if not p.exists() or p.read_text() != files.get(p)
    ]
    if "--check" in sys.argv:
        for path in stale:
            print(
                f"{path.name} is not what generate.py makes; run python deploy/grafana/generate.py"
            )
        return 1 if stale else 0
    HERE.mkdir(exist_ok=True)
    for path in stale:
        if path in files:
            path.write_text(files[path])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
