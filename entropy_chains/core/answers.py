"""Comparing answers as people write them: the one place that says when two are equal, for grading and for agreement rules.

How answers are read stands in :mod:`answer_spans` (where the answer is), :mod:`answer_kinds` (what it is) and :mod:`answer_words`
(numbers as people say them); mathematics is compared by math-verify where it is installed (:mod:`answer_maths`).
``docs/grading.md`` says what is read and what is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial

from entropy_chains.core import answer_maths as maths
from entropy_chains.core import answer_spans as spans
from entropy_chains.core.answer_kinds import MOST_DIGITS, Answer, Kind, number_form, numbers_in, read_kind
from entropy_chains.errors import SettingsError
from entropy_chains.validation import Check, short

AUTO = "auto"
GRADES = (AUTO, "exact", "number", "choice", "math")
"""Ways to grade by name; ``regex:PATTERN`` and ``python:NAME`` are the others."""

_DIGITS = re.compile(r"-?[0-9]{1,300}(?:\.[0-9]{1,99})?")
"""Numbers that need no reading: their plain form says everything."""

Same = Callable[[str | None, str | None], bool]
Grader = Callable[[str, str], bool]
"""A user's function: whether an answer equals the gold answer, or another answer."""


def extract(text: str | None) -> str | None:
    r"""The text in a reply that is its answer: the last box, what follows "The answer is", else all of it; None if empty."""
    if text is None or not text.strip():
        return None
    part = spans.end_of(text)
    box = spans.boxed(part)
    span = box[0] if box else None if spans.taken_back(part) else spans.cued(part)
    return (span or text).strip() or None


def normalise(text: str | None) -> str | None:
    """A form in which equal answers are mostly equal: the number, the letter, yes or no, or the words in small letters."""
    if text is not None and text.isdecimal() and text.isascii() and len(text) <= MOST_DIGITS:
        return text.lstrip("0") or "0"  # what the rest makes of it; most recorded answers are such numbers
    if text is not None and _DIGITS.fullmatch(text):
        return number_form(text)
    answer = None if text is None else _read(text)
    return None if answer is None else answer.text


def same(a: str | None, b: str | None) -> bool:
    """Whether an answer equals the gold answer ``b``, or another answer; one that is missing equals nothing, not even another."""
    if a is None or b is None:
        return False
    left, right = normalise(a), normalise(b)
    if left is None or left == right or (a.isdecimal() and b.isdecimal()):
        return left is not None and left == right
    return right is not None and not (_DIGITS.fullmatch(a) and _DIGITS.fullmatch(b)) and _same_read(a, b)


@dataclass(frozen=True, slots=True)
class Comparer:
    """One way to compare answers.

    Attributes:
        grade: its name, as in traces and policies.
        normalise: a form of an answer; equal forms mean equal answers, a missing answer has none.
        same: whether two answers are equal, where their forms are not.
        read: what is read of an answer in the light of the gold answer, for people.
    """

    grade: str
    normalise: Callable[[str | None], str | None]
    same: Same
    read: Callable[[str | None, str], str | None]


def comparer(grade: str = AUTO, grader: Grader | None = None) -> Comparer:
    """How answers are compared under a grade.

    Args:
        grade: one of :data:`GRADES`, ``regex:PATTERN`` (its first group, else the whole match, the last one in the text) or
            ``python:NAME``.
        grader: for ``python:NAME`` the function: whether an answer (a text, first) equals the gold answer, or another answer.

    Raises:
        SettingsError: there is no such grade, or its function was not given.
        MissingExtraError: ``math`` without the library.
    """
    if wrong := fault(grade):
        raise SettingsError(wrong)
    kind, _, rest = grade.partition(":")
    if kind == "python":
        if grader is None:
            raise SettingsError(f"grade is {short(grade)}: give its function; it is never imported by its name")
        return Comparer(grade, _stripped, partial(_asked, grader), lambda answer, gold: _stripped(answer))
    if kind == "regex":
        form = partial(_matched, re.compile(rest))
        return Comparer(grade, form, partial(_matches, form), lambda answer, gold: form(answer))
    if kind == "exact":
        return Comparer(grade, _stripped, _equal_texts, lambda answer, gold: _stripped(answer))
    if kind in ("number", "choice"):
        return Comparer(grade, partial(_form_of_kind, kind), partial(_same_kind, kind), _shown)
    if kind == "math":
        maths.check_installed()
    return Comparer(grade, normalise, same, _shown)


def never(a: str, b: str) -> bool:
    """Stands for a grader that was not given: no two answers are known to be equal."""
    return False


def fault(grade: object) -> str | None:
    """What is wrong with a grade, or None."""
    if isinstance(grade, str):
        kind, colon, rest = grade.partition(":")
        if grade in GRADES or (kind == "python" and rest):
            return None
        if kind == "regex" and colon and rest:
            try:
                re.compile(rest)
            except (re.error, RecursionError, OverflowError) as error:
                return f"grade is {short(grade)}, which is no regular expression ({error})"
            return None
    return f"grade is {short(grade)}; it must be {GRADE.wanted}"


