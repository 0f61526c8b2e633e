r"""Where in a reply its answer stands: in a box, behind "the answer is", in bold, at the end of the last sentence.

What is found is a text for :mod:`entropy_chains.core.answer_kinds`. Where a reply names several candidates, takes something back
or denies it, nothing is found: "not 5", "5 or 6", "5. Wait, no".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

TAIL_LENGTH = 5_000
"""Characters of a reply that are looked at, from its end."""

_FULL_WIDTH = str.maketrans(
    {0xFF01 + n: chr(0x21 + n) for n in range(94)}
    | {ord(sign): f"{to} " for sign, to in zip("，、；：。？！", ",,;:.?!", strict=True)}
)
"""Letters, digits and brackets as wide as Chinese characters, and the signs that part sentences there, as in ASCII."""
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>")
_CLOSING = re.compile(r"(?:\s*\b(?:I hope (?:it|this)|Let me know|Hope this)\b[^.!?]*[.!?])+\s*$", re.IGNORECASE)
_BOX = re.compile(r"\\+(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(
    r"(?:^\s*[a-z]+\s+and\b)?(?:[a-z]_\{?\w\}?\s*=|\\text\s*\{[^{}]*\}|\\q?quad|\\[,; ]|\band\b|[\s,;$.()\[\]\\&])*"
)
_CUE = re.compile(
    r"""(?:
        \#\#\#\#\s|<answer>|^\W*(?:result|solution|output)\s*:
        |(?:\b(?:[a-z]+_)?(?:answer|antwort|respuesta|réponse|risposta|resposta|svar|antwoord)\b|ответ|відповідь
          |答案|答え|回答|정답|उत्तर|উত্তর|الإجابة|الجواب|תשובה|απάντηση|cevap|yanıt|jawaban(?:nya)?|đáp\ án|câu\ trả\ lời|คำตอบ
          |odpowiedź|odpověď|odpoveď)
         (?:\s*\([^()]{0,30}\))?["'*]{0,3}\s*
         (?:(?:to|for)\s[^.:\n]{1,80}?)?
         (?:\s*[:：=]+|\s+(?:is|was|are|(?:would|will|should|must)\ be|equals|ist|es|est|è|é|er|är)\b|[은는は是为]
           |คือ|\s+(?:है|হল|হলো|هي|هو|adalah|là|jest|je|είναι)(?=\s)
           |(?=\s*[A-Z]\b)|(?=\s*(?:\$|\\[(\[])))
        |(?<![不能可应该别没])选择?(?=\s*\(?[A-Z]\)?[\s.!]*$)
    )\s*[:：]?(?:\s*(?:thus|therefore|then|simply|clearly|indeed|option)\b)?""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_JSON_KEY = re.compile(r"[{,]\s*[\"'](?:\w+ )?$")
"""What stands before "answer" where that is a key of an object of JSON, and what its value is there."""
_JSON_VALUE = re.compile(r"\s*(?:[\"']((?:[^\"\\]|\\.)*?)[\"']\s*(?=[,}])|([^\s\"',}\[{][^,}\n]*))")
_BOLD = re.compile(r"\*\*([^*\n]+?)\*\*|__([^_\n]+?)__")
_PLACEHOLDER = re.compile(r"\W*[\[<{$](?:LETTER|ANSWER|OPTION|CHOICE|NUMBER|RESULT|VALUE|your \w+)\W*$")
"""What a prompt that asks for a form has in the place of the answer; models repeat it."""
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|no longer|correction|on second thought|let me re|instead|mistake|oops|hmm|scratch that)\b", re.I
)
_SENTENCE_END = re.compile(r"(?<=[.!?。])(?<!\b[A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bapprox\.)\s+|\n+")
_ASIDE = re.compile(
    r"\s*(?:[,;]\s|\s\(|\s[–—-]\s|\b(?:because|since|which|as|so|where|when|after|given)\b).*", re.DOTALL | re.IGNORECASE
)
_ANOTHER = re.compile(
    r"\s*[,;(–—-]*\s*(?:(?:or|and|nor|but|to|maybe|perhaps|possibly)\b|[-+]?[\d$\\]|\(?[A-Z](?![A-Za-z0-9'’]))", re.IGNORECASE
)
_UNSURE = re.compile(
    r"""\b(?:not|nor|never|neither|either|or|versus|vs|cannot|between|false\ that|wrong|incorrect|unlikely|unclear|whether|if|unless
         |maybe|perhaps|possibly|rather\ than|instead\ of|at\ least|at\ most|(?:more|less|fewer|other)\ than|up\ to|except|under
         |over|[A-Z]/[A-Z]|and/or|yes/no|nicht|keine?|oder|falsch|vielleicht|pas|peut-être|ou|quizás|incorrect[oa])\b|n't\b|\?
        |不(?!过)|错|没|[非或吗]|是否|可能|也许|超过|至[少多]|最[少多]|[低高大小多少]于|以[上下]""",
    re.IGNORECASE | re.VERBOSE,
)
_HEDGED = re.compile(r"^\W*(?:not\b|neither\b|either\b|between\b|none\b|unclear\b|unknown\b|n't|不|非|并非)", re.IGNORECASE)


def half_width(text: str) -> str:
    """A text with ASCII letters, digits and punctuation where it has full-width ones; of several ``B，C`` is ``B, C``."""
    return text if text.isascii() else text.translate(_FULL_WIDTH)


def end_of(text: str) -> str:
    """The part of a reply that is looked at: its end, without what a chat template or a polite model puts there."""
    return _CLOSING.sub("", _SPECIAL_TOKEN.split(text[-TAIL_LENGTH:].strip(), maxsplit=1)[0] or text[-TAIL_LENGTH:])


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Every ``\boxed{…}`` with its begin, its end and what stands in it; braces are counted, an open one ends with the text."""
    spans, at = [], 0
    while box := _BOX.search(text, at):
        depth, end = 1, box.end()
        while end < len(text) and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        spans.append((box.start(), end, text[box.end() : end - (not depth)]))
        at = end
    return spans


def boxed(text: str) -> tuple[str, int] | None:
    """What stands in the last box, of boxes that only an "and" or a comma parts in all of them, and where it ends."""
    spans = [b for b in boxes(text) if b[2].strip()]
    if not spans:
        return None
    parts, begin = [spans[-1][2]], spans[-1][0]
    for start, end, inner in reversed(spans[:-1]):
        if not _BETWEEN_BOXES.fullmatch(text[end:begin]) or "\n\n" in text[end:begin]:
            break
        parts, begin = [inner, *parts], start
    return (parts[0] if len({p.strip() for p in parts}) == 1 else ", ".join(parts)), spans[-1][1]


def cued(text: str, after: int = 0) -> str | None:
    """What follows the last "answer is", "Answer:" or "####" after a place, to the end of its sentence; None without one."""
    plain = text[after:].replace("**", "").replace("__", "")
    for cue in reversed(list(_CUE.finditer(plain))):
        value = _JSON_VALUE.match(plain, cue.end()) if _JSON_KEY.search(plain, 0, cue.start()) else None
        span = value[1] or value[2] if value else _first_sentence(plain[cue.end() :]).partition("</answer>")[0]
        if span.strip(" .:*") and not _PLACEHOLDER.match(span):
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
    match = _EXPLAINED.match(text)
    return match[1] if match else None


_CONCLUSION = re.compile(r".*\b(?:therefore|thus|hence|consequently|so|finally)\b,?\s", re.IGNORECASE | re.DOTALL)


def conclusion(sentence: str) -> str:
    """The sentence from its last "therefore", "so" or "finally" on."""
    match = _CONCLUSION.match(sentence)
    return sentence[match.end() :] if match and match.end() < len(sentence) else sentence


def bold(text: str) -> list[tuple[str, str]]:
    """The different bold texts of the last paragraph, each with its last sentence."""
    paragraph = next((p for p in reversed(text.split("\n\n")) if p.strip()), "")
    sentences = _SENTENCE_END.split(paragraph)
    return list({(a or b).strip(" :."): sentence for sentence in sentences for a, b in _BOLD.findall(sentence)}.items())


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


_AMOUNT = r"[-+$€£]*\d(?:[\d.,]*\d)?(?![\d.,]*\d)%?"
_DENIED = re.compile(
    rf"""\bnot\s+{_AMOUNT},?\s*(?=\b(?:but|which\s+is|it['’]s|it\s+is)\b)
        |(?:,\s*not|\s+rather\ than|\s+instead\ of)\s+{_AMOUNT}\s*(?=[.;]|$)""",
    re.VERBOSE | re.IGNORECASE,
)


def without_denied(text: str) -> str:
    """A text without the number that it puts another one against: ``not 5 but 6``, ``6, not 5``, ``6 rather than 5``."""
    return _DENIED.sub("", text)


def unsure(text: str) -> bool:
    """Whether a text denies, doubts, or names more than one thing."""
    return bool(_UNSURE.search(text))


def hedged(span: str) -> bool:
    """Whether an answer's text begins by denying it."""
    return bool(_HEDGED.search(span))


_OPTION = re.compile(
    r"""[(\[]([A-Z])[)\]]
        |\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)\s+([A-Z])\b
        |(?<![A-Za-z0-9_'’.])([A-Z])(?![A-Za-z0-9_'’]|\.\w|\s+[a-z])
        |\b([A-Z])\s+(?:and|or|nor|but|vs|is|are|was|would|seems|because|since)\b
        |\b(?:and|or|nor|but|vs)\s+([A-Z])\b""",
    re.VERBOSE,
)
_NOT_CHOSEN = re.compile(
    r"\b(?:false|fails?|invalid|impossible|(?:ruled?|ruling) out|eliminat\w+|exclude\w*|reject\w*|too|also|as well|both)\b",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"""(?:^|[(\[]|:\s*|\b(?:is|be|am|[Ii]t['’]s|[Ss]o|[Tt]hus|[Tt]herefore|with|[Cc]h(?:oo|o)se|[Ss]elect|[Pp]ick|[Oo]ption|[Cc]hoice|[Aa]nswer|letter)\b:?\s*)
        [(\[]?([A-Z])(?![A-Za-z0-9])""",
    re.VERBOSE,
)
_MATH = re.compile(r"\$\$.+?\$\$|\$.+?\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_PREDICATE = re.compile(
    r".*(?:\b(?:is|was|are|were|be|equals|called|named|at)|\bit['’]s)\b[\s:]+(?:the\s+)?(.+)$", re.IGNORECASE | re.DOTALL
)


def predicate(sentence: str) -> str | None:
    """What a sentence says of its subject: all that follows the last "is"."""
    match = _PREDICATE.match(sentence)
    return match[1] if match else None


_SMALL = re.compile(r"\b(?:option|choice|answer|letter)(?: is)? [(\[][a-z](?=[)\]])", re.IGNORECASE)


def letters(sentence: str) -> list[str]:
    """Every option's letter that a sentence names, if it chooses one of them; the article and the pronoun are none."""
    plain = re.sub(r"\*\*|\\\(|\\\)|\$", "", sentence).strip()
    plain = _SMALL.sub(lambda m: m[0][:-2] + m[0][-2:].upper(), plain)
    named = {"".join(groups) for groups in _OPTION.findall(plain)} - {"I"}
    chosen = named & set(_CHOSEN.findall(plain)) and not _NOT_CHOSEN.search(plain)
    return sorted(letter.casefold() for letter in named) if chosen else []


_ASSERTED = re.compile(r"(?:\(([A-Z])\)|\b([A-Z]))\s*(?:is\s+(?:the\s+)?(?:correct|right|best|true)\b|是?(?:正确|对))")
_TOO = re.compile(r"\b(?:too|also|as well|both|if|either)\b|[也都若]|如果", re.IGNORECASE)


def asserted(span: str) -> str | None:
    """The letter with which a text begins, that it says to be right, alone: ``B is correct, D is a distractor``."""
    candidates = [a or b for a, b in _ASSERTED.findall(span)]
    begins = _ASSERTED.match(span.lstrip(" *"))
    return candidates[0].casefold() if begins and len(candidates) == 1 and not _TOO.search(span) else None


def formulas(sentence: str) -> list[str]:
    """Everything that stands between math delimiters."""
    return [match[0] for match in _MATH.finditer(sentence)]
