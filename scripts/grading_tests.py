"""Rows of (answer, gold, equal?) from tests of functions that read or compare answers, by the names of these functions.

A test is followed statement by statement: what is a reply, what is gold, and which verdict is asserted. What is left out, here too,
``grading_sixth.py`` says.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from grading_rows import LEFT_OUT, Row, literal, plain, value_of

OWN_WAY = re.compile(
    r"fallback|falls_back|last_number|LastNumber|picks_last|numbers_takes_last|last_line|first_box|strategy|braceless|shadow|_P4_"
)
"""Names of tests of a project's own way to choose an answer where the text marks none, or several."""


@dataclass(frozen=True)
class Tests:
    """How the tests of a project are read.

    Attributes:
        read: functions that give a text's answer, with the place of the text among their arguments.
        compared: functions that compare, with the places of the answer and of gold.
        options: what a test must not hold: its functions are called with options of their own.
        strict: whether a reply that names gold may be refused for what it says.
    letters: whether the letters that a text does not name are wrong gold for the letter that is read of it.
    """

    read: dict[str, int] = field(default_factory=dict)
    compared: dict[str, tuple[int, int]] = field(default_factory=dict)
    options: str = r"(?!)"
    strict: bool = False
    letters: bool = False


_REPLY = ("text", "response", "output_text")
_GOLD = ("expected", "expected_answer", "target", "ground_truth")
_MADE = re.compile(r"make_response|make_verify_request|_message|_msg")
"""Helpers whose first argument is the reply."""
_MADE_GOLD = re.compile(r"_create_ground_truth")
_VERDICTS = ("reward", "score")
_ROUNDED = re.compile(r"-?\d+\.\d{5,}")
_LETTER = re.compile(r"\(?[A-Z]\)?")
_SAYS_MORE = re.compile(r"ambig|wrong|mismatch|incorrect|penalty|conflict", re.IGNORECASE)
"""Names of tests whose replies are refused for what they say."""


def tests_of(tree: ast.Module, source: str, tests: Tests) -> Iterator[Row]:
    """Rows of a module of tests."""
    constants = {
        statement.targets[0].id: value_of(statement.value, {})
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    for group in (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)):
        if OWN_WAY.search(getattr(group, "name", "")):
            continue
        for test in group.body:
            if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) or OWN_WAY.search(test.name) or LEFT_OUT in test.name:
                continue
            if re.search(tests.options, ast.unparse(test)):
                continue
            for names in _cases(test, constants):
                for answer, gold, equal in _asserted(test.body, constants | names, tests):
                    if counts(answer, gold, equal, tests.strict or bool(_SAYS_MORE.search(test.name))):
                        yield Row(answer, gold, equal, source)


def counts(answer: Any, gold: Any, equal: bool, strict: bool) -> bool:
    """Whether a row is about answers as they are compared here (see the rules in ``grading_sixth.py``)."""
    if not isinstance(answer, str) or not isinstance(gold, str) or not answer.strip() or not gold.strip():
        return False
    if not equal:
        return strict or not holds(answer, gold)
    if "\\" in gold and _ROUNDED.fullmatch(answer):
        return False
    bare = [re.sub(r"\b(?:a|an|the)\b|\W", "", text.casefold()) for text in (answer, gold)]
    return names_letter(answer, gold) and (bare[0] != bare[1] or plain(answer) == plain(gold))


def names_letter(reply: str, gold: str) -> bool:
    """Whether gold is no letter, or one that the reply names."""
    return not _LETTER.fullmatch(gold) or holds(reply, gold.strip("()"))


def holds(text: str, gold: str) -> bool:
    """Whether gold stands in a text as a word, capitals aside."""
    return bool(re.search(rf"(?<!\w){re.escape(gold.strip())}(?!\w)", text, re.IGNORECASE))