GRADE = Check(lambda v: fault(v) is None, f"one of {', '.join(GRADES)}, regex:PATTERN or python:NAME", nullable=True, fault=fault)
"""Of a field ``grade``."""


# --- reading


_ASIDE = re.compile(r"^([^()]+?)\s+\(([^()]+)\)\W*$")


@lru_cache(8192)
def _read(text: str) -> Answer | None:
    """The answer of a reply that nothing is known about; of one that no rule reads its words."""
    if not text.strip():
        return None
    text = spans.half_width(text)
    part = spans.end_of(text)
    if (box := spans.boxed(part)) is not None:
        later = _of_cue(spans.cued(part, box[1]) or "")
        return later if later is not None and later.kind == "number" else read_kind(box[0])
    words = Answer("text", " ".join(text.casefold().split()), raw=text)
    span = spans.cued(part)
    if span is not None:
        if spans.taken_back(part) or spans.hedged(span):
            return words
        return _of_cue(span) or words
    aside = _ASIDE.match(text) if len(text) < 100 else None
    for whole in (_short(text), _short(aside[1]) if aside and not spans.unsure(aside[2]) else None):
        if whole is not None and whole.kind != "text":
            return whole
    if (first := _short(spans.explained(text) or "")) is not None and first.kind in ("choice", "yes/no"):
        return first
    bold, last = spans.bold(part), spans.last_sentence(part)
    if len(bold) == 1 and not spans.unsure(last) and (found_bold := read_kind(bold[0][0])) is not None and len(bold[0][0]) < 80:
        return found_bold
    return _result(last) or read_kind(text)


def _of_cue(span: str) -> Answer | None:
    """The answer at the beginning of what follows "the answer is"."""
    if (letter := spans.asserted(span)) is not None:
        return Answer("choice", letter, raw=span)
    readings = [reading for clause in spans.clauses(span) if (reading := _short(clause))]
    return next((reading for reading in readings if reading.kind != "text"), readings[0] if readings else None)


def _short(text: str) -> Answer | None:
    """Of a text that is about the answer and nothing else; a calculation stands for its result."""
    whole = read_kind(text)
    return (_result(text) or whole) if whole is not None and whole.kind in ("math", "text") else whole


def _result(sentence: str) -> Answer | None:
    """The number behind the last equals sign, where that is all that the sentence says."""
    span = spans.result(sentence)
    if span is None:
        return None
    return next((n for clause in spans.clauses(span) if (n := read_kind(clause)) and n.kind == "number"), None)


def _guided(text: str, like: Answer) -> Answer | None:
    """The answer of a reply in prose, where its kind is known; None where several answers come into question."""
    part = spans.end_of(spans.half_width(text))
    if spans.taken_back(part):
        return None
    scope = spans.cued(part) or spans.conclusion(_concluding(part))
    if like.kind == "number":
        scope = spans.without_denied(scope)
    if spans.unsure(scope):
        return None
    if like.kind == "number":
        numbers = numbers_in(scope)
        return numbers[0] if numbers and len({n.value for n in numbers}) == 1 else None
    if like.kind == "choice":
        return _only(spans.letters(scope), "choice")
    if like.kind == "yes/no":
        words = re.findall(r"\b(?:yes|no|true|false)\b(?=\s*(?:[.,;:!*]|$))", scope, re.IGNORECASE)
        return _only([word.casefold() for word in words], "yes/no")
    formulas = spans.formulas(scope) if like.kind == "math" else []
    if len(formulas) == 1:
        return read_kind(formulas[0])
    answer = read_kind(spans.predicate(scope) or "")
    return answer if answer is not None and answer.kind == like.kind else None


def _concluding(part: str) -> str:
    """The last sentence of the last paragraph in which an answer stands in bold, else the last of all."""
    marked = [sentence for text, sentence in spans.bold(part) if (kind := read_kind(text)) is not None and kind.kind != "text"]
    return marked[-1] if marked else spans.last_sentence(part)


def _only(texts: list[str], kind: Kind) -> Answer | None:
    return Answer(kind, texts[0]) if len(set(texts)) == 1 else None


# --- comparing


_PROSE = ("text", "yes/no")
"""Kinds of texts that may hold an answer of another kind: ``No, it is 5``."""


@lru_cache(8192)
def _same_read(a: str, b: str) -> bool:
    """Whether two texts are equal answers, whose forms are not: each is read in the light of the other where it is prose."""
    left, right = _read(a), _read(b)
    if left is None or right is None:
        return False
    if _equal(left, right):
        return True
    if left.kind in _PROSE and len(a) > len(right.raw) and (reading := _guided(a, right)) is not None:
        return _equal(reading, right)
    if right.kind in _PROSE and len(b) > len(left.raw) and (reading := _guided(b, left)) is not None:
        return _equal(left, reading)
    return False


