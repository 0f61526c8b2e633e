"""What the files of a package import, at any level and in any way: for the tests of layers and circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOADERS = ("import_module", "__import__")


@dataclass(frozen=True)
class Package:
    """A package's source.

    Attributes:
        name: as it is imported.
        root: its folder.
    """

    name: str
    root: Path

    @property
    def files(self) -> list[Path]:
        """Its modules; not its own ``__init__`` and ``__main__``."""
        return sorted(path for path in self.root.rglob("*.py") if path.parent != self.root or not path.stem.startswith("__"))

    def dotted(self, path: Path) -> str:
        """A file's module, without the package's name."""
        return ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")

    def own_imports(self, path: Path) -> set[str]:
        """The package's modules that a file imports."""
        within = f"{self.name}."
        own = [name.removeprefix(within) for name in imports(path) if name.startswith(within)]
        return {self.module(name) for name in own if not name.startswith("__")} - {self.dotted(path)}

    def module(self, name: str) -> str:
        """The module that ``a.b.c`` stands in: itself, or what comes before."""
        while name and not (self.root / name.replace(".", "/")).is_dir() and not self._file(name).is_file():
            name = name.rpartition(".")[0]
        assert name, "the package's own names are taken from the module that they stand in"
        return name

    def circle(self) -> list[str]:
        """The modules that cannot be put in an order in which each imports only earlier ones; none where all can."""
        waiting = {self.dotted(path): self.own_imports(path) for path in self.files}
        while waiting:
            free = {name for name, wanted in waiting.items() if not wanted & set(waiting)}
            if not free:
                return sorted(waiting)
            waiting = {name: wanted for name, wanted in waiting.items() if name not in free}
        return []

    def _file(self, name: str) -> Path:
        return self.root / f"{name.replace('.', '/')}.py"


def imports(path: Path, *, for_types: bool = False) -> Iterator[str]:
    """Full names that a file imports: by a statement, by name as a text, or as an attribute of what it imported.

    Args:
        path: the file.
        for_types: also what is imported for type checking only.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree) if for_types else _running(tree))
    bound: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                bound[alias.asname or top] = alias.name if alias.asname else top
                yield alias.name
        elif isinstance(node, ast.Call) and _last(node.func) in LOADERS and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                assert not name.value.startswith("."), f"{path}: imports are absolute"
                yield name.value
    for node in nodes:
        names = _chain(node)
        if len(names) > 1 and names[0] in bound:
            yield ".".join([bound[names[0]], *names[1:]])


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below this one, but for what is there for type checkers only."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and (typing := _for_types(child.test)) is not None:
            for each in child.orelse if typing else child.body:
                yield from _running(each)
        else:
            yield from _running(child)


def _for_types(test: ast.expr) -> bool | None:
    """Whether what an ``if`` holds is for type checkers; None where both branches may run."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and _last(test.operand) == "TYPE_CHECKING":
        return False
    return True if _last(test) == "TYPE_CHECKING" else None


def _last(node: ast.expr) -> str:
    """The last name of ``a.b.c``."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _chain(node: ast.AST) -> list[str]:
    """The names of ``a.b.c``; none of anything else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) and names else []
