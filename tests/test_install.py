"""The lines that install: the one for a clone installs, the one for a release names what there is, and no page mixes them up."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "integrations").glob("*/README.md"))]
PROJECTS = {
    parsed["name"]: (path.parent, parsed)
    for path in [ROOT / "pyproject.toml", *sorted((ROOT / "integrations").glob("*/pyproject.toml"))]
    for parsed in [tomllib.loads(path.read_text(encoding="utf-8"))["project"]]
}
"""Every distribution's folder and its project table."""

IMPORTS = ("entropy_chains", "langchain_entropy_chains", "llama_index.llms.entropy_chains")
CLONE, RELEASE = (
    shlex.split(line) for line in re.findall(r"^pip install .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
)
"""README's two lines, as words."""


def parts(words: list[str]) -> dict[str, set[str]]:
    """The distributions that a line installs, by path or by name, with their extras."""
    found = {}
    for word in words[2:]:
        place, _, extras = word.partition("[")
        names = [name for name, (folder, _) in PROJECTS.items() if place == name or (ROOT / place).resolve() == folder]
        if not word.startswith("-"):
            assert len(names) == 1, f"{word} is none of {', '.join(PROJECTS)}"
            found[names[0]] = set(filter(None, extras.rstrip("]").split(",")))
    return found


def test_both_lines_install_the_same():
    """The clone's paths and the release's names stand for the same parts, with extras that exist."""
    assert parts(CLONE) == parts(RELEASE)
    assert set(parts(CLONE)) == set(PROJECTS) - {"vllm-entropy-chains"}
    for name, extras in parts(CLONE).items():
        assert extras <= set(PROJECTS[name][1]["optional-dependencies"])


@pytest.mark.skipif(os.name == "nt", reason="the folders of an environment are others there")
def test_the_line_for_a_clone_installs(tmp_path):
    """In a fresh environment, as it stands but for the dependencies, which are lent to it: all three parts, and the command."""
    venv.create(tmp_path / "new", symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "new"), "platbase": str(tmp_path / "new")}))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")  # not its .pth files: what is installed there is not seen
    python = str(tmp_path / "new" / "bin" / "python")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    offline = ["--python", python, "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", *CLONE[:1], *offline, *CLONE[2:]], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    code = f"import {', '.join(IMPORTS)}; print(*(m.__file__ for m in ({', '.join(IMPORTS)})), sep='\\n')"
    shown = subprocess.run([python, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert [Path(line).is_relative_to(ROOT) for line in shown.stdout.split()] == [True] * 3, shown.stderr
    command = subprocess.run([tmp_path / "new" / "bin" / "entropy-chains", "--help"], env=clean, cwd=tmp_path, capture_output=True)
    assert command.returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_line_that_names_an_unreleased_package_says_so(page):
    """As long as the changelog has no release, a name of ours can be installed from a clone's folders only."""
    if "unreleased" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        return
    for line in re.sub(r"([^\n:]*release[^\n:]*:\n+```\w*\n)", r"\1# release ", page.read_text(encoding="utf-8")).splitlines():
        if "pip install" in line and "release" not in line:
            words = re.findall(r"[\w./\[\],-]+", line.partition("pip install")[2].partition("`")[0].partition("#")[0])
            named = [w for w in words if w.partition("[")[0] in PROJECTS]
            assert not named, f"{page.name}: {line}"
            assert all(
                (ROOT / w.partition("[")[0] / "pyproject.toml").exists() for w in words if w.startswith((".", "integrations/"))
            )
