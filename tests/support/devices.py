"""Devices to write to."""

from __future__ import annotations

import os
import stat
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
