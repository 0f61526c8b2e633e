"""Checks of what comes from outside: a table a record, which says of each field what it must be. Also strict JSON.

A check never raises, whatever it is given. Numbers are finite and far below a float's limit, so that sums of them and of their
squares are finite too; a bool is not a number.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from entropy_chains.errors import InputError
from entropy_chains.errors import short as short

NOT_FINITE = "NaN and Infinity are not JSON; write null where a number is missing"
LARGEST_NUMBER = 1e100
"""Largest size of a number."""
LARGEST_COUNT = 2**53
"""Largest count: above it floats cannot tell a whole number from the next."""
DEEPEST = 32
"""Levels that objects and lists may be nested."""
MOST_VALUES = 10**5
"""Values that a level of nesting may hold."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors put before UTF-8."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{")
"""What a file of objects in UTF-16 begins with, with a byte order mark or without."""

Good = Callable[[Any], bool]


class Check(NamedTuple):
    """What a field must be.

    Attributes:
        good: whether a value is.
        wanted: the same in words, after "it must be".
        nullable: null stands for "not known".
        fields: of an object, checks of its own fields.
        fault: what is wrong with a value that may not stand there, where ``wanted`` does not say enough: the whole message.
    """

    good: Good
    wanted: str
    nullable: bool = False
    fields: Mapping[str, Check] = {}
    fault: Callable[[Any], str | None] = lambda value: None

    def holds(self, value: object) -> bool:
        """Whether the value may stand in the field."""
        return (value is None and self.nullable) or self.good(value)


# --- kinds of values


def is_text(value: object) -> bool:
    """A string."""
    return isinstance(value, str)


def is_name(value: object) -> bool:
    """A string that is not empty and can be written as UTF-8: half a surrogate pair cannot."""
    return isinstance(value, str) and bool(value) and is_writable(value)


def is_writable(text: str) -> bool:
    """Whether UTF-8 can express it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """A finite number, of size :data:`LARGEST_NUMBER` at most."""
    return (isinstance(value, float) or type(value) is int) and -LARGEST_NUMBER <= value <= LARGEST_NUMBER


def is_amount(value: Any) -> bool:
    """A finite number of at least 0, :data:`LARGEST_NUMBER` at most."""
    return (isinstance(value, float) or type(value) is int) and 0 <= value <= LARGEST_NUMBER


def is_count(value: Any) -> bool:
    """A whole number of at least 0."""
    return type(value) is int and 0 <= value <= LARGEST_COUNT


def is_whole(value: Any) -> bool:
    """A whole number of at least 1."""
    return type(value) is int and 1 <= value <= LARGEST_COUNT


_MOST = f"at most 2^{LARGEST_COUNT.bit_length() - 1}"
COUNT, WHOLE = f"a whole number of at least 0, {_MOST}", f"a whole number of at least 1, {_MOST}"
"""What :func:`is_count` and :func:`is_whole` ask for, in words."""


def is_share(value: Any) -> bool:
    """A number from 0 to 1; rounding may push a mass above 1."""
    return (isinstance(value, float) or type(value) is int) and 0 <= value <= 1.01


def one_of(words: Collection[str]) -> Check:
    """One of these words."""
    return Check(lambda value: isinstance(value, str) and value in words, f"one of {', '.join(words)}")


def list_of(good: Good, *, length: int | None = None, kind: Any = (list, tuple)) -> Good:
    """A list of what is good; ``length``: of so many; ``kind``: the classes that are lists here."""

    def are_good(value: Any) -> bool:
        return isinstance(value, kind) and length in (None, len(value)) and all(map(good, value))

    return are_good


def or_null(good: Good) -> Good:
    """What is good, or None."""
    return lambda value: value is None or good(value)


# --- records


def first_fault(record: Mapping[str, Any], checks: Mapping[str, Check], within: str = "") -> tuple[str, str] | None:
    """The first field at fault and what is wrong with it, or None. Fields without a check are not looked at.

    ``within``: what stands before a field's name, as ``calibration.``.
    """
    for key, value in record.items():
        check = checks.get(key)
        if check is None:
            continue
        name = f"{within}{key}"
        if not check.holds(value):
            return name, check.fault(value) or f"{name} is {short(value)}; it must be {check.wanted}"
        if check.fields and value is not None and (fault := first_fault(value, check.fields, f"{name}.")):
            return fault
    return None


def not_json(value: object) -> str | None:
    """Why a value cannot be written as JSON and read back; None where it can."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        if not level:
            return None
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += [*item, *item.values()]
                if not all(isinstance(key, str) for key in item):
                    return f"its key {short(next(k for k in item if not isinstance(k, str)))} is not a text"
            elif isinstance(item, list | tuple):
                deeper += item
            elif not _is_plain(item):
                return f"it holds {short(item)}; JSON holds texts, finite numbers, true, false, null, lists and objects"
        if len(deeper) > MOST_VALUES:
            return f"it holds more than {MOST_VALUES:,} values"
        level = deeper
    return f"it is nested deeper than {DEEPEST} levels"


def _is_plain(item: Any) -> bool:
    if isinstance(item, float | int):
        return -sys.float_info.max <= item <= sys.float_info.max
    return item is None or (isinstance(item, str) and is_writable(item))


# --- text of files


def utf8_text(content: bytes) -> str:
    """The text of a file, without the byte order mark that some editors put first. Raises InputError: "not UTF-8 text (why); …"."""
    try:
        if content.startswith(UTF_16):
            raise InputError("not UTF-8 text (it is UTF-16); save it as UTF-8")
        return content.removeprefix(BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


# --- strict JSON


def refuse_constant(constant: str) -> Any:
    """For ``json``'s ``parse_constant``: raises ValueError for NaN and Infinity."""
    raise ValueError(f"{constant} found: {NOT_FINITE}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {short(twice)} stands twice; remove one of the two")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
_PLAIN = json.JSONDecoder()
_DIGITS = "it holds a whole number of thousands of digits"


def strict_json(text: str) -> Any:
    """Read JSON in which no key stands twice; raises InputError for everything else.

    NaN and Infinity are read as ``json`` reads them, so that whoever checks the fields can name the one that holds them.
    """
    return read_json(text, _DECODER)


def read_json(text: str, decoder: json.JSONDecoder = _PLAIN) -> Any:
    """Read JSON, whatever it is. Raises InputError that says what is wrong with it; so it is where Python has no room for it."""
    try:
        return decoder.decode(text)
    except RecursionError as error:
        raise InputError("not JSON that can be read: it is nested too deep") from error
    except ValueError as error:
        what = _DIGITS if str(error).startswith("Exceeds the limit") else str(error)
        raise InputError(f"not JSON ({what})") from error
