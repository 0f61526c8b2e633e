"""Answer texts with gold from the source packages of projects that grade answers, read where they stand.

Nothing of them is kept in the project. Rows come from tables of (answer, gold, equal?) in their tests, and from worked answers
that lm-evaluation-harness and opencompass show to models; there the gold answer is what the project's own filter reads, and wrong
gold answers are taken from the text itself (numbers on the way) and from the other examples of the same task.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from grading_rows import LEFT_OUT, Row, literal, plain, value_of, with_wrong

PACKAGES = {
    "math_verify": "math-verify==0.9.0",
    "lm_eval": "lm-eval==0.4.13",
    "inspect_evals": "inspect-evals==0.28.0",
    "opencompass": "opencompass==0.5.4",
    "tinker_cookbook": "tinker-cookbook==0.6.1",
    "skyrl_gym": "skyrl-gym==0.4.0",
    "verifiers": "verifiers==0.1.9",
    "evalscope": "evalscope==1.14.1",
}
"""File name's start of each source package, and what pip calls it; those added last come last."""
OPTIONS = ("precision", "strict", "allow_set_relation_comp")
"""Of math-verify's comparison: rows under them test these, not answers."""


def rows_of(package: str, name: str, content: bytes) -> Iterator[Row]:
    """Rows of one file of a package."""
    if package == "math_verify" and re.fullmatch(r"tests/\w+\.py", name):
        yield from _tables(ast.parse(content), "math-verify tests")
    elif name in ("tests/test_minerva_math.py", "tests/test_kormedmcqa.py"):
        yield from _tables(ast.parse(content), "lm-eval tests")
    elif package == "inspect_evals" and re.fullmatch(r"tests/\w+/\w+\.py", name):
        yield from _tables(ast.parse(content), "inspect-evals tests")
    elif name.startswith("lm_eval/tasks/") and name.endswith(".yaml") and b"samples:" in content and b"target:" in content:
        yield from _worked(content, name.split("/")[2])
    elif package == "opencompass" and name.startswith(SHOWN) and name.endswith((".py", ".txt")):
        yield from _shown(content.decode(), name)
    elif package == "tinker_cookbook" and name.endswith(("/math_env_test.py", "/numeric_grading_test.py")):
        yield from _graded(ast.parse(content), "tinker-cookbook tests")
    elif name in ("tests/test_aime.py", "tests/test_math_rubric.py"):
        yield from _graded(ast.parse(content), f"{package.replace('_', '-')} tests")
    elif name == "tests/test_multi_choices.py":
        yield from _parsed(ast.parse(content), "evalscope tests")


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
        texts = [literal(a.args[0] if isinstance(a, ast.Call) and a.args else a) for a in call.args]
        if len(texts) == 2 and all(isinstance(t, str) and t for t in texts):
            yield Row(texts[0], texts[1], not negated, source)


def _listed(mark: ast.Call, body: str, source: str) -> Iterator[Row]:
    listed = literal(mark.args[0])
    names = list(listed) if isinstance(listed, tuple) else [name.strip() for name in str(listed).split(",")]
    cases = mark.args[1].elts if isinstance(mark.args[1], ast.List | ast.Tuple) else []
    for case in cases:
        values = [literal(v) for v in _values(case)]
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


def _worked(content: bytes, task: str) -> Iterator[Row]:
    """Worked answers of one task, each with its gold answer and with wrong ones."""
    import yaml

    data = yaml.safe_load(re.sub(rb"!function \S+", b"null", content))
    samples = (data.get("fewshot_config") or {}).get("samples") or []
    texts = [s["target"] for s in samples if isinstance(s, dict) and isinstance(s.get("target"), str)]
    told = [(text, found[1]) for text in texts if (found := re.search(r"answer is (.+?)\.?\s*$", text))]
    yield from with_wrong(told, f"lm-eval {task}, worked answers")


# --- opencompass: worked answers in the prompts of its configurations

_FOLDER = "opencompass/configs/datasets/"
SHORTEST = 50
"""Characters of a worked answer at least: shorter ones are the answer alone."""
_TASKS = (
    "CHARM scibench MathBench math gsm8k strategyqa TheoremQA commonsenseqa drop SVAMP hungarian_exam math401 TabMWP gsm_hard bbh"
)
SHOWN = tuple(f"{_FOLDER}{task}/" for task in _TASKS.split())
_QUESTION = re.compile(r"(?:^|\n)(?=(?:Q|Question|Problem|Promblem \d+|Problem \d+|Example \d+|问题|题目)\s*[:：])")
_SOLUTION = re.compile(r"(?:^|\n)(?:A|Answer|Solution|Explanation for Problem \d+|答案|回答|解答)\s*[:：]\s*")
_END = re.compile(r"(?:answer is|答案是|答案为)\s*:?\s*(\S.{0,60}?)[.。]?\s*(?:I hope it is correct\.)?\s*$")
_BOX = re.compile(r"\$?\\boxed\{(.*)\}\$?")
_PLACEHOLDER = re.compile(r"(?<![\\\w}])\{[a-z]\w+\}|['\"“”]|\$[A-Z]{2}|\[")


