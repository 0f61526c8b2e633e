"""The package as LlamaIndex sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llama_index.llms.entropy_chains as package
import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.entropy_chains import EarlyStopLLM


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
