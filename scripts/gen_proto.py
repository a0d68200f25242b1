"""Generate `controlplane/v1` from `proto/controlplane/v1`; `--check` reports drift and writes
nothing."""

from __future__ import annotations

import filecmp
import importlib.resources
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Run protoc (pinned by uv.lock) over every proto of the package, writing below `out`."""
    protos = sorted((ROOT / "proto/controlplane/v1").glob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    bin_dir = Path(sys.executable).parent
    command = [
        sys.executable, "-m", "grpc_tools.protoc",
        f"-I{ROOT / 'proto'}", f"-I{well_known}",
        f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
        f"--python_out={out}", f"--grpc_python_out={out}", f"--mypy_out=quiet:{out}",
        *map(str, protos),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def main() -> int:
    """Generate or check; exit 1 on drift."""
    target = ROOT / "controlplane/v1"
    if "--check" not in sys.argv:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as tmp:
        generate(Path(tmp))
        fresh = Path(tmp) / "controlplane/v1"
        names = sorted(p.name for p in fresh.iterdir())
        _, differing, missing = filecmp.cmpfiles(fresh, target, names, shallow=False)
        if differing or missing:
            print(f"generated code differs from proto/: {differing + missing}; run `make proto`")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
