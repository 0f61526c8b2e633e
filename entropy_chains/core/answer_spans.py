r"""Where in a reply its answer stands: in a box, behind "the answer is", in bold, at the end of the last sentence.

What is found is a text for :mod:`entropy_chains.core.answer_kinds`. Where a reply names several candidates, takes something back
or denies it, nothing is found: "not 5", "5 or 6", "5. Wait, no".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST = 5_000
"""Characters of a reply that are looked at, from its end."""

_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>")
_CLOSING = re.compile(r"(?:\s*\b(?:I hope (?:it|this)|Let me know|Hope this)\b[^.!?]*[.!?])+\s*$", re.IGNORECASE)
_BOX = re.compile(r"\\+(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(r"(?:[a-z]_\{?\w\}?\s*=|\\text\s*\{[^{}]*\}|\\q?quad|\\[,; ]|\band\b|[\s,;$.()\[\]\\&])*")
_CUE = re.compile(
    r"""(?:
        \#\#\#\#\s|<answer>|^\W*(?:result|solution|output)\s*:
        |(?:\b(?:answer|antwort|respuesta|réponse|risposta|resposta|svar|antwoord)\b|ответ|答案|答え|回答|정답)
         (?:\s*\([^()]{0,30}\))?["'*]{0,3}\s*
         (?:(?:to|for)\s[^.:\n]{1,80}?)?
         (?:\s*[:：=]+|\s+(?:is|was|are|(?:would|will|should|must)\ be|equals|ist|es|est|è|é|er|är)\b|[은는は是]
           |(?=\s*[A-Z]\b)|(?=\s*(?:\$|\\[(\[])))
    )\s*[:：]?(?:\s*(?:thus|therefore|then|simply|clearly|indeed|option)\b)?""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_BOLD = re.compile(r"\*\*([^*\n]+?)\*\*|__([^_\n]+?)__")
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|no longer|correction|on second thought|let me re|instead|mistake|oops|hmm|scratch that)\b", re.I
)
_SENTENCE_END = re.compile(r"(?<=[.!?。])(?<!\b[A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bapprox\.)\s+|\n+")
_ASIDE = re.compile(
    r"\s*(?:[,;]\s|\s\(|\s[–—-]\s|\b(?:because|since|which|as|so|where|when|after|given)\b).*", re.DOTALL | re.IGNORECASE
)
_ANOTHER = re.compile(r"\s*[,;(–—-]*\s*(?:(?:or|and|nor|but|to|maybe|perhaps|possibly)\b|[-+]?[\d$\\]|\(?[A-Z]\b\W)", re.IGNORECASE)
_UNSURE = re.compile(
    r"""\b(?:not|nor|never|neither|either|or|versus|vs|cannot|between|false\ that|wrong|incorrect|unlikely|unclear|whether|if|unless
         |maybe|perhaps|possibly|rather\ than|instead\ of|at\ least|at\ most|(?:more|less|fewer|other)\ than|up\ to|except|under
         |over|[A-Z]/[A-Z]|and/or|yes/no)\b|n't\b|\?""",
    re.IGNORECASE | re.VERBOSE,
)
_HEDGED = re.compile(r"^\W*(?:not\b|neither\b|either\b|between\b|none\b|unclear\b|unknown\b|n't)", re.IGNORECASE)


def end_of(text: str) -> str:
    """The part of a reply that is looked at: its end, without what a chat template or a polite model puts there."""
    return _CLOSING.sub("", _SPECIAL_TOKEN.split(text[-LONGEST:].strip(), maxsplit=1)[0] or text[-LONGEST:])


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Every ``\boxed{…}`` with its begin, its end and what stands in it; braces are counted, an open one ends with the text."""
    found, at = [], 0
    while box := _BOX.search(text, at):
        depth, end = 1, box.end()
        while end < len(text) and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        found.append((box.start(), end, text[box.end() : end - (not depth)]))
        at = end
    return found


def boxed(text: str) -> tuple[str, int] | None:
    """What stands in the last box, of boxes that only an "and" or a comma parts in all of them, and where it ends."""
    found = [b for b in boxes(text) if b[2].strip()]
    if not found:
        return None
    parts, begin = [found[-1][2]], found[-1][0]
    for start, end, inner in reversed(found[:-1]):
        if not _BETWEEN_BOXES.fullmatch(text[end:begin]) or "\n\n" in text[end:begin]:
            break
        parts, begin = [inner, *parts], start
    return (parts[0] if len({p.strip() for p in parts}) == 1 else ", ".join(parts)), found[-1][1]


def cued(text: str, after: int = 0) -> str | None:
    """What follows the last "answer is", "Answer:" or "####" after a place, to the end of its sentence; None without one."""
    plain = text[after:].replace("**", "").replace("__", "")
    for cue in reversed(list(_CUE.finditer(plain))):
        span = _first_sentence(plain[cue.end() :]).partition("</answer>")[0]
        span = span.rstrip("\"' }") if text.lstrip().startswith("{") else span  # an object of JSON
        if span.strip(" .:*"):
            return span
    return None


def taken_back(text: str) -> bool:
    """Whether a reply goes on after its last "answer is" with second thoughts."""
    plain = text.replace("**", "")
    cues = list(_CUE.finditer(plain))
    return bool(cues and _TAKEN_BACK.search(plain, cues[-1].end()))


def _first_sentence(text: str) -> str:
    text = text.lstrip(" \t\n*:")
    for opening, closing in (("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"), ("$", "$")):
        if text.startswith(opening) and (end := text.find(closing, len(opening))) > 0:
            head = end + len(closing)
            return text[:head] + _SENTENCE_END.split(text[head:], maxsplit=1)[0]
    return _SENTENCE_END.split(text, maxsplit=1)[0]


def last_sentence(text: str) -> str:
    """The last sentence of a text, that has one."""
    return next((s for s in reversed(_SENTENCE_END.split(text.strip())) if re.search(r"\w", s)), text.strip())


_EXPLAINED = re.compile(r"\s*(\S.{0,60}?)\s*\n\s*\W*(?:explanation|because|reason|this|the|here)\w*\b", re.IGNORECASE)


def explained(text: str) -> str | None:
    """The first line of a reply that goes on with an explanation."""
    found = _EXPLAINED.match(text)
    return found[1] if found else None


_CONCLUSION = re.compile(r".*\b(?:therefore|thus|hence|consequently|so)\b,?\s", re.IGNORECASE | re.DOTALL)


def conclusion(text: str) -> str:
    """The last sentence, from its last "therefore" or "so" on."""
    sentence = last_sentence(text)
    found = _CONCLUSION.match(sentence)
    return sentence[found.end() :] if found and found.end() < len(sentence) else sentence


def bold(text: str) -> str | None:
    """The one bold text of the last paragraph; None where there is none, or several."""
    paragraph = next((p for p in reversed(text.split("\n\n")) if p.strip()), "")
    found = {(a or b).strip(" :.") for a, b in _BOLD.findall(paragraph)}
    return found.pop() if len(found) == 1 else None


_SEVERAL = re.compile(r",(?!\d{3}(?:\D|$))|;|\b(?:and|or)\b")
_UNKNOWN = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z(])")


def result(sentence: str) -> str | None:
    """What follows the last ``=`` of a calculation, or of a name's value; None without one, and behind an equation."""
    plain = sentence.replace("**", "").replace(r"\approx", "≈")
    before, equals, after = plain.rpartition("=" if "=" in plain else "≈")
    if not equals or before[-1:] in tuple("<>!≤≥") or _SEVERAL.search(before):
        return None
    side = re.sub(r"(?<=\d)\s*x\s*(?=\d)", "×", before.rpartition("=")[2])
    return None if re.search(r"[-+*/^]", side) and _UNKNOWN.search(side) else after


def clauses(span: str) -> Iterator[str]:
    """A span as it stands, then without what is said on the side: ``8 apples, since 5 + 3 = 8``."""
    yield span
    short = _ASIDE.sub("", span)
    if short.strip() and short != span and not _ANOTHER.match(span[len(short) :]):
        yield short


def unsure(text: str) -> bool:
    """Whether a text denies, doubts, or names more than one thing."""
    return bool(_UNSURE.search(text))


def hedged(span: str) -> bool:
    """Whether an answer's text begins by denying it."""
    return bool(_HEDGED.search(span))


_OPTION = re.compile(
    r"""\(([A-Z])\)
        |\b(?:option|choice|answer|letter)\s+([A-Z])\b
        |(?<![A-Za-z0-9_'’.])([A-Z])(?![A-Za-z0-9_'’]|\.\w|\s+[a-z])
        |\b([A-Z])\s+(?:and|or|nor|but|vs|is|was|would|seems|because|since)\b""",
    re.VERBOSE,
)
_CHOSEN = re.compile(
    r"""(?:^|\(|:\s*|\b(?:is|be|am|so|thus|therefore|with|choose|chose|select|pick|option|choice|answer|letter)\b:?\s*)
        \(?([A-Z])(?![A-Za-z0-9])""",
    re.VERBOSE,
)
_MATH = re.compile(r"\$\$.+?\$\$|\$.+?\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_TOLD = re.compile(
    r".*(?:\b(?:is|was|are|were|be|equals|called|named|at)|\bit['’]s)\b[\s:]+(?:the\s+)?(.+)$", re.IGNORECASE | re.DOTALL
)


def told(sentence: str) -> str | None:
    """What a sentence says of its subject: all that follows the last "is"."""
    found = _TOLD.match(sentence)
    return found[1] if found else None


def letters(sentence: str) -> list[str]:
    """Every option's letter that a sentence names, if it chooses one of them; the article and the pronoun are none."""
    plain = re.sub(r"\*\*|\\\(|\\\)|\$", "", sentence).strip()
    named = {"".join(groups) for groups in _OPTION.findall(plain)} - {"I"}
    return sorted(letter.casefold() for letter in named) if named & set(_CHOSEN.findall(plain)) else []


def formulas(sentence: str) -> list[str]:
    """Everything that stands between math delimiters."""
    return [found[0] for found in _MATH.finditer(sentence)]
