"""The lines of a trace file: read one at a time, and what a killed recorder leaves of the last one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from entropy_chains.errors import TraceError
from entropy_chains.files import PathLike
from entropy_chains.validation import UTF_16, read_json, refuse_constant, utf8_text

_DECODER = json.JSONDecoder(parse_constant=refuse_constant)


def parse(line: bytes) -> Any:
    """A line's JSON. Raises ValueError (JSON, UTF-8, NaN)."""
    return read_json(utf8_text(line), _DECODER)


def records(path: PathLike, recover: bool = False) -> Iterator[tuple[str, int, Any]]:
    """File, line number and parsed, not yet validated, object of each line, one at a time."""
    name, any_record = os.fspath(path), False
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by the with below; only opening is inside the try
    except OSError as error:
        raise TraceError(f"{name} cannot be read ({error.strerror}); make traces with `entropy-chains record`") from error
    with file:
        for number, raw in enumerate(file, 1):
            if raw.isspace():
                continue
            try:
                data = parse(raw)
            except ValueError as error:
                if number == 1 and raw.startswith(UTF_16):
                    raise TraceError(f"is {error}", file=name) from error
                if raw.endswith(b"\n"):
                    raise TraceError(f"the line cannot be read: {error}", file=name, line=number) from error
                if recover:
                    any_record = any_record or is_torn(raw, first=True)
                    break
                remedy = "recording it with --resume, or recover=True, drops that line"
                raise TraceError(f"the last line is torn ({error}); {remedy}", file=name, line=number) from error
            any_record = True
            yield name, number, data
    if not any_record:
        raise TraceError("holds no traces; record some with `entropy-chains record`", file=name)


_TEXT = rb'"(?:[^"\\]|\\.)*"'
_START = b'{"id":"'
_START_TO_SIGNAL = re.compile(rb'\{"id": %b(?:, "\w+": %b)*, "signal": "' % (_TEXT, _TEXT))


def is_torn(line: bytes, *, first: bool) -> bool:
    """Whether a last line that is not JSON is surely the beginning of a trace that was being written.

    Args:
        line: the last line, without an end.
        first: no trace stands before it. Then ``id`` is not enough, which other people's JSON has as well: it must go on to
            ``signal``, which stands in every trace that is written here, after texts alone.
    """
    start = b"".join(line[:32].split())
    begun = bool(_START_TO_SIGNAL.match(line)) if first else start.startswith(_START) or _START.startswith(start)
    outside_texts = re.sub(rb'"(?:[^"\\]|\\.)*(?:"|\\?$)', b"", line)
    return begun and outside_texts.count(b"{") > outside_texts.count(b"}")
