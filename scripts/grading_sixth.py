"""The sixth part: replies that models gave in NeMo Gym, with gold and verdict, and tests of three projects that read answers.

Written, and put into the repository, before any of its texts was graded here. Left out by rule, since ``docs/grading.md`` says
that they are not read, or read with another grade than ``auto``:

* recorded rows: gold of several lines, of more than ``LONGEST`` characters or ``MOST_WORDS``, words that a model as judge compared
  (by their meaning), gold that is a list or a text of JSON, gold with an exponent above 1,000, replies that close with a tag of the
  project's own (``--grade regex:``) or have a form that the row itself names (``answer_format``), servers that grade other texts
  (``GRADERS``);
* a letter as gold that the reply does not name (it names the option's words, or a letter of another alphabet): needs the options;
* a refused reply that holds gold: refused for its form; but for those whose test says that several answers are named;
* tests of a way to choose among several candidates (``OWN_WAY``), calls with options (tolerances), equality but for an article
  or commas between words (the convention of SQuAD), and rounded decimals for irrational numbers.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from grading_rows import LEFT_OUT, Row, literal, plain, value_of, with_wrong

PACKAGES = {"nemo_gym": "nemo-gym==0.7.0", "nemo_evaluator": "nemo-evaluator==0.3.0", "ai4math": "ai4math==0.1.0"}
"""File name's start of each source package, and what pip calls it."""
LONGEST, MOST_WORDS = 100, 4
"""Of recorded gold: characters, and words in prose."""
GRADERS = ("imo_gradingbench", "imo_proofbench_judge", "generative_reward_model", "math_proof_judgement", "terminus_judge")
OWN_WAY = re.compile(r"fallback|falls_back|last_number|LastNumber|picks_last|last_line|first_box|strategy|braceless|shadow")
"""Names of tests of a project's own way to choose an answer where the text marks none, or several."""
TESTS = tuple(
    f"resources_servers/{name}/tests/" for name in ("mcqa", "string_match", "equivalence_rule", "hotpotqa_qa", "ruler2", "polymath")
)
"""Tests in NeMo Gym without a model as judge."""

_ROLLOUTS = re.compile(r"(?:environments|resources_servers)/(\w+)/data/example_rollouts\w*\.jsonl")
_SOLUTIONS = "resources_servers/ns_tools/data/compmath_test.jsonl"
_JUDGED = "resources_servers/math_with_judge/tests/test_app.py"
_OWN_TAG = re.compile(r"</(?!answer)\w+>\s*$")
_LARGE_EXPONENT = re.compile(r"\^\{?\d{4}")
_LETTER = re.compile(r"\(?[A-Z]\)?")


def rows_of(package: str, name: str, content: bytes) -> Iterator[Row]:
    """Rows of one file of a package."""
    if package == "nemo_gym" and (server := _ROLLOUTS.fullmatch(name)) and server[1] not in GRADERS:
        yield from _recorded(content)
    elif package == "nemo_gym" and name == _SOLUTIONS:
        lines = [json.loads(line) for line in content.splitlines()]
        solved = [(d["reference_solution"], d["expected_answer"]) for d in lines if "boxed" in d.get("reference_solution", "")]
        yield from with_wrong(solved, "nemo-gym, worked answers")
    elif package == "nemo_gym" and name.startswith((*TESTS, _JUDGED)) and name.endswith(".py"):
        yield from _tests(ast.parse(content), "nemo-gym tests")
    elif package == "nemo_evaluator" and name == "tests/test_scoring/test_benchmark_definitions.py":
        yield from _tests(ast.parse(content), "nemo-evaluator tests")
    elif package == "ai4math" and name in ("tests/test_answers.py", "tests/test_verify.py"):
        yield from _tests(ast.parse(content), "ai4math tests")


# --- recorded replies