def _shown(content: str, name: str) -> Iterator[Row]:
    """Worked answers of one file, each behind its question or as a turn of its own."""
    if name.endswith(".py"):
        nodes = ast.walk(ast.parse(content))
        texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    else:
        texts = [content]
    told = []
    for block in (block.strip() for text in texts for block in _QUESTION.split(text)):
        answer = _SOLUTION.split(block, maxsplit=1)[-1].strip()
        if not (found := _END.search(answer)) or (_QUESTION.match(block) and answer == block):
            continue  # without an answer, or without a mark between it and its question
        gold = box[1] if (box := _BOX.fullmatch(found[1])) else found[1]
        if len(answer) >= SHORTEST and not _PLACEHOLDER.search(gold):
            told.append((answer, gold.strip()))
    yield from with_wrong(list(dict.fromkeys(told)), f"opencompass {name.split('/')[3]}, worked answers")


# --- tests of rewards: equal rows, and refused ones that were not refused for their form

_GRADERS = ("grade_answer", "extract_boxed", "extract_gsm8k_final_answer", "normalize_answer", "_extract_final_int")
_COLUMNS = (("response", "expected"), ("output", "ground_truth"))
_STRICT = "test_sympy_equivalence"
"""A test that fractions are to be in lowest terms."""


def _graded(tree: ast.Module, source: str) -> Iterator[Row]:
    for row in _calls(tree, source):
        if row.equal or plain(row.gold) not in plain(row.answer):
            yield row


def _calls(tree: ast.Module, source: str) -> Iterator[Row]:
    """Rows of ``assert grade(answer, gold) is True``, of ``assert extract(answer) == gold``, and of lists with columns for both."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.name == _STRICT:
            continue
        texts = {
            n.targets[0].id: literal(n.value)
            for n in function.body
            if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
        }
        for test in (n.test for n in ast.walk(function) if isinstance(n, ast.Assert) and isinstance(n.test, ast.Compare)):
            call, right = test.left, literal(test.comparators[0])
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in _GRADERS:
                continue
            answer, *gold = [texts.get(a.id) if isinstance(a, ast.Name) else literal(a) for a in call.args]
            if gold and answer:
                yield Row(answer, gold[0], bool(right), source)
            elif not gold and answer and right not in (None, ""):
                yield Row(answer, str(right), True, source)
        for mark in function.decorator_list:
            names, cases = (literal(a) for a in mark.args) if isinstance(mark, ast.Call) else ("", [])
            names = tuple(re.split(r",\s*", names)) if isinstance(names, str) else names
            for case in cases if isinstance(cases, list) else ():
                if isinstance(case, dict) and {"completion", "answer"} <= set(case):
                    yield Row(case["completion"], case["answer"], "Constant(value=1.0)" in ast.dump(function), source)
            if tuple(names[:2]) in _COLUMNS:
                yield from (Row(case[0], str(case[1]), case[2:] in ((), (1.0,)), source) for case in cases or [])


# --- evalscope: tests of reading a letter


def _parsed(tree: ast.Module, source: str) -> Iterator[Row]:
    """Rows of ``assert parse(text) == {letter}``, where one letter is asked for; the other letters are wrong, or all four."""
    lists = {
        n.targets[0].id: literal(n.value) for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
    }
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef) and LEFT_OUT not in ast.dump(n)):
        marks = [[literal(a) for a in m.args] for m in function.decorator_list if isinstance(m, ast.Call)]
        told = [lists | {name: case} for name, cases in marks for case in cases] or [lists]
        yield from (row for names in told for row in _asserts(function.body, names, source))


def _asserts(body: list[ast.stmt], names: dict[str, Any], source: str) -> Iterator[Row]:
    for statement in body:
        if isinstance(statement, ast.For) and isinstance(statement.target, ast.Name):
            for value in value_of(statement.iter, names) or ():
                yield from _asserts(statement.body, names | {statement.target.id: value}, source)
        elif isinstance(statement, ast.Assert) and "multiple_correct" not in ast.dump(statement):
            test = statement.test
            call = test.left if isinstance(test, ast.Compare) else getattr(getattr(test, "func", None), "value", None)
            if not isinstance(call, ast.Call) or len(call.args) != 1 or call.keywords:
                continue
            text = value_of(call.args[0].args[0] if isinstance(call.args[0], ast.Call) else call.args[0], names)
            right = literal(test.comparators[0]) if isinstance(test, ast.Compare) else set()
            if isinstance(text, str) and isinstance(right, set | str):
                golds = {right} if isinstance(right, str) else right
                yield from (Row(text, gold, True, source) for gold in golds)
                if not isinstance(right, str):
                    yield from (Row(text, letter, False, source) for letter in "ABCD" if letter not in golds)
