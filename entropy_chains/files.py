"""Output files: checked before anything is spent, and written whole or not at all.

An output never takes the place of an input, of another output, or of a device.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import BinaryIO, Self

from entropy_chains.errors import OutputError, WriteError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]


def check_outputs(outputs: Iterable[PathLike], inputs: Iterable[PathLike] = (), *, appended: Iterable[PathLike] = ()) -> None:
    """Refuse outputs that cannot be written, or that are the same file as an input or another output; nothing is changed.

    Two names are the same file where both lead to it: by links, hard links, or another spelling.

    Args:
        outputs: files that are written whole, in the place of former ones.
        inputs: files that are read.
        appended: files that are only added to.

    Raises:
        OutputError: it names the output and the remedy.
    """
    roles = {_identity(path): f"the input {path}" for path in inputs}
    for path, append in [*((path, False) for path in outputs), *((path, True) for path in appended)]:
        _checked(path, append)
        identity = _identity(path)
        if identity is not None and identity in roles:
            raise OutputError(f"{path} is the same file as {roles[identity]}; name another file for the output")
        roles[identity] = f"the output {path}"


def holds_data(path: PathLike) -> bool:
    """Whether something can be read back from there: a file that is not empty, no pipe and no device."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return status.st_size > 0 and not _is_stream(status)


def make_folder(path: PathLike) -> None:
    """Make a folder for outputs, and those above it, where it is missing. Raises OutputError."""
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"the folder {path} cannot be made ({_reason(error)}); name another one") from error


