"""Extracting and comparing final answers, for grading recorded runs. Bring your own ``correct`` for anything finer."""

from __future__ import annotations

import re
from decimal import Context, InvalidOperation

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LEAD = re.compile(r"^(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=]?\s*", re.IGNORECASE)
_EXACT = Context(prec=1000, traps=[InvalidOperation])  # the default context rounds whole numbers to 28 digits
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")


def extract(text: str | None) -> str | None:
    r"""The answer in a reply: the last ``\boxed{…}``, else the text without a leading "The answer is"; None if empty."""
    if text is None:
        return None
    boxed = _BOXED.findall(text)
    answer = boxed[-1] if boxed else _LEAD.sub("", text.strip())
    return answer.strip() or None


def normalise(text: str | None) -> str | None:
    """A form in which equal answers are equal: case, spaces, ``$``, a final full stop, thousands commas, 1.0 = 1."""
    if text is not None and text.isdecimal() and text.isascii() and len(text) <= 400:
        return text.lstrip("0") or "0"  # what the rest makes of it; most recorded answers are such numbers
    answer = extract(text)
    if answer is None:
        return None
    answer = " ".join(answer.strip("$*` \n\t").casefold().rstrip(".").split())
    plain = _THOUSANDS.sub("", answer)
    try:
        number = _EXACT.create_decimal(plain).normalize(_EXACT)
        return format(number, "f") if number.is_finite() and abs(number.adjusted()) < 400 else answer
    except InvalidOperation:
        return answer or None


def same(a: str | None, b: str | None) -> bool:
    """Whether two answers are equal after :func:`normalise`; a missing answer equals nothing, not even another one."""
    left = normalise(a)
    return left is not None and left == normalise(b)
