"""Everything this package raises on purpose.

::

    EntropyChainsError
    ├── InputError (ValueError)          a value from outside is wrong; the message names it and the remedy
    │   ├── TraceError                   .file .line .field
    │   ├── PolicyError
    │   │   └── PolicyMismatch           .field .expected .found
    │   ├── SettingsError                a backend or command setting that cannot work
    │   └── OutputError (OSError)        an output that cannot be written, or that would replace an input
    ├── WriteError (OSError)             writing failed on the way, as on a full disk; .file .errno
    ├── MissingExtraError (ImportError)  an optional dependency is not installed; .extra
    └── BackendError                     a model or server did not do what was asked
        ├── NoLogprobsError              no logprobs, so no entropy: stopping is impossible
        ├── UnreachableError             the server cannot be reached, or refuses this client or model, whatever is asked
        └── BatchError                   some conversations failed; .runs .errors
            ├── RefineError              some conversations of a loop failed (in refine.py)
            └── RecordError              some questions were not recorded (in recording.py); .failed .given_up
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_SECRET = re.compile(
    r"(?i)\b(?:bearer\s+\S+|(?:sk|csk|gsk|pk|xai|hf|key|nvapi|pplx|tgp|fw|r8)[-_][\w.*-]{6,}"
    r"|AIza[\w-]{20,}|dapi[0-9a-f]{16,}|eyJ[\w-]+\.[\w-]+\.[\w-]*)"
)


def without_keys(text: str) -> str:
    """A server's message without what looks like a key: some repeat the key that they refuse."""
    return _SECRET.sub("[key]", text)


LONGEST_SHOWN = 60
"""Characters of a value that a message shows."""


def short(value: object, longest: int = LONGEST_SHOWN) -> str:
    """A value as a message shows it: in full, or its beginning; at most ``longest`` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; nested too deep
        text = f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= longest else text[: longest - 3] + "..."


JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""The only characters without a form of their own that are harmless: scripts and emoji need them."""


def one_line(text: str) -> str:
    """A text that a terminal shows and does not obey, in one line.

    Line ends and other space become blanks; control characters, marks that turn the direction of writing, halves of surrogate pairs
    and what else has no form become U+FFFD.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in JOINERS else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def quoted(text: str, limit: int = 500) -> str:
    """What somebody else said, as a message may repeat it: without what looks like a key, and not longer than ``limit``.

    It is cut between words: of a part of a key nobody could tell that it is one.
    """
    text = without_keys(one_line(text))
    return text if len(text) <= limit else f"{text[:limit].rpartition(' ')[0]} …"


def reason(error: Exception) -> str:
    """An error in one line, without keys; one that is not this package's with its type."""
    named = "" if isinstance(error, EntropyChainsError) else f"{type(error).__name__}: "
    return without_keys(one_line(" ".join(f"{named}{error}".split())))


class EntropyChainsError(Exception):
    """Base of all errors raised by this package."""


class InputError(EntropyChainsError, ValueError):
    """A value from outside is wrong; the message names the value and the remedy."""


class TraceError(InputError):
    """A trace file or record cannot be used.

    Attributes:
        file: the file, or None for records in memory.
        line: its line, from 1, or None.
        field: the field at fault, or None.
    """

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None, field: str | None = None):
        place = f"{file}, line {line}: " if file and line else f"{file}: " if file else ""
        super().__init__(place + message)
        self.file, self.line, self.field = file, line, field


class PolicyError(InputError):
    """A policy file or value cannot be used."""


class PolicyMismatch(PolicyError):  # noqa: N818 (says what it is)
    """The policy was calibrated for something else than what is running.

    Attributes:
        field: what differs (``model``, ``k``, ``estimator``, ``mode``, ``temperature_mode``, ``template``, ``segmentation``).
        expected: the policy's value.
        found: the running one.
    """

    def __init__(self, field: str, expected: object, found: object, remedy: str):
        super().__init__(f"policy is for {field} {short(expected)}, but this run has {field} {short(found)}: {remedy}")
        self.field, self.expected, self.found = field, expected, found


class SettingsError(InputError):
    """A setting that cannot work; the message names it and what to use instead."""


class OutputError(InputError, OSError):
    """An output cannot be written, or would replace an input or somebody else's file; nothing was changed."""


class WriteError(EntropyChainsError, OSError):
    """Writing a file failed on the way, as on a full disk; what it held before is still there.

    Attributes:
        file: the file.
        errno: the operating system's number, as in ``OSError``.
    """

    def __init__(self, file: object, error: OSError):
        super().__init__(f"{file} cannot be written ({error.strerror or error}); make room there, or name another file")
        self.file, self.errno = str(file), error.errno


class MissingExtraError(EntropyChainsError, ImportError):
    """An optional dependency is missing.

    Attributes:
        extra: the extra to install, as in ``pip install 'entropy-chains[extra]'``.
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed; it comes with: pip install 'entropy-chains[{extra}]'")
        self.extra = extra


class BackendError(EntropyChainsError):
    """A model or server did not do what was asked.

    Attributes:
        run: what came of the run before its stream broke (a ``Generation``; of a loop a ``RefineRun``), where at least one step of
            it had ended; None otherwise.
    """

    run: Any = None


class NoLogprobsError(BackendError):
    """The model or server gives no logprobs, so there is no entropy and stopping is impossible.

    Attributes:
        said: what the server said where it refused to give any; else empty.
    """

    def __init__(self, message: str, said: str = ""):
        super().__init__(message)
        self.said = said


class UnreachableError(BackendError):
    """The server cannot be reached, or it refuses this client or model: every other request would fail alike."""


class BatchError(BackendError):
    """Some conversations failed; the others' runs are here, none of them lost.

    Attributes:
        runs: a finished run for each conversation, in order; None where it failed.
        errors: what each failed with; None where it finished.
    """

    def __init__(self, runs: Sequence[Any], errors: Sequence[Exception | None]):
        first = next((e for e in errors if e is not None), None)
        failed = sum(e is not None for e in errors)
        super().__init__(
            f"{failed} of {len(errors)} conversations failed, the first with {type(first).__name__}: {first}; "
            "the finished ones are in .runs, the reasons in .errors"
        )
        self.runs, self.errors = tuple(runs), tuple(errors)

    @classmethod
    def check(cls, runs: Sequence[Any], errors: Sequence[Exception | None]) -> None:
        """Raise where some failed; where every one did, the first one's own error."""
        failed = [e for e in errors if e is not None]
        if failed and len(failed) == len(errors):
            raise failed[0]
        if failed:
            raise cls(runs, errors) from failed[0]


def outcome(call: Callable[..., T], *arguments: Any) -> T | Exception:
    """What a call returns, or what it fails with. Nothing is raised."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001 (whatever a backend raises: what is finished elsewhere must not be lost)
        return error


def outcomes(call: Callable[[], Sequence[T]]) -> list[T | Exception]:
    """What a call makes of each of its conversations: the result, or what it fails with. Raises where the call fails as a whole."""
    try:
        return list(call())
    except BatchError as error:
        return [run if why is None else why for run, why in zip(error.runs, error.errors, strict=True)]


def all_of(results: Sequence[T | Exception]) -> list[T]:
    """The results, once none of them is an error; else raises as :meth:`BatchError.check`."""
    errors = [m if isinstance(m, Exception) else None for m in results]
    BatchError.check([None if isinstance(m, Exception) else m for m in results], errors)
    return [m for m in results if not isinstance(m, Exception)]
