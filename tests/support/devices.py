"""Devices to write to, and disks without room."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def device(folder: Path, name: str) -> Path:
    """A device such as ``null`` or ``full``. Where that is allowed it is made in the folder: a fault could replace the real one."""
    real, own = Path("/dev", name), folder / name
    try:
        os.mknod(own, stat.S_IFCHR | 0o666, real.stat().st_rdev)
        os.close(os.open(own, os.O_WRONLY))  # fails where the file system allows no devices
    except PermissionError:
        own.unlink(missing_ok=True)
        return real
    return own


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within it no file can grow beyond this size, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
