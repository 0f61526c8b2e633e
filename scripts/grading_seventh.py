"""The seventh part: tests and a corpus of seven more projects that read or compare answers.

Written, and put into the repository, before any of its texts was graded here, and graded first with the reader of answers as it was
left after the sixth part. Left out by rule, beside what ``grading_sixth.py`` says:

* tests that give a function options of its own: tolerances, units that must be there, readers and comparers (``OPTIONS``); tests
  that a reader of numbers knows no letters, and of what maths-engine takes for the exponent of a unit;
* numbers read in prose without a mark of an answer (``_P4_`` in the names of tests), lists without order;
* cases that the corpus of reward-doctor itself calls contested, and its rounded decimal for a third;
* powers of ten that a project refuses as typed (``9e0``), and gold in other forms than a text or a number.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from grading_rows import Row, literal
from grading_tests import Tests, counts, tests_of

PACKAGES = {
    "eval_protocol": "eval-protocol==0.3.33",
    "theaios_trustgate": "theaios-trustgate==0.3.10",
    "reward_doctor": "reward-doctor==0.2.0",
    "maths_engine": "maths-engine==0.1.0",
    "retrain": "retrain==0.3.2",
    "step_distill": "step-distill==0.1.12",
    "grounded_judge_gate": "grounded-judge-gate==0.3.0",
}
"""File name's start of each source package, and what pip calls it."""
OPTIONS = r"tolerance=|require_units=|_fn=|which="
NUMBERS_ONLY = "match_mcq|answer_mcq|priority_mcq|mcq_takes"
"""In the names of tests that letters are not read."""
_MATHS_ENGINE = "tests/test_grading_number_single_value.py"
_READERS = {
    "tests/test_math.py": ("eval_protocol", Tests(read={"extract_numbers": 0}, options=f"{OPTIONS}|{NUMBERS_ONLY}")),
    "tests/test_accuracy.py": ("eval_protocol", Tests(options=OPTIONS)),
    "tests/test_multiple_choice_math_reward.py": (
        "eval_protocol",
        Tests(read={"extract_mcq_option": 0}, options="test_both_ambiguous|test_ambiguous_original", letters=True),
    ),
    "tests/canonicalize/test_numeric.py": ("theaios_trustgate", Tests(read={"canonicalize": 1})),
    "tests/canonicalize/test_mcq.py": ("theaios_trustgate", Tests(read={"canonicalize": 1}, letters=True)),
    "tests/test_rewards.py": ("retrain", Tests(read={"extract_boxed": 0}, compared={"score": (0, 1)})),
    "tests/test_metrics.py": ("step_distill", Tests(compared={"_is_match": (1, 0)})),
    "tests/test_inference.py": ("step_distill", Tests(read={"_extract_boxed_answer": 0})),
    "tests/test_authority.py": ("grounded_judge_gate", Tests(compared={"check_authority": (0, 1)})),
    _MATHS_ENGINE: ("maths_engine", Tests(compared={"_correct": (1, 0)}, options="unit_exponent", strict=True)),
}
"""By the name of a file: its package, and how it is read."""
_CORPUS = re.compile(r"src/reward_doctor/corpus/(?:math_cases|exploits)\.py")
_POWER_OF_TEN = re.compile(r"[\d.]+e\d+")
_THIRD = re.compile(r"0\.3{4,}")


def rows_of(package: str, name: str, content: bytes) -> Iterator[Row]:
    """Rows of one file of a package."""
    if package == "reward_doctor" and _CORPUS.fullmatch(name):
        yield from _cases(ast.parse(content))
    elif name in _READERS and _READERS[name][0] == package:
        for row in tests_of(ast.parse(content), f"{package.replace('_', '-')} tests", _READERS[name][1]):
            if not _POWER_OF_TEN.fullmatch(row.answer):
                yield row


def _cases(tree: ast.Module) -> Iterator[Row]:
    """Rows of ``_eq(id, reference, completion, …)`` and the like, and of ``_x(id, attack, completion, …)`` with a wrong answer."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        kind, texts = call.func.id, [literal(argument) for argument in call.args]  # type: ignore[attr-defined]
        keywords = {keyword.arg: literal(keyword.value) for keyword in call.keywords}
        if kind not in ("_eq", "_ne", "_fmt", "_x") or len(texts) < 3 or "contested" in (keywords.get("tags") or ()):
            continue
        gold = keywords.get("reference", "42") if kind == "_x" else texts[1]
        equal = kind in ("_eq", "_fmt")
        if counts(texts[2], gold, equal, strict=True) and not (equal and _THIRD.fullmatch(texts[2])):
            yield Row(texts[2], gold, equal, "reward-doctor corpus")
