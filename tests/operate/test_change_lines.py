"""What a change prints at its end: until when it holds, nothing twice, and what to do when nobody answered."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.cli.change import change
from controlplane.cli.exits import DEADLINE, UNREACHABLE, CallError
from controlplane.cli.options import Options
from controlplane.v1 import admin_pb2 as pb


class Answering(Options):
    """Options whose replica previews anything, and answers the change itself as it was told to."""

    def __init__(self, answer: pb.Operation | CallError) -> None:
        super().__init__()
        self.answer = answer

    def client(self) -> Any:
        """Return itself: it is asked like a client."""
        return self

    def call(self, _stub: Any, _method: str, request: Any, *_rest: Any) -> pb.Operation:
        """Give the preview, or the answer."""
        if request.mutation.validate_only:
            return pb.Operation(validate_only=True)
        if isinstance(self.answer, CallError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("code", [UNREACHABLE, DEADLINE])
def test_a_change_without_an_answer_tells_how_to_repeat_it(code: int) -> None:
    """Nobody knows whether it was done; the id that was drawn makes the repetition safe."""
    with pytest.raises(CallError, match="--request-id 8b5f") as lost:
        change(Answering(CallError("no answer", code)), "freeze", "", reason="x", yes=True,
               request_id="8b5f7a52-9d6c-4a35-9d3e-0c5d6c1c2b13")  # fmt: skip
    assert lost.value.exit_code == code


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (pb.Operation(id="op-1", kind="drain", target="south", stage="completed", converge_ms=1200,
                      message="applied everywhere"),
         "drain south: completed, applied everywhere in 1.2 s [op-1]\n"),
        (pb.Operation(id="op-1", kind="drill", target="south", stage="accepted", converge_ms=-1),
         "drill south: accepted [op-1]\n"),
        (pb.Operation(id="op-1", kind="freeze", stage="accepted", converge_ms=-1, message="waiting",
                      expires_at={"seconds": 1_700_000_000}),
         "freeze: accepted, until 2023-11-14T22:13:20.000Z. waiting [op-1]\n"),
    ],
)  # fmt: skip
def test_a_change_tells_until_when_it_holds_and_nothing_twice(
    capsys: pytest.CaptureFixture[str], answer: pb.Operation, line: str
) -> None:
    """One line."""
    change(Answering(answer), answer.kind, answer.target, reason="x", yes=True)
    assert capsys.readouterr().out == line
