"""The package as LlamaIndex sees it."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import llama_index.llms.entropy_chains as package
import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.entropy_chains import EarlyStopLLM

from entropy_chains import Policy
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME


def test_class():
    """``EarlyStopLLM`` is an LLM, and one that agents take."""
    names = [cls.__name__ for cls in EarlyStopLLM.__mro__]
    assert {BaseLLM.__name__, FunctionCallingLLM.__name__} <= set(names)


def test_the_table_of_contents_is_sorted_and_complete():
    """``__all__`` is sorted, and is what ``dir`` shows; the table of homes has the same names."""
    assert package.__all__ == sorted(package.__all__, key=str.lower)
    assert dir(package) == sorted(package.__all__)
    assert set(package._HOME) == set(package.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        package.nothing_here  # noqa: B018


def test_the_package_stays_in_the_namespace():
    """No ``__init__.py`` of ours turns LlamaIndex's namespace folders into a package of ours."""
    here = Path(package.__file__).parent
    assert not (here.parent / "__init__.py").exists()
    assert not (here.parent.parent / "__init__.py").exists()


def test_importing_it_loads_no_sdk_and_no_model():
    """The names come lazily: neither the SDK nor torch is loaded by the import."""
    code = "import sys, llama_index.llms.entropy_chains; print({'openai', 'torch', 'llama_index.core'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


HERE = Path(__file__).parents[1]
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))
EXAMPLES = sorted((HERE / "examples").glob("*.py"))


def test_what_llamahub_is_told_is_true():
    """The path can be imported, every LLM of it has an author, and no other name; an example is there if it says so."""
    told = PROJECT["tool"]["llamahub"]
    there = importlib.import_module(told["import_path"])
    public = {name: getattr(there, name) for name in there.__all__}
    assert set(told["class_authors"]) == {
        n for n, found in public.items() if isinstance(found, type) and issubclass(found, BaseLLM)
    }
    assert told["contains_example"] is bool(EXAMPLES)


def test_the_examples_are_in_the_distribution(tmp_path):
    """In the source archive, as they stand here."""
    build = "import hatchling.build, os, sys; os.chdir(sys.argv[1]); print(hatchling.build.build_sdist(sys.argv[2]))"
    done = subprocess.run([sys.executable, "-c", build, str(HERE), str(tmp_path)], capture_output=True, text=True, check=True)
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"examples/{path.name}" for path in EXAMPLES} <= names
    assert "llama_index/llms/entropy_chains/py.typed" in names


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_runs(path, tmp_path):
    """As its first lines say, with a policy: the answer, and what was saved, are printed. It has a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    backend = TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)
    policy = Policy(
        MODEL_NAME,
        (0.2,),
        segmentation=backend.segmentation,
        template=backend.template,
        calibration={"remaining_tokens": [40, 0]},
    )
    policy.save(tmp_path / "policy.json")
    shown = subprocess.run([sys.executable, str(path), str(tmp_path / "policy.json")], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("238\n")
    assert "early_stop_stopped: True" in shown.stdout
    assert "early_stop_tokens_saved_share: " in shown.stdout
