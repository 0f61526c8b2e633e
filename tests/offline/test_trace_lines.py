"""Lines of a trace file that Python has no room for."""

from __future__ import annotations

from pathlib import Path

import pytest

from entropy_chains.errors import TraceError
from entropy_chains.offline.traces import Step, Trace, append_traces, read_traces


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested too deep"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deep"),
        ("9" * 5000, "thousands of digits"),
    ],
)
def test_what_python_has_no_room_for_is_one_clear_error(tmp_path: Path, value: str, why: str) -> None:
    """Nested too deep, or a number too long: file and line are named, in words that are not Python's own."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "a", "steps": [{"answer": null, "entropy": null, "tokens": 1}], "more": ' + value + "}\n")
    with pytest.raises(TraceError, match=rf"t\.jsonl, line 1: .*{why}") as error:
        read_traces(path)
    assert "recursion" not in str(error.value)
    assert "sys." not in str(error.value)


def test_what_is_nested_too_deep_is_not_written(tmp_path: Path) -> None:
    """A field of the user's own that JSON has no room for: the trace is named, and nothing is written."""
    deep: list[object] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(TraceError, match=r"trace 'a' cannot be written as JSON .it is nested too deep"):
        append_traces(tmp_path / "t.jsonl", [Trace("a", [Step("1", None, 1)], extra={"more": deep})])
    assert not (tmp_path / "t.jsonl").exists()