def _recorded(content: bytes) -> Iterator[Row]:
    """Right replies with their gold and wrong golds; refused ones, whose answer the server read, with the gold they missed."""
    right: list[tuple[str, str]] = []
    for line in content.splitlines():
        row = json.loads(line) if line.startswith(b"{") else {}  # a file may be a pointer to one stored elsewhere
        if LEFT_OUT.encode() in line.lower() or row.get("reward") not in (0, 1) or "answer_format" in row:
            continue
        gold, reply = row.get("expected_answer", row.get("answer", row.get("ground_truth"))), _reply(row.get("response"))
        if not isinstance(gold, str) or not reply or not _short(gold) or _OWN_TAG.search(reply) or (_judged(row) and _words(gold)):
            continue
        if row["reward"] == 1:
            if _names(reply, gold):
                right.append((reply, gold))
        elif (read := row.get("extracted_answer")) and plain(str(read)) in plain(reply[-100:]) and not _holds(reply[-200:], gold):
            yield Row(reply, gold, False, "nemo-gym, recorded replies")
    yield from with_wrong(right, "nemo-gym, recorded replies")


def _judged(row: dict[str, Any]) -> bool:
    """Whether a model said if the reply is right."""
    return any(value for key, value in row.items() if key.startswith(("judge", "verdict")))


def _words(gold: str) -> list[str]:
    """The words of a gold answer in words."""
    return [] if re.search(r"[\d\\]", gold) else re.findall(r"[^\W\d_]{2,}", gold)


def _short(gold: str) -> bool:
    lines = gold.strip().splitlines()
    plain_text = len(lines) == 1 and not lines[0].startswith(("[", '"'))
    return plain_text and len(gold) <= LONGEST and len(_words(gold)) <= MOST_WORDS and not _LARGE_EXPONENT.search(gold)


def _reply(response: Any) -> str:
    """The text of the last message of an assistant, as the server's clients see it: without its thinking."""
    messages = response.get("output") if isinstance(response, dict) else None
    text = ""
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("type") == "message" and message.get("role") == "assistant":
            parts = message.get("content") or ""
            text = parts if isinstance(parts, str) else "".join(part.get("text", "") for part in parts)
    return text.rpartition("</think>")[2].strip()


def _names(reply: str, gold: str) -> bool:
    """Whether gold is no letter, or one that the reply names."""
    return not _LETTER.fullmatch(gold) or _holds(reply, gold.strip("()"))


def _holds(text: str, gold: str) -> bool:
    """Whether gold stands in a text as a word, capitals aside."""
    return bool(re.search(rf"(?<!\w){re.escape(gold.strip())}(?!\w)", text, re.IGNORECASE))


# --- tests

_READ = {"extract_boxed", "extract_final_answer", "extract_answer", "normalize_latex", "extract_mcq_letter", "_extract_answer"}
"""Functions of a text that give its answer."""
_COMPARED = {
    "answer_exact_match": (0, 1),
    "_grade_exact": (0, 1),
    "_grade_string_match": (1, 0),
    "_verify_answer_with_library_async": (1, 0),
    "verify": (1, 0),
    "numeric_equal": (1, 0),
    "symbolic_equal": (1, 0),
}
"""Functions that compare, with the places of the answer and of gold among their arguments."""
_REPLY = ("text", "response", "output_text")
_GOLD = ("expected", "expected_answer", "target")
_MADE = re.compile(r"make_response|make_verify_request|_message|_msg")
"""Helpers whose first argument is the reply."""
_ROUNDED = re.compile(r"-?\d+\.\d{5,}")


def _tests(tree: ast.Module, source: str) -> Iterator[Row]:
    for group in (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)):
        if OWN_WAY.search(getattr(group, "name", "")):
            continue
        for test in group.body:
            if (
                isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef)
                and not OWN_WAY.search(test.name)
                and LEFT_OUT not in test.name
            ):
                for names in _cases(test):
                    for answer, gold, equal in _asserted(test.body, dict(names)):
                        if _counts(answer, gold, equal, test.name):
                            yield Row(answer, gold, equal, source)


