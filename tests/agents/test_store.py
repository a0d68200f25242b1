"""The plan on disk: whole, old or new, at every moment a machine can die."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agents.store import PlanFile, Saved
from controlplane.dev.servers import scratch_root
from controlplane.model.errors import UnavailableError, WeirError
from tests.agents.plans import plan

STEPS = 7
"""Operations of one write over an older one; `test_the_steps_are_known` proves the number."""


class Crash(BaseException):
    """The process is gone."""


class Syscalls:
    """Counts what a write does to the disk, and crashes before step `at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int = -1) -> None:
        self.at = at
        self.done: list[str] = []
        for owner, name in (
            (os, "fsync"),
            (Path, "open"),
            (Path, "hardlink_to"),
            (Path, "rename"),
        ):
            monkeypatch.setattr(owner, name, self._wrap(name, getattr(owner, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(self.done) == self.at:
                raise Crash
            self.done.append(name)
            return real(*args, **kwargs)

        return call


def save(directory: Path, epoch: int) -> None:
    """Write a plan with this epoch."""
    PlanFile(directory).save(Saved(plan=plan(epoch), highest_epoch=epoch))


def load_epoch(directory: Path) -> int:
    """Return the epoch of the plan on disk; 0 when there is none."""
    saved = PlanFile(directory).load()
    return saved.plan.epoch if saved.plan else 0


def test_round_trip(tmp_path: Path) -> None:
    """What was saved is loaded, byte for byte, with the highest epoch."""
    file = PlanFile(tmp_path)
    assert file.load() == Saved()
    file.save(Saved(plan=plan(7), highest_epoch=9))
    saved = PlanFile(tmp_path).load()
    assert saved.highest_epoch == 9
    assert saved.plan == plan(7)


def test_highest_epoch_without_plan(tmp_path: Path) -> None:
    """An agent that only ever refused plans still remembers how far epochs went."""
    PlanFile(tmp_path).save(Saved(highest_epoch=12))
    assert PlanFile(tmp_path).load() == Saved(highest_epoch=12)


def test_the_steps_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crash tests below cover every step: a new one makes this fail."""
    save(tmp_path, 1)
    calls = Syscalls(monkeypatch)
    save(tmp_path, 2)
    assert calls.done == ["open", "fsync", "hardlink_to", "rename", "rename", "fsync"]
    assert len(calls.done) == STEPS - 1


def powers(directory: Path, done: list[str], before: Path) -> Iterator[None]:
    """Leave the folder as each kind of death can leave it after the steps `done`."""
    yield  # kill -9: the kernel keeps everything
    new = directory / "plan.new"
    if done.count("fsync") == 0 and new.exists():  # power cut: bytes never forced are lost
        size = new.stat().st_size
        for keep in {0, size // 2}:
            os.truncate(new, keep)
            yield
    if done.count("fsync") < 2:  # power cut: renames never forced may be undone
        shutil.rmtree(directory)
        shutil.copytree(before, directory)
        yield


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("older", [0, 1, 2])
def test_every_crash_point_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, older: int
) -> None:
    """A kill -9 or a power cut before each step of a write: the plan loads, and it is the old or the
    new one; the next write succeeds."""
    directory, before = tmp_path / "state", tmp_path / "before"
    directory.mkdir()
    for epoch in range(1, older + 1):
        save(directory, epoch)
    shutil.copytree(directory, before)
    with monkeypatch.context() as patch:
        calls = Syscalls(patch, at=step)
        with contextlib.suppress(Crash):
            save(directory, older + 1)
    for _ in powers(directory, calls.done, before):
        assert load_epoch(directory) in {older, older + 1}
        if step == STEPS - 1:
            assert load_epoch(directory) == older + 1
    save(directory, older + 2)
    assert load_epoch(directory) == older + 2


def test_without_fsync_a_finished_write_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: take the fsync away, and a power cut after a finished write loses it."""
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        calls = Syscalls(patch)
        patch.setattr(os, "fsync", lambda _: None)
        save(tmp_path, 2)
    assert "fsync" not in calls.done
    os.truncate(tmp_path / "plan", 0)  # what a power cut makes of bytes that were never forced
    with capture_logs():
        assert load_epoch(tmp_path) == 1


def test_kill_9_of_a_writing_process(tmp_path: Path) -> None:
    """A real process that writes without pause and is killed: what it said it had saved is there."""
    script = (
        "import itertools, sys; from pathlib import Path\n"
        "from agents.store import PlanFile, Saved; from tests.agents.plans import plan\n"
        "file = PlanFile(Path(sys.argv[1])); file.prepare()\n"
        "for e in itertools.count(1):\n"
        "    file.save(Saved(plan=plan(e), highest_epoch=e)); print(e, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = 0
    while said < 40:
        said = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    said = int(rest[-1]) if rest else said
    assert load_epoch(tmp_path) in {said, said + 1}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_gives_the_previous_plan(data: st.DataObject) -> None:
    """Property: whatever bytes of the file are altered or cut, the previous plan is loaded and the
    damage is named; never an exception, never a wrong plan."""
    with tempfile.TemporaryDirectory(dir=scratch_root()) as name:
        damage_and_load(Path(name), data)


def damage_and_load(directory: Path, data: st.DataObject) -> None:
    """Damage the newest file in some way and load."""
    save(directory, 1)
    save(directory, 2)
    path = directory / "plan"
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        flipped = whole[at] ^ data.draw(st.integers(1, 255))
        damaged = whole[:at] + bytes([flipped]) + whole[at + 1 :]
    path.write_bytes(damaged)
    with capture_logs() as logs:
        saved = PlanFile(directory).load()
    assert saved.plan == plan(1)
    assert [log["event"] for log in logs] == ["plan_file_damaged", "plan_file_lost"]


def test_both_damaged_gives_none(tmp_path: Path) -> None:
    """With nothing intact the agent starts without a plan and says so."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    for name in ("plan", "plan.previous"):
        (tmp_path / name).write_bytes(b"\xff" * 100)
    with capture_logs() as logs:
        assert PlanFile(tmp_path).load() == Saved()
    assert [log["event"] for log in logs].count("plan_file_damaged") == 2


def test_highest_epoch_survives_a_lost_plan(tmp_path: Path) -> None:
    """Going back to the previous plan does not take the highest epoch back further than needed."""
    PlanFile(tmp_path).save(Saved(plan=plan(1), highest_epoch=50))
    PlanFile(tmp_path).save(Saved(plan=plan(2), highest_epoch=40))
    assert PlanFile(tmp_path).load().highest_epoch == 50


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
def test_a_full_disk_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """ENOSPC at any step raises UnavailableError and leaves the old plan."""
    save(tmp_path, 1)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, full)
        with pytest.raises(UnavailableError, match="No space left"):
            save(tmp_path, 2)
    assert load_epoch(tmp_path) == 1


def test_real_full_disk(tmp_path: Path) -> None:
    """A real device without space: writing the file fails as a typed error."""
    (tmp_path / "plan.new").symlink_to("/dev/full")
    with pytest.raises(UnavailableError, match="No space left"):
        save(tmp_path, 1)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A path through a file is a typed error, not a crash."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="Not a directory"):
        PlanFile(tmp_path / "file" / "state").prepare()


def test_one_agent_per_folder(tmp_path: Path) -> None:
    """Two agents must not write over each other; the folder is free again when one ends."""
    first, second = PlanFile(tmp_path), PlanFile(tmp_path)
    first.prepare()
    with pytest.raises(WeirError, match="in use by another agent"):
        second.prepare()
    second.close()
    first.close()
    third = PlanFile(tmp_path)
    third.prepare()
    third.close()
