"""Names of a module that are loaded on first use, each from where it lives (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

Getter = Callable[[str], Any]


def lazy_names(module: dict[str, Any], homes: Mapping[str, str], package: str = "") -> tuple[Getter, Callable[[], list[str]]]:
    """A module's ``__getattr__`` and ``__dir__``.

    Args:
        module: its ``globals()``.
        homes: name to the module that it lives in, within ``package``.
        package: the package of the homes; the module itself by default.
    """
    within = package or module["__name__"]

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        value = module[name] = getattr(import_module(f"{within}.{homes[name]}"), name)
        return value

    def names() -> list[str]:
        return sorted([*homes, *(["__version__"] if "__version__" in module else [])])

    return load, names
