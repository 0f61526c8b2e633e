"""Numbers as people say them: in words, with "minus" before them, with a note on their rounding. Pure functions on short texts."""

from __future__ import annotations

import re

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = ("half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_VALUES = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}

_NUMERAL = "|".join((*_VALUES, *_SCALES))
_SPELLED = re.compile(
    rf"""(?P<sign>(?:minus|negative)\s+)?
        (?P<whole>(?:an?\s+(?={"|".join(_SCALES)}))?(?:{_NUMERAL})(?:(?:\s+and\s+(?=(?:{_NUMERAL})\b)|[\s-]+)(?:{_NUMERAL})\b)*)?
        (?:\s+point(?P<point>(?:[\s-]+(?:{"|".join(_ONES[:10])})\b)+))?
        (?P<part>(?:(?:^|\s+and\s+|(?<=\s))an?\s+|[\s-]*)(?P<name>{"|".join(_PARTS)}|halves)s?)?
        (?P<rest>(?-i:\s+[a-z]+s)|\s*(?:%|percent|per\s+cent))?""",
    re.IGNORECASE | re.VERBOSE,
)


def in_digits(text: str) -> str:
    """A text that is a number in words, and at most a unit, with the number in digits: ``minus nine``, ``two and a half hours``.

    Any other text is what it was.
    """
    match = _SPELLED.fullmatch(text)
    if not match or not (match["whole"] or match["part"]):
        return text
    whole = _whole(match["whole"] or "")
    digits = None if whole is None else f"{whole}" if match["whole"] else ""
    if digits and match["point"]:
        digits += "." + "".join(str(_VALUES[word]) for word in re.findall(r"[a-z]+", match["point"].casefold()))
    if digits is not None and match["part"]:
        digits = None if match["point"] else _with_part(digits, match["part"].casefold(), match["name"].casefold())
    return text if digits is None else f"{'-' if match['sign'] else ''}{digits}{match['rest'] or ''}"


def _with_part(whole: str, part: str, name: str) -> str | None:
    """A fraction: ``three quarters``, ``a third``, ``half``, or with a whole number before it, ``two and a half``."""
    under = 2 if name == "halves" else _PARTS.index(name) + 2
    article = re.match(r"\s*(?:and\s+)?an?\s", part)
    if whole and article:
        return f"{whole} 1/{under}"
    if whole:
        return f"{whole}/{under}"
    return f"1/{under}" if article or name == "half" else None  # a third, but "third" is a rank


def _whole(words: str) -> int | None:
    """The whole number of some words; None where they are several: ``nine nine``."""
    total, current, room = 0, 0, 100  # what comes next must be below the room that is left: 9 behind twenty, no number behind nine
    for word in re.findall(r"[a-z]+", words.casefold()):
        if (scale := _SCALES.get(word)) is not None:
            total, current = (total + (current or 1) * scale, 0) if scale > 100 else (total, (current or 1) * scale)
            room = 100
        elif word in _VALUES:
            if _VALUES[word] >= room:
                return None
            current, room = current + _VALUES[word], 10 if _VALUES[word] >= 20 else 0
    return total + current


_MINUS = re.compile(r"\b(?:minus|negative)\s*(?=[$€£]?\.?\d)", re.IGNORECASE)
_DIFFERENCE = re.compile(r"(?:[\d)\]}$%°]|(?<![A-Za-z])[A-Za-z]|\b(?:or|plus)\W*)\s*$", re.IGNORECASE)
_NOTE = re.compile(r"nearest|decimal|significant|\bsig\b|\b[ds]\.?\s?[pf]\b|\d[ds]\.?[pf]\b", re.IGNORECASE)
_COUNTS = {word: n for n, word in enumerate(_ONES[:7])}
_ROUNDING = re.compile(
    r"""(?<![\d,.])(?P<number>\d[\d,]{0,30}(?:\.\d{1,30})?)(?P<unit>\s*[A-Za-z°%]{1,12})??
        (?P<note>[\s,]*(?:\(\s*)?(?:\b(?:correct|rounded|accurate|given)\s+)?(?:\bto\s+(?:the\s+)?|(?<=\()\s*)
        (?:nearest\s+(?:whole\s+number|integer|unit|tenth|hundredth|thousandth|ten|hundred|thousand|cent)
        |(?P<count>\d{1,2}|one|two|three|four|five|six)\s*
         (?:(?P<places>decimal\s+places?|decimals?|d\.?\s?p\b\.?)
         |significant\s+(?:figures?|digits?)|sig\.?\s*fig(?:ure)?s?\b\.?|s\.?\s?f\b\.?))
        (?:\s*\))?)""",
    re.IGNORECASE | re.VERBOSE,
)


def plainly(text: str) -> str:
    """A text with ``-5`` for ``minus 5``, and without what says how a number was rounded; ``8 minus 5`` stays a difference."""
    text = _MINUS.sub(lambda m: m[0] if _DIFFERENCE.search(text, max(0, m.start() - 20), m.start()) else "-", text)
    if not _NOTE.search(text):
        return text
    return _ROUNDING.sub(lambda m: m["number"] + (m["unit"] or "") if _rounded(m) else m[0], text)


def _rounded(match: re.Match[str]) -> bool:
    """Whether a number has the places that its note says: ``9.5 (1 dp)``, but not ``5 to 6 decimal places``."""
    if not match["count"]:
        return True
    count = _COUNTS.get(match["count"].casefold()) or int(match["count"])
    whole, _, decimals = match["number"].replace(",", "").partition(".")
    digits = (whole + decimals).lstrip("0")
    return len(decimals) == count if match["places"] else len(digits.rstrip("0")) <= count <= len(digits)