def _equal(a: Answer, b: Answer) -> bool:
    """Whether an answer equals the gold answer ``b``, as they were read; the order matters to the library of mathematics only."""
    if a.kind == b.kind == "number":
        return _equal_numbers(a, b)
    if a.kind == b.kind and a.value == b.value and a.kind != "choice":
        return True
    if "choice" in (a.kind, b.kind):
        return _equal_choices(a, b)
    if {a.kind, b.kind} == {"number", "math"} and _decimal_comma(a) == _decimal_comma(b):
        return True
    if a.kind == b.kind == "math" and (_solutions(a) or _solutions(b)):
        return _equal_solutions(a, b)
    return "math" in (a.kind, b.kind) and not {"yes/no"} & {a.kind, b.kind} and maths.equal(_formula(b), _formula(a))


def _formula(answer: Answer) -> str:
    """What the library of mathematics is asked about: of a bare number its plain form, for it reads ``2 1/2`` as a product."""
    return answer.value if answer.kind == "number" and not answer.more else answer.raw


def _equal_numbers(a: Answer, b: Answer) -> bool:
    """Units may be missing, but not differ. 50 % is 0.5, and 50 where a percentage was asked for; 0.5 % is not 0.5."""
    if a.more == b.more or (not (a.more and b.more) and "%" not in (a.more, b.more)):
        return a.value == b.value
    percent, other = (a, b) if a.more == "%" else (b, a)
    if other.more or percent.more != "%":
        return False
    share = Fraction(percent.value)
    return Fraction(other.value) == share / 100 or (percent.value == other.value and abs(share) >= 1)


def _decimal_comma(answer: Answer) -> str | None:
    """A number's value, or that of ``2,74``, which is a list only where the other side is none."""
    if answer.kind == "math" and re.fullmatch(r"-?\d+,\d+", answer.raw):
        return number_form(answer.value.replace(",", "."))
    return answer.value


_NAMED = re.compile(r"(?:^|,)(\\?[A-Za-z]+(?:_\{?\w+\}?)?)=")


def _solutions(answer: Answer) -> list[dict[str, str]]:
    """The values of ``x=2,y=3`` by name, of several solutions with ``;`` between them one after the other.

    Empty where there are none, or all are values of one unknown: ``x=2,x=3``.
    """
    text = re.sub(r"(?<=[\d)}])and(?=\\?[A-Za-z])", ",", re.sub(r"\\q?quad", "", answer.value))
    groups = [_NAMED.split(group) for group in text.split(";")]
    if any(group[1::2] != groups[0][1::2] for group in groups):
        groups = [_NAMED.split(text.replace(";", ","))]
    if any(group[0] for group in groups) or len({name.partition("_")[0] for name in groups[0][1::2]}) < 2:
        return []
    return [dict(zip(group[1::2], group[2::2], strict=True)) for group in groups]


def _equal_solutions(a: Answer, b: Answer) -> bool:
    """By name, or where one side has no names, in the order of the other's: ``x=2,y=3`` and ``(2,3)``."""
    left, right = _solutions(a), _solutions(b)
    if left and right:
        return len(left) == len(right) and all(solution in right for solution in left)
    named, other = (left, b.value) if left else (right, a.value)
    tuples = ",".join(f"({','.join(solution.values())})" for solution in named)
    return tuples in (other, f"({other})")


def _equal_choices(a: Answer, b: Answer) -> bool:
    """The letters, or where one side has no letter, the words of the option."""
    if a.kind == b.kind:
        return a.value == b.value
    choice, other = (a, b) if a.kind == "choice" else (b, a)
    if other.kind in ("text", "math") and len(other.value) == 1:
        return choice.value == other.value.casefold()
    option = read_kind(choice.more) if choice.more else None
    return option is not None and option.kind == other.kind and _equal(option, other)


# --- the other grades


def _stripped(text: str | None) -> str | None:
    return (text.strip() or None) if text is not None else None


def _equal_texts(a: str | None, b: str | None) -> bool:
    left = _stripped(a)
    return left is not None and left == _stripped(b)


def _matches(form: Callable[[str | None], str | None], a: str | None, b: str | None) -> bool:
    """Whether the match in an answer is that in the gold answer, or where that has none, as usual, the gold answer."""
    left = form(a)
    return left is not None and left == (form(b) or normalise(b))


def _matched(pattern: re.Pattern[str], text: str | None) -> str | None:
    """The last match, normalised; None without one."""
    if text is None:
        return None
    matches = list(pattern.finditer(spans.end_of(text)))
    return normalise(matches[-1][min(1, pattern.groups)]) if matches else None


def _asked(grader: Grader, a: str | None, b: str | None) -> bool:
    return a is not None and b is not None and bool(grader(a, b))


def _form_of_kind(kind: str, text: str | None) -> str | None:
    answer = None if text is None else _read(text)
    return answer.text if answer is not None and answer.kind == kind else None


def _same_kind(kind: str, a: str | None, b: str | None) -> bool:
    read = [None if t is None else _read(t) for t in (a, b)]
    return any(r is not None and r.kind == kind for r in read) and same(a, b)


def _shown(answer: str | None, gold: str) -> str | None:
    """What is read of an answer in the light of the gold answer."""
    reading = None if answer is None else _read(answer)
    if answer is None or reading is None:
        return None
    if reading.kind == "text" and (like := _read(gold)) is not None and like.kind != "text":
        guided = _guided(answer, like)
        return guided.text if guided is not None else reading.text
    return reading.text
