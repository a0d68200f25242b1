"""What the tests of a module share is made anew for a test that is run again, and after a breakage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = """
import contextlib, itertools, pytest
from tests.support.kept import kept

numbers = itertools.count(1)
log = []

@contextlib.contextmanager
def thing():
    number = next(numbers)
    log.append(f"made {number}")
    yield number
    log.append(f"ended {number}")

@pytest.fixture(scope="module")
def things():
    with kept(thing) as found:
        yield found
    assert log == [
        "made 1", "ended 1", "made 2", "ended 2", "made 3", "ended 3",
    ]

@pytest.fixture
def given(things, request):
    return things.get(request.node)

def test_it_is_shared(given):
    assert given == 1

def test_another_one_for_the_second_chance(given):
    assert given == 2

def test_and_it_is_shared_again(given, things):
    assert given == 2
    things.drop()

def test_another_one_after_it_broke(given):
    assert given == 3
"""


def test_a_second_chance_gets_another_one(tmp_path: Path) -> None:
    """Under the real pytest: the second test fails with the thing that the first one had, and passes
    when it is run again; each thing is ended once, before the next is made."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    options = "-q -p no:randomly -p no:cacheprovider -c /dev/null --reruns 1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "4 passed, 1 rerun" in done.stdout
