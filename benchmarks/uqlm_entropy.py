"""UQLM's entropy of a position, to compare with: CVS Health's package ``uqlm`` (Apache 2.0), white box scorers.

The package pins older torch, transformers and numpy than ours and installs some fifty others. Its formula needs numpy and scipy
alone, so the wheel is downloaded as it is and only the two modules of the formula are imported from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

VERSION = "0.6.7"
FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropy-chains" / f"uqlm-{VERSION}"


def scorer() -> Any:
    """UQLM's ``TopLogprobsScorer``. Raises OSError with the reason where the wheel cannot be had."""
    wheel = next(iter(sorted(FOLDER.glob("*.whl"))), None) or _downloaded()
    for name in ("uqlm", "uqlm.white_box", "uqlm.white_box.baseclass"):  # bare: their own __init__ would import everything
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(wheel / name.replace(".", "/"))]
    return import_module("uqlm.white_box.top_logprobs").TopLogprobsScorer(top_k_logprobs=20)


def _downloaded() -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(FOLDER), f"uqlm=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(FOLDER.glob("*.whl"))
    if not found:
        raise OSError((done.stderr.strip().splitlines() or ["pip download gave nothing"])[-1])
    return found[0]