def _cases(test: ast.FunctionDef | ast.AsyncFunctionDef, constants: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of a test's parameters, or one empty case."""
    for mark in test.decorator_list:
        if isinstance(mark, ast.Call) and "parametrize" in ast.dump(mark.func):
            names, cases = literal(mark.args[0]), value_of(mark.args[1], constants)
            if cases is None and isinstance(mark.args[1], ast.List):
                cases = [literal(case) for case in mark.args[1].elts]
            columns = re.split(r",\s*", names) if isinstance(names, str) else list(names or ())
            lines = [case if len(columns) > 1 else (case,) for case in cases or () if case is not None]
            return [dict(zip(columns, line, strict=True)) for line in lines]
    return [{}]


def _asserted(body: list[ast.stmt], names: dict[str, Any], tests: Tests) -> Iterator[tuple[Any, Any, bool]]:
    """Answer, gold and verdict of each assertion of a body, in which names have values."""
    for statement in body:
        if isinstance(statement, ast.For):
            for case in value_of(statement.iter, names) or ():
                targets = statement.target.elts if isinstance(statement.target, ast.Tuple) else [statement.target]
                values = case if isinstance(statement.target, ast.Tuple) else (case,)
                bound = {target.id: value for target, value in zip(targets, values, strict=True) if isinstance(target, ast.Name)}
                yield from _asserted(statement.body, names | bound, tests)
            continue
        if (test := _assertion(statement)) is not None:
            yield from _verdict(test, names, tests)
            continue
        for node in ast.walk(statement):
            _noted(node, names)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if name.startswith("messages") and isinstance(turns := literal_with(statement.value, names), list):
                names["(reply)"] = next((t["content"] for t in turns if isinstance(t, dict) and t.get("role") == "assistant"), None)
            names[name] = value_of(statement.value, names)


def _assertion(statement: ast.stmt) -> ast.expr | None:
    """What a statement asserts, with ``assert`` or a method of unittest; else None."""
    if isinstance(statement, ast.Assert):
        return statement.test
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
        return None
    if call.func.attr == "assertEqual":
        return ast.Compare(call.args[0], [ast.Eq()], [call.args[1]])
    if call.func.attr in ("assertTrue", "assertFalse"):
        return call.args[0] if call.func.attr == "assertTrue" else ast.UnaryOp(ast.Not(), call.args[0])
    return None


def literal_with(node: ast.expr, names: dict[str, Any]) -> Any:
    """A list of objects in which names stand as values."""
    if isinstance(node, ast.List):
        return [literal_with(item, names) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {literal(k): value_of(v, names) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    return value_of(node, names)


def _noted(node: ast.AST, names: dict[str, Any]) -> None:
    """Keep the reply and the gold that a call or an object of JSON holds, under names of their own."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "text":
                names["(reply)"] = value_of(value, names)
    elif isinstance(node, ast.Call):
        called, keywords = ast.unparse(node.func), {k.arg: literal_with(k.value, names) for k in node.keywords}
        if called == "Message" and keywords.get("role") == "assistant":
            names["(reply)"] = keywords.get("content")
        if node.args and _MADE.search(called):
            names["(reply)"] = value_of(node.args[0], names)
        elif node.args and _MADE_GOLD.search(called):
            names["(gold)"] = value_of(node.args[0], names)
        for key, value in keywords.items():
            if key in _REPLY and isinstance(value, str):
                names["(reply)"] = value
            elif key in _GOLD:
                turn = value[0] if key == "ground_truth" and isinstance(value, list) and value else value
                content = turn.get("content") if isinstance(turn, dict) else turn
                names["(gold)"] = content if content is not None or key != "ground_truth" else names.get("(gold)")


def _verdict(test: ast.expr, names: dict[str, Any], tests: Tests) -> Iterator[tuple[Any, Any, bool]]:
    """Of ``result.reward == 1.0``, ``score(s)["correct"] is True``, ``read(text) == gold`` or ``[not] compare(answer, gold)``."""
    negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    expression = test.operand if isinstance(test, ast.UnaryOp) else test
    value: Any = not negated
    if isinstance(expression, ast.Compare):
        right = expression.comparators[0]
        called = right.args[0] if isinstance(right, ast.Call) and ast.unparse(right.func).endswith("approx") else right
        value = value_of(called.elts[0] if isinstance(called, ast.Tuple) else called, names)
        expression = expression.left
    rewarded = isinstance(expression, ast.Attribute) and expression.attr in _VERDICTS and value in (0, 1)
    if rewarded or (
        isinstance(expression, ast.Subscript) and literal(expression.slice) == "correct" and "fuzzy" not in ast.unparse(expression)
    ):
        yield names.get("(reply)"), names.get("(gold)"), bool(value)
    call = expression.value if isinstance(expression, ast.Await) else expression
    if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Call) and call.attr in ("status", "correct"):
        call, value = call.value, {"AUTHORITY_ACCEPT": True, "AUTHORITY_REJECT": False}.get(ast.unparse(right), value)
    if isinstance(call, ast.Call) and not call.keywords:
        name, texts = ast.unparse(call.func).rpartition(".")[2], [value_of(argument, names) for argument in call.args]
        if name in tests.read and len(texts) > tests.read[name] and (golds := _read(value)):
            text = texts[tests.read[name]]
            yield from ((text, gold, True) for gold in golds)
            if tests.letters and re.fullmatch("[A-Z]", golds[0]):
                yield from ((text, letter, False) for letter in "ABCD" if letter != golds[0] and not holds(str(text), letter))
        elif name in tests.compared and len(texts) > max(tests.compared[name]) and value in (0, 1):
            answer, gold = (texts[place] for place in tests.compared[name])
            yield answer, gold if isinstance(gold, str) or gold is None else f"{gold:g}", bool(value)


def _read(value: Any) -> list[str]:
    """Gold, where a function gives a text, or a list with one pair of the place and its value."""
    if isinstance(value, str) and value:
        return [value]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], tuple):
        return [value[0][1] if isinstance(value[0][1], str) else f"{value[0][1]:g}"]
    return []
