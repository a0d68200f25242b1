"""Tables on a terminal of any width: nothing is cut, nothing runs over the edge."""

from __future__ import annotations

import pytest

from controlplane.cli.output import fitted, word

CAUSE = "no report for 8.4 s, no answered probe, 2 of 2 vantages say DOWN"
COLUMNS = ["REGION", "PHASE", ">LOAD", "SHED", "VOTES", "CAUSE"]
ROWS = [
    ("east", word("failed"), "0.0%", "", "north:down south:down", CAUSE),
    ("north", word("healthy"), "90.9%", "", "south:up", ""),
]


def lines(width: int) -> list[str]:
    """Return the table as plain text."""
    return ["".join(text for text, _ in line) for line in fitted(COLUMNS, ROWS, width)]


@pytest.mark.parametrize("width", range(40, 161, 5))
def test_nothing_is_cut_and_nothing_runs_over(width: int) -> None:
    """At every width all words stand there, whole, and no line is wider than the terminal."""
    shown = lines(width)
    assert max(len(line) for line in shown) <= width
    words = " ".join(shown).split()
    for row in ROWS:
        for cell in row:
            assert set(cell.split()) <= set(words)


def test_what_does_not_fit_stands_below_its_row() -> None:
    """On 60 columns the cause has a line of its own, with its name; on 140 it is a column."""
    narrow, wide = lines(60), lines(140)
    assert narrow[2].startswith("  cause  no report")
    assert wide[0].split() == ["REGION", "PHASE", "LOAD", "VOTES", "CAUSE"]
    assert wide[1].endswith("say DOWN")


def test_numbers_end_where_their_heading_ends() -> None:
    """A column of numbers is aligned to the right, its heading too, also as the last column."""
    for columns in (["A", ">LOAD", "B"], ["A", "B", ">LOAD"]):
        at = columns.index(">LOAD")
        row = ["x", "x", "x"]
        row[at] = "90.90%"
        head, body = ("".join(t for t, _ in line) for line in fitted(columns, [row], 80))
        assert head.index("LOAD") + 4 == body.index("90.90%") + 6


def test_a_column_without_content_is_left_out() -> None:
    """Nothing is shed in most hours: the column is not there then."""
    assert "SHED" not in lines(140)[0]