def write_file(path: PathLike, content: str | bytes) -> None:
    """Write a file whole or not at all; the former file is kept until the new one is on the disk. Text becomes UTF-8.

    The target of a link is written, the link stays. An existing file keeps its mode. A pipe or device is written to as it is.

    Raises:
        OutputError: nothing can be written there.
        WriteError: writing failed on the way, as on a full disk.
    """
    real, status = _checked(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        if _is_stream(status):
            with _open_stream(path) as stream:
                _write_all(stream, data)
        else:
            _replace(real, status, data)
    except OSError as error:
        raise WriteError(path, error) from error


class AppendedFile:
    """A file that is only added to. What :meth:`append` was given is on the disk when it returns, or not in the file at all.

    Attributes:
        path: its name.
        is_stream: it is a pipe or a device: what was written cannot be read back.
    """

    def __init__(self, path: PathLike) -> None:
        """Open, and make the file where it is missing. Raises OutputError, also where somebody else is adding to it."""
        _, status = _checked(path, append=True)
        self.path = path
        self.is_stream = _is_stream(status)
        self._file = self._open()

    def _open(self) -> BinaryIO:
        """Open the file that has this name, and lock it."""
        while True:
            try:
                file = _open_stream(self.path) if self.is_stream else _open_to_append(self.path)
            except OSError as error:
                raise _refused(self.path, error) from error
            if self.is_stream:
                return file
            if not _lock(file):
                file.close()
                who = "somebody else; wait until that has ended, or name another file"
                raise OutputError(f"{self.path} is being written to by {who}")
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file
            file.close()  # another file has taken its place while the lock was waited for

    def append(self, data: bytes) -> None:
        """Add to the end. Raises WriteError, and takes back what was written of it, if that fails."""
        start = 0 if self.is_stream else self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file, data)
            if not self.is_stream:
                os.fsync(self._file.fileno())
        except BaseException as error:
            if not self.is_stream:
                self._file.truncate(start)
            if isinstance(error, OSError):
                raise WriteError(self.path, error) from error
            raise

    def replace(self, data: bytes) -> None:
        """Put other content in the place of the file's own, whole or not at all. Raises WriteError if that fails."""
        former = self._file
        try:
            _replace(os.path.realpath(self.path), os.fstat(former.fileno()), data)
        except OSError as error:
            raise WriteError(self.path, error) from error
        self._file = self._open()
        former.close()

    def last_line(self) -> bytes:
        """What stands after the last line end; empty if the file ends with one."""
        start = 0 if self.is_stream else self._file.seek(0, os.SEEK_END)
        tail = b""
        while start and b"\n" not in tail:
            block = min(start, max(65536, len(tail)))
            start = self._file.seek(start - block)
            tail = self._file.read(block) + tail
        return tail[tail.rfind(b"\n") + 1 :]

    def cut(self, size: int) -> None:
        """Remove the last ``size`` bytes."""
        self._file.truncate(self._file.seek(0, os.SEEK_END) - size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(path: PathLike, append: bool = False) -> tuple[str, os.stat_result | None]:
    """The file that a name leads to, links followed, and its state, None for a new one. Raises OutputError where writing fails."""
    try:
        real = os.path.realpath(path)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            status = None
        if os.path.isdir(real) or not os.path.basename(path):
            raise IsADirectoryError("it is a folder")
        _try_to_open(real, status, append)
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error
    return real, status


def _try_to_open(real: str, status: os.stat_result | None, append: bool) -> None:
    """Raise OSError if a file cannot be written. Asked for its rights, the system grants root even what it then refuses."""
    if status is not None and (stat.S_ISBLK(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
        raise PermissionError("it is a disk or a socket")
    if _is_stream(status):
        return  # opening a pipe can wait for its reader
    if status is not None:
        os.close(os.open(real, os.O_WRONLY | (os.O_APPEND if append else 0)))
    if status is None or not append:
        with tempfile.TemporaryFile(dir=os.path.dirname(real), buffering=0) as beside:
            beside.write(b"x")  # a full disk lets empty files be made


def _refused(path: PathLike, error: Exception) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({_reason(error)}); name a file in a folder that exists, is open to you and has room"
    )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _identity(path: PathLike) -> object:
    """Equal for two names of one file. None for a pipe or device: it holds nothing that could be lost."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.path.realpath(path)
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _own_stream(status: os.stat_result) -> int | None:
    """The descriptor of standard output or error if this file is where it goes to."""
    for descriptor, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
        if stream is None:  # it was closed when Python started, so its descriptor is some other file's
            continue
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None


def _is_stream(status: os.stat_result | None) -> bool:
    """Whether it is a pipe or a device, or the file that standard output goes to: nothing there is to be replaced."""
    return status is not None and (not stat.S_ISREG(status.st_mode) or _own_stream(status) is not None)


def _open_stream(path: PathLike) -> BinaryIO:
    """Open a pipe or device for writing; standard output through its own descriptor, so that all it gets comes in order."""
    descriptor = _own_stream(os.stat(path))
    if descriptor is None:
        return open(path, "wb", buffering=0)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return open(os.dup(descriptor), "wb", buffering=0)


def _open_to_append(path: PathLike) -> BinaryIO:
    return open(path, "ab+", buffering=0)  # unbuffered: what could not be written is not tried again when the file is closed


def _lock(file: BinaryIO) -> bool:
    """Keep others from adding to a file until it is closed; False where somebody does already."""
    if fcntl is not None:
        for pause in (*[0.05] * 40, 0.0):  # somebody who adds a line is done by then
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(pause)
            except OSError:  # a file system without locks
                return True
            else:
                return True
        return False
    return True


def _write_all(file: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _replace(real: str, former: os.stat_result | None, data: bytes) -> None:
    """Write a new file beside the former one and move it into its place; on failure only the former one is left."""
    beside = os.path.join(os.path.dirname(real), f".entropy-chains-{os.urandom(8).hex()}")
    with open(beside, "xb", buffering=0) as file:
        try:
            if former is not None:
                _keep_rights(beside, former)  # before the content: nobody else can read it in between
            _write_all(file, data)
            os.fsync(file.fileno())
            file.close()
            os.replace(beside, real)
        except BaseException:
            os.unlink(beside)
            raise


def _keep_rights(path: str, former: os.stat_result) -> None:
    """Give a new file the mode and, where that is allowed, the owner of the one whose place it takes."""
    if hasattr(os, "chown"):  # not on Windows
        with suppress(OSError):
            os.chown(path, former.st_uid, former.st_gid)
    os.chmod(path, stat.S_IMODE(former.st_mode))
