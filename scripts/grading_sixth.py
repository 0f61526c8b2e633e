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

from grading_rows import LEFT_OUT, Row, plain, with_wrong
from grading_tests import Tests, holds, names_letter, tests_of

PACKAGES = {"nemo_gym": "nemo-gym==0.7.0", "nemo_evaluator": "nemo-evaluator==0.3.0", "ai4math": "ai4math==0.1.0"}
"""File name's start of each source package, and what pip calls it."""
LONGEST, MOST_WORDS = 100, 4
"""Of recorded gold: characters, and words in prose."""
GRADERS = ("imo_gradingbench", "imo_proofbench_judge", "generative_reward_model", "math_proof_judgement", "terminus_judge")
TESTS = tuple(
    f"resources_servers/{name}/tests/" for name in ("mcqa", "string_match", "equivalence_rule", "hotpotqa_qa", "ruler2", "polymath")
)
"""Tests in NeMo Gym without a model as judge."""
READ = Tests(
    read=dict.fromkeys(
        ("extract_boxed", "extract_final_answer", "extract_answer", "normalize_latex", "extract_mcq_letter", "_extract_answer"), 0
    ),
    compared={
        "answer_exact_match": (0, 1),
        "_grade_exact": (0, 1),
        "_grade_string_match": (1, 0),
        "_verify_answer_with_library_async": (1, 0),
        "verify": (1, 0),
        "numeric_equal": (1, 0),
        "symbolic_equal": (1, 0),
    },
)
"""Of the three projects."""

_ROLLOUTS = re.compile(r"(?:environments|resources_servers)/(\w+)/data/example_rollouts\w*\.jsonl")
_SOLUTIONS = "resources_servers/ns_tools/data/compmath_test.jsonl"
_JUDGED = "resources_servers/math_with_judge/tests/test_app.py"
_OWN_TAG = re.compile(r"</(?!answer)\w+>\s*$")
_LARGE_EXPONENT = re.compile(r"\^\{?\d{4}")


def rows_of(package: str, name: str, content: bytes) -> Iterator[Row]:
    """Rows of one file of a package."""
    if package == "nemo_gym" and (server := _ROLLOUTS.fullmatch(name)) and server[1] not in GRADERS:
        yield from _recorded(content)
    elif package == "nemo_gym" and name == _SOLUTIONS:
        lines = [json.loads(line) for line in content.splitlines()]
        solved = [(d["reference_solution"], d["expected_answer"]) for d in lines if "boxed" in d.get("reference_solution", "")]
        yield from with_wrong(solved, "nemo-gym, worked answers")
    elif package == "nemo_gym" and name.startswith((*TESTS, _JUDGED)) and name.endswith(".py"):
        yield from tests_of(ast.parse(content), "nemo-gym tests", READ)
    elif package == "nemo_evaluator" and name == "tests/test_scoring/test_benchmark_definitions.py":
        yield from tests_of(ast.parse(content), "nemo-evaluator tests", READ)
    elif package == "ai4math" and name in ("tests/test_answers.py", "tests/test_verify.py"):
        yield from tests_of(ast.parse(content), "ai4math tests", READ)


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
            if names_letter(reply, gold):
                right.append((reply, gold))
        elif (read := row.get("extracted_answer")) and plain(str(read)) in plain(reply[-100:]) and not holds(reply[-200:], gold):
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
