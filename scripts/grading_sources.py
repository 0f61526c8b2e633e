"""Answer texts with gold from the source packages of three projects that grade answers, read where they stand.

Nothing of them is kept in the project. Rows come from tables of (answer, gold, equal?) in their tests, and from worked answers
that lm-evaluation-harness shows to models; there the gold answer is what its own filter reads, and wrong gold answers are taken
from the text itself (numbers on the way) and from the other examples of the same task.
"""

from __future__ import annotations

import ast
import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = {"math_verify": "math-verify==0.9.0", "lm_eval": "lm-eval==0.4.13", "inspect_evals": "inspect-evals==0.28.0"}
"""File name's start of each source package, and what pip calls it."""
LEFT_OUT = "gpqa"
"""A data set whose texts must not be used."""
OPTIONS = ("precision", "strict", "allow_set_relation_comp")
"""Of math-verify's comparison: rows under them test these, not answers."""


class Row(NamedTuple):
    """An answer as it was written, the gold answer, whether they are equal, and where it stands."""

    answer: str
    gold: str
    equal: bool
    source: str

    @property
    def part(self) -> str:
        """The half of the first sources it belongs to, by a hash of the answer; ``third`` for what was added last."""
        if self.source.startswith("inspect"):
            return "third"
        return "second" if hashlib.sha256(self.answer.encode()).digest()[0] % 2 else "first"


def rows(folder: Path) -> list[Row]:
    """All rows of the source packages in a folder, each once. Raises FileNotFoundError where one is missing."""
    found: dict[tuple[str, str], Row] = {}
    for start in PACKAGES:
        path = next(iter(sorted(folder.glob(f"{start}-*.tar.gz"))), None)
        if path is None:
            raise FileNotFoundError(f"{folder} has no {start}-*.tar.gz")
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.partition("/")[2]
                if LEFT_OUT not in name and (file := archive.extractfile(member)):
                    for row in _rows_of(start, name, file.read()):
                        found.setdefault((row.answer, row.gold), row)
    return list(found.values())


def _rows_of(package: str, name: str, content: bytes) -> Iterator[Row]:
    if package == "math_verify" and re.fullmatch(r"tests/\w+\.py", name):
        yield from _tables(ast.parse(content), "math-verify tests")
    elif name in ("tests/test_minerva_math.py", "tests/test_kormedmcqa.py"):
        yield from _tables(ast.parse(content), "lm-eval tests")
    elif package == "inspect_evals" and re.fullmatch(r"tests/\w+/\w+\.py", name):
        yield from _tables(ast.parse(content), "inspect-evals tests")
    elif name.startswith("lm_eval/tasks/") and name.endswith(".yaml") and b"samples:" in content and b"target:" in content:
        yield from _worked(content, name.split("/")[2])


_VERDICTS = {"C": True, "I": False, "CORRECT": True, "INCORRECT": False, True: True, False: False}


def _tables(tree: ast.Module, source: str) -> Iterator[Row]:
    """Rows of ``parametrize`` lists, and of ``assert is_equiv(a, b)`` with plain texts."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = "".join(ast.dump(line) for line in function.body)
        if any(f"keyword(arg='{option}'" in body for option in OPTIONS):
            continue
        for statement in ast.walk(function):
            if isinstance(statement, ast.Assert):
                yield from _asserted(statement.test, source)
        for mark in function.decorator_list:
            if isinstance(mark, ast.Call) and "parametrize" in ast.dump(mark.func) and len(mark.args) > 1:
                yield from _listed(mark, body, source)


def _asserted(test: ast.expr, source: str) -> Iterator[Row]:
    negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    call = test.operand if negated else test  # type: ignore[attr-defined]
    if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "is_equiv":
        texts = [_literal(a.args[0] if isinstance(a, ast.Call) and a.args else a) for a in call.args]
        if len(texts) == 2 and all(isinstance(t, str) and t for t in texts):
            yield Row(texts[0], texts[1], not negated, source)


def _listed(mark: ast.Call, body: str, source: str) -> Iterator[Row]:
    listed = _literal(mark.args[0])
    names = list(listed) if isinstance(listed, tuple) else [name.strip() for name in str(listed).split(",")]
    cases = mark.args[1].elts if isinstance(mark.args[1], ast.List | ast.Tuple) else []
    for case in cases:
        values = [_literal(v) for v in _values(case)]
        row = dict(zip(names, values, strict=False))
        if {"gold", "pred"} <= set(row):
            equal = bool(row.get("expected", row.get("result", 1)))
            yield Row(row["pred"], row["gold"], equal, source)
        elif {"x1", "x2"} <= set(row) and row["x1"] and row["x2"]:
            yield Row(row["x1"], row["x2"], "Not()" not in body, source)
        elif {"completion", "target", "expected"} <= set(row):
            told = _values(case)[names.index("expected")]
            right = row["expected"] if row["expected"] is not None else getattr(told, "id", None)
            if isinstance(row["completion"], str) and isinstance(row["target"], str) and right in _VERDICTS:
                yield Row(row["completion"], row["target"], _VERDICTS[right], source)
        elif names == ["output", "expected"] and row["expected"] and source.startswith("lm-eval"):
            yield Row(row["output"], row["expected"], True, source)
            yield from (Row(row["output"], other, False, source) for other in "ABCDE" if other != row["expected"])


def _values(case: ast.expr) -> list[ast.expr]:
    return case.elts if isinstance(case, ast.Tuple) else case.args if isinstance(case, ast.Call) else []


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _worked(content: bytes, task: str) -> Iterator[Row]:
    """Worked answers of one task, each with its gold answer and with wrong ones."""
    import yaml

    data = yaml.safe_load(re.sub(rb"!function \S+", b"null", content))
    samples = (data.get("fewshot_config") or {}).get("samples") or []
    texts = [s["target"] for s in samples if isinstance(s, dict) and isinstance(s.get("target"), str)]
    told = [(text, found[1]) for text in texts if (found := re.search(r"answer is (.+?)\.?\s*$", text))]
    golds = [gold for _, gold in told]
    source = f"lm-eval {task}, worked answers"
    for text, gold in told:
        yield Row(text, gold, True, source)
        wrong = {other for other in golds if _plain(other) != _plain(gold)}
        if re.fullmatch(r"\(?[A-Z]\)?", gold):
            wrong |= {f"({letter})" for letter in "ABCD" if letter != gold.strip("()")}
        elif re.fullmatch(r"-?\d+", gold):
            wrong |= {number for number in re.findall(r"\d+", text) if int(number) != abs(int(gold))}
        elif gold.casefold() in ("yes", "no"):
            wrong |= {"no" if gold.casefold() == "yes" else "yes"}
        yield from (Row(text, other, False, source) for other in sorted(wrong)[:3])


def _plain(text: str) -> str:
    return re.sub(r"\W", "", text).casefold()