def _counts(answer: Any, gold: Any, equal: bool, test: str) -> bool:
    """Whether a row is about answers as they are compared here (see the rules on top)."""
    if not isinstance(answer, str) or not isinstance(gold, str) or not answer.strip() or not gold.strip():
        return False
    if not equal:
        return "ambiguous" in test or not _holds(answer, gold)
    if "\\" in gold and _ROUNDED.fullmatch(answer):
        return False
    bare = [re.sub(r"\b(?:a|an|the)\b|\W", "", text.casefold()) for text in (answer, gold)]
    return _names(answer, gold) and (bare[0] != bare[1] or plain(answer) == plain(gold))


def _cases(test: ast.FunctionDef | ast.AsyncFunctionDef) -> list[dict[str, Any]]:
    """The values of a test's parameters, or one empty case."""
    for mark in test.decorator_list:
        if isinstance(mark, ast.Call) and "parametrize" in ast.dump(mark.func):
            names, cases = (literal(argument) for argument in mark.args[:2])
            columns = re.split(r",\s*", names) if isinstance(names, str) else list(names or ())
            lines = [case if len(columns) > 1 else (case,) for case in cases or ()]
            return [dict(zip(columns, line, strict=True)) for line in lines]
    return [{}]


def _asserted(body: list[ast.stmt], names: dict[str, Any]) -> Iterator[tuple[Any, Any, bool]]:
    """Answer, gold and verdict of each assertion of a body, in which names have values."""
    for statement in body:
        if isinstance(statement, ast.For):
            for case in value_of(statement.iter, names) or ():
                targets = statement.target.elts if isinstance(statement.target, ast.Tuple) else [statement.target]
                values = case if isinstance(statement.target, ast.Tuple) else (case,)
                bound = {target.id: value for target, value in zip(targets, values, strict=True) if isinstance(target, ast.Name)}
                yield from _asserted(statement.body, names | bound)
            continue
        if isinstance(statement, ast.Assert):
            yield from _verdict(statement.test, names)
            continue
        for node in ast.walk(statement):
            _noted(node, names)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names[statement.targets[0].id] = literal(statement.value)


def _noted(node: ast.AST, names: dict[str, Any]) -> None:
    """Keep the reply and the gold that a call or an object of JSON holds, under names of their own."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "text":
                names["(reply)"] = value_of(value, names)
    elif isinstance(node, ast.Call):
        if _MADE.search(ast.unparse(node.func)) and node.args:
            names["(reply)"] = value_of(node.args[0], names)
        for keyword in node.keywords:
            value = value_of(keyword.value, names)
            if keyword.arg in _REPLY and isinstance(value, str):
                names["(reply)"] = value
            elif keyword.arg in _GOLD:
                names["(gold)"] = value


def _verdict(test: ast.expr, names: dict[str, Any]) -> Iterator[tuple[Any, Any, bool]]:
    """Of ``result.reward == 1.0``, ``score(s)["correct"] is True``, ``read(text) == gold`` or ``[not] compare(answer, gold)``."""
    negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    shown = test.operand if isinstance(test, ast.UnaryOp) else test
    value: Any = not negated
    if isinstance(shown, ast.Compare):
        right = shown.comparators[0]
        called = right.args[0] if isinstance(right, ast.Call) and ast.unparse(right.func).endswith("approx") else right
        value = value_of(called.elts[0] if isinstance(called, ast.Tuple) else called, names)
        shown = shown.left
    rewarded = isinstance(shown, ast.Attribute) and shown.attr == "reward" and value in (0, 1)
    if rewarded or (isinstance(shown, ast.Subscript) and literal(shown.slice) == "correct" and "fuzzy" not in ast.unparse(shown)):
        yield names.get("(reply)"), names.get("(gold)"), bool(value)
    call = shown.value if isinstance(shown, ast.Await) else shown
    if isinstance(call, ast.Call) and not call.keywords:
        name, texts = ast.unparse(call.func).rpartition(".")[2], [value_of(argument, names) for argument in call.args]
        if name in _READ and texts and isinstance(value, str):
            yield texts[0], value, True
        elif name in _COMPARED and len(texts) > 1 and value in (0, 1):
            answer, gold = _COMPARED[name]
            yield texts[answer], texts[gold], bool(value)
