"""What an answer is: a number, a letter of a choice, yes or no, a formula, or words. Pure functions on short texts.

An :class:`Answer` is read of a text that holds the answer and nothing else but its form: a unit, an option's words, LaTeX.
:mod:`entropy_chains.core.answer_spans` finds that text in a longer one. Reading is strict on purpose: what could mean two things
is not read as a number, a letter or yes, for a wrong answer graded as right costs more than a right one that is missed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from entropy_chains.core.answer_words import in_digits, plainly

Kind = Literal["number", "choice", "yes/no", "math", "text"]

LONGEST_ANSWER = 1000
"""Characters of a text that is read as an answer at most; a longer one is words."""
MOST_DIGITS = 400
"""A number whose plain form has more is left as it was written."""

_EXACT = Context(prec=1000, traps=[InvalidOperation])  # the default context rounds whole numbers to 28 digits
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_IN_GROUPS = re.compile(r"[-+]?[1-9]\d{0,2}(?:[ '’]\d{3})+(?:\.\d+)?")
_IN_BRACKETS = re.compile(r"\(\s*(\d+)\s*\)")
_EUROPEAN = re.compile(r"[-+]?[1-9]\d{0,2}(?:(?:\.\d{3}){2,}|(?:\.\d{3})+,\d+)")

# --- LaTeX and markup that say nothing

_SPACING = re.compile(r"\\[!,;:> ]|\\q?quad\b|\\(?:displaystyle|left|right|limits)(?![a-zA-Z])|~|\\\\(?=\s*$)")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|operatorname|boldsymbol)\s*\{([^{}]*)\}")
_SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "gt": ">", "lt": "<", "times": "×", "cdot": "·",
}  # fmt: skip
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_INLINE = re.compile(r"\$(?! )([^$]+?)(?<! )\$|\\\((.+?)\\\)")
_BARE_ROOT = re.compile(r"(\\sqrt(?:\[\w\])?)\s*(\d)")
_BARE_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("__", "__"))
_LATEX_SIGN = re.compile(r"[\\${]")
_CALLED = re.compile(r"(?<=[^\d)\]}!])!+$")  # 5! is a number, too
_AROUND, _STOPS = " \t\n\r*`\"'“”‘’«»", ".,;:。"
_SIGNS = str.maketrans({"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "−": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " "})


def unwrapped(text: str) -> str:
    """A text without what surrounds all of it: spaces, math delimiters, bold, quotes, a final full stop."""
    while True:
        before = text
        text = text.strip(_AROUND).rstrip(_STOPS).lstrip(_STOPS[1:])  # .5 is a number
        if text[-1:] == "!":
            text = _CALLED.sub("", text)
        for opening, closing in _DELIMITERS if text[:1] in tuple("$\\_") else ():
            inner = text[len(opening) : len(text) - len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner.strip() and opening not in inner:
                text = inner
        if text == before:
            return text


def latex_plain(text: str) -> str:
    """LaTeX without spacing commands and with one name for each thing, so that equal formulas look more alike."""
    text = text.translate(_SIGNS)
    if not _LATEX_SIGN.search(text):
        return text
    text = _INLINE.sub(lambda m: m[1] or m[2], text)
    text = re.sub(r"(?<=\d)(?:\\[!,]|\s*\{\s*,\s*\}(?:\\!)?|,\\!)\s*(?=\d{3}(?!\d))", "", text)  # 12{,}345, 12,\!345 and 12\,345
    text = _DEGREES.sub("°", _SPACING.sub(" ", _WORDS.sub(r" \1 ", text)))
    text = _COMMAND.sub(lambda m: _SAME[m[1]] if len(_SAME.get(m[1], "ab")) == 1 else "\\" + _SAME.get(m[1], m[1]), text)
    text = text.replace(r"\%", "%").replace(r"\$", "$").replace(r"\#", "#")
    return _BARE_ROOT.sub(r"\1{\2}", _BARE_FRACTION.sub(r"\\frac{\1}{\2}", text))


# --- numbers

_UNSIGNED = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?![\d,]*\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?P<currency>(?:US|AU|A|CA|C|NZ|HK)?\$|[€£¥₹]|(?:USD|AUD|CAD|NZD|EUR|GBP|CHF|JPY|INR|Rs\.?)(?=\s?\d)|)\s*(?P<inner>-?)(?:
        \\frac\s*\{{\s*(?P<top>-?(?:{_UNSIGNED}))\s*\}}\s*\{{\s*(?P<bottom>(?:{_UNSIGNED}))\s*\}}
        |(?P<whole>\d+)(?:\s+|\s*\\frac\s*\{{)(?P<over>\d+)(?:\s*/\s*|\s*\}}\s*\{{\s*)(?P<under>\d+)\}}?
        |(?P<left>{_UNSIGNED})\s*/\s*(?P<right>{_UNSIGNED})
        |(?P<plain>{_UNSIGNED})(?P<power>(?:[eE]|\s*[×x*·]\s*10\s*\^\s*\{{?\s*)[-+]?\d+\}}?)?
    )(?![\d\w^/!]|\.\d|,\d|\s*[-+*/^×·÷√π=<>≤≥:]\s*[\d\w\\($]|\s*\\(?:pi|sqrt|frac|pm|times|cdot|le|ge)\b)""",
    re.VERBOSE,
)
_GLUED = re.compile(r"(?<=\d)(?=[\u4e00-\u9fff]|(?:km|cm|mm|kg|mg|ml|mL|m|g|s|h|L|lbs?|ft|in|mph|min|GB|MB|kB|°)(?![\w/]))")
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_PERCENT = re.compile(r"(?:%|percent\b|per cent\b|percentage(?: points?)?\b|pct\b)")
_UNIT = re.compile(r"(?:[°'\"]|[A-Za-zµΩ°€£$¥][\w°/·*^{}²³.\-]*)(?:\s+[A-Za-z(°][\w()/'^{}²³-]*){0,5}", re.IGNORECASE)
_UNIT_POWER = re.compile(r"\^\((-?\d)\)")
_CHINESE_UNIT = re.compile(r"[\u4e00-\u9fff]{1,4}")
_CHINESE_AMOUNT = re.compile(r"[多余以或和与到至点成半万亿百十几不]|分之|千(?![克米瓦])")
"""Behind a number: a larger or smaller one, a part of one, or another one."""
_NO_UNIT = frozenset(
    {
        "or", "and", "to", "not", "nor", "but", "than", "versus", "vs", "plus", "minus", "over", "times", "point",
        "half", "halves", "third", "thirds", "quarter", "quarters", "fifth", "fifths", "squared", "cubed", "factorial", "pi",
        "sqrt", "root", "mod", "base", "divided", "multiplied", "is", "are", "was", "if", "unless", "either", "neither",
        "maybe", "perhaps", "through", "until", "x", "y", "z", "n", "i", "e", "π", "per-cent",
    }
)  # fmt: skip
_UNIT_NAMES = {
    "dollars": "$", "dollar": "$", "usd": "$", "us$": "$", "gbp": "£", "euros": "€", "euro": "€", "eur": "€",
    "pounds sterling": "£", "degrees": "°", "degree": "°",
}  # fmt: skip
_ABOUT = re.compile(
    r"^(?:(?:about|approximately|approx\.?|roughly|around|exactly|precisely|just|only|a total of|≈|~|=|:|\\approx)\s*)+", re.I
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was read.

    Attributes:
        kind: what it is.
        value: its plain form; of a number its digits, of a choice its letter, of words their small letters.
        more: of a number its unit (``%`` for percent), of a choice the words of the option; empty where there are none.
        raw: the text that it was read of.
    """

    kind: Kind
    value: str
    more: str = ""
    raw: str = ""

    @property
    def text(self) -> str:
        """One line that shows it; answers with the same line are equal."""
        unit = self.more if self.kind == "number" else ""
        return f"{self.value}{'' if unit in ('', '%') else ' '}{unit}"


def number_form(text: str) -> str | None:
    """The plain form of a number that is written in digits: ``1,234.50`` as ``1234.5``; None where it is none, or enormous."""
    try:
        number = _EXACT.create_decimal(_THOUSANDS.sub("", text)).normalize(_EXACT)
    except InvalidOperation:
        return None
    plain = format(number, "f") if number.is_finite() and abs(number.adjusted()) < MOST_DIGITS else None
    return "0" if plain == "-0" else plain


def _ratio_form(value: Fraction) -> str | None:
    """A ratio as digits where they end, else as ``p/q``."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return (
        number_form(str(Decimal(value.numerator) / Decimal(value.denominator)))
        if rest == 1 and value.denominator < 10**20
        else str(value)
    )


def _value(match: re.Match[str]) -> str | None:
    """The plain form of what :data:`_NUMBER` found, its sign included."""
    part = {name: text.replace(",", "") for name, text in match.groupdict().items() if text}
    if any(len(text) > MOST_DIGITS for text in part.values()):
        return None
    negative = (part.get("sign") == "-") != (part.get("inner") == "-")
    if "plain" in part:
        power = re.sub(r"[^-+\de]", "", re.sub(r"^\s*[×x*·]\s*10\s*\^", "e", part.get("power", "").lower()))
        form = number_form(part["plain"] + power)
    else:
        pairs = (("top", "bottom"), ("over", "under"), ("left", "right"))
        top, bottom = next((Fraction(part[a]), Fraction(part[b])) for a, b in pairs if a in part)
        form = _ratio_form(int(part.get("whole", 0)) + top / bottom) if bottom else None
    if form is None or form.strip("0.") == "":
        return form and "0"
    return form if not negative else form.removeprefix("-") if form.startswith("-") else f"-{form}"


def read_number(text: str) -> Answer | None:
    """The number of a text that is one, with at most a unit, a currency, ``%`` or a word such as million; else None."""
    plain = _ABOUT.sub("", text.strip())
    match = _NUMBER.match(_GLUED.sub(" ", plain))
    if not match:
        return None
    value, rest = _value(match), match.string[match.end() :].strip()
    if value is None:
        return None
    unit, word = _UNIT_NAMES.get(match["currency"].casefold(), match["currency"]), rest.partition(" ")[0].casefold().rstrip("s.")
    if word in _SCALES:
        value = _ratio_form(Fraction(value) * _SCALES[word])
        rest = rest.partition(" ")[2].strip()
    if (percent := _PERCENT.match(rest)) and not unit:
        unit, rest = "%", re.sub(r"^\s*of\b.*", "", rest[percent.end() :])
    rest = _UNIT_POWER.sub(r"^\1", rest.strip(" ."))
    if rest and not _UNIT.fullmatch(rest) and (not _CHINESE_UNIT.fullmatch(rest) or _CHINESE_AMOUNT.search(rest)):
        return None
    words = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", rest.casefold())
    if value is None or any(w in _NO_UNIT or w.rstrip("s") in _SCALES or w == "percent" for w in words) or (unit == "%" and rest):
        return None
    if not unit and re.fullmatch(r"[a-z]", rest) and rest not in "mghsl":
        return None  # 5 n is a product
    return Answer("number", value, unit or _unit_form(rest), text)


def _unit_form(unit: str) -> str:
    unit = re.sub(r"[{}().]", "", unit.replace("²", "^2").replace("³", "^3"))
    if unit.casefold() in _UNIT_NAMES:
        return _UNIT_NAMES[unit.casefold()]
    return " ".join(w if len(w) < 4 else w.casefold().removesuffix("s") for w in unit.split())


# --- letters, yes and no

_LETTER = re.compile(
    r"(?:(?:option|choice|letter|answer|statement)\s+)?(?:[(\[{<](?P<in>[A-Za-z])[)\]}>]|(?P<cap>[A-Z])(?P<mark>[).:\]]|(?=$)|(?=\s*[,;—–-]\s))|(?P<low>[a-z])(?:\)|$))"
    r"(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_OTHER_LETTER = re.compile(
    r"[(\[][A-Z][)\]]|\b(?:or|and|nor|not)\s+(?:option\s+)?\(?[A-Z]\b|\?\s*$|\bnot\b|n't\b|^\s*[,;/&]\s*[A-Z](?![A-Za-z0-9])|^\s*[或和与及]|[A-Z]\s*[也都]|^\s*[不非]"
)
_YES_NO = re.compile(r"(?!no\.\s*(?:of\b|\d))(yes|no|true|false)\b(?=\s*(?:$|[.,;:!—–(-]))", re.IGNORECASE)
_YES_NO_WORD = re.compile(r"\b(?:yes|no|true|false|not sure|maybe)\b", re.IGNORECASE)


_REPEATED = re.compile(r"([A-Z])(?:\s*/\s*\1)+(?![A-Za-z])")


def read_choice(text: str) -> Answer | None:
    """The letter of a text such as ``B``, ``(B)``, ``B) Paris`` or ``option B``; None for ``A dog`` and for several letters."""
    text = _REPEATED.sub(r"\1", text)
    match = _LETTER.match(text)
    if not match or _OTHER_LETTER.search(match["rest"]):
        return None
    letter = match["in"] or match["cap"] or match["low"]
    lead = text[: match.start("rest")].strip()
    if not match["in"] and letter.islower() and len(text) > 2 and not lead.startswith(("option", "choice", "letter", "answer")):
        return None  # "a) …" is rare and "e.g." is not
    if match["mark"] == ":" and re.match(r"\s*\d|[^=]*=", match["rest"]):
        return None  # A:1 is a ratio
    return Answer("choice", letter.casefold(), words_form(match["rest"]), text)


def read_yes_no(text: str) -> Answer | None:
    """Yes, no, true or false at the beginning, with no other of them behind it."""
    match = _YES_NO.match(text)
    if not match or _YES_NO_WORD.search(text, match.end()):
        return None
    return Answer("yes/no", match[1].casefold(), raw=text)


# --- formulas and words

_FUNCTIONS = frozenset(
    {
        "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "max", "min", "mod", "lim",
        "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "asin", "acos", "atan", "det", "gcd", "lcm", "theta", "or", "and",
    }
)  # fmt: skip
_FORMULA = re.compile(
    r"[\\^_=<>≤≥≠√π∞±×·÷]|[\w)][²³⁴⁵⁶⁷⁸⁹]|[\w)]\*\*[\w(]|\d\s*[-+*/:,]\s*[\w(\\]|[(\[{]\s*-?[\d\w]+\s*[,;]|^\d*[a-z]$|^-?\w\s*[-+*/]\s*\w|\d[a-z]\b"
)


_DATE = re.compile(r"\d{1,4}([/.-])\d{1,2}\1\d{1,4}")


def words_form(text: str) -> str:
    """Words with small letters, single spaces, and nothing around them."""
    return " ".join(unwrapped(text).casefold().split())


def looks_like_formula(text: str) -> bool:
    """Whether a text is mathematics and not a sentence: some sign of it, and no word that is not a function's name.

    Letters without a vowel, as in ``nRT``, are a product and no word.
    """
    words = re.findall(r"[A-Za-z]{3,}", re.sub(r"\\[a-zA-Z]+\*?(?:\{[a-z]*matrix\})?", " ", text))
    words = [w for w in words if re.search(r"[aeiouy]", w, re.IGNORECASE)]
    return bool(_FORMULA.search(text)) and all(w.casefold() in _FUNCTIONS for w in words)


def formula_form(text: str) -> str:
    """A formula without spaces and outer delimiters; capital letters stay what they are."""
    return re.sub(r"\s+", "", text).replace("**", "^")


@lru_cache(4096)
def read_kind(text: str) -> Answer | None:
    """The answer that a short text is; None where it is empty."""
    if len(text) > LONGEST_ANSWER:
        return Answer("text", " ".join(text.casefold().split()), raw=text) if text.strip() else None
    bare = in_digits(plainly(unwrapped(latex_plain(unwrapped(text)))))
    if _IN_GROUPS.fullmatch(bare):
        bare = re.sub(r"[ '’]", "", bare)
    elif _EUROPEAN.fullmatch(bare):
        bare = bare.replace(".", "").replace(",", ".")
    elif alone := _IN_BRACKETS.fullmatch(bare):
        bare = alone[1]
    if not bare:
        return Answer("text", text.strip(), raw=text) if text.strip() else None
    if answer := read_number(bare) or read_yes_no(bare) or read_choice(bare):
        return answer
    if _DATE.fullmatch(bare):
        return Answer("text", bare, raw=text)
    if looks_like_formula(bare):
        return Answer("math", formula_form(bare), raw=unwrapped(text))
    return Answer("text", number_form(bare) or words_form(bare) or bare, raw=text)


_DIGITS = re.compile(r"(?<![\w^_])(?:[-+](?=[\d.$]))?[$€£¥₹]?-?\.?\d[\d,.]*")


def numbers_in(sentence: str) -> list[Answer] | None:
    """Every number of a sentence with its unit; None where one of them cannot be read on its own: 5-6, 2x, 3:1."""
    numbers = _numbers_in(sentence)
    return _numbers_in(_PRICE.sub(r"\1.\2", sentence)) if numbers is None else numbers


_GLUED_CHINESE = re.compile(r"(?<=\d)(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])(?=\d)")
_TIMES = "|".join([*sorted(_FUNCTIONS - {"or", "and"}), "(?:root|half)(?: of)?", "twice", "double", "thrice", "triple"])
_APPLIED = re.compile(rf"(?:[^\W\d_]\(|\b(?:{_TIMES})\s*\(?)\s*$", re.IGNORECASE)
"""What stands before a number that is a function's argument, or a part of a product: sqrt(2), ln 2, f(2), half of 10."""
_RATIO = re.compile(r"(?:\d|(?<!\w)\w)\s*:\s*$")
_PRICE = re.compile(r"(?<![\d.,])(\d+),(\d{1,2})(?=\s*[$€£]|\s+[^\W\d_])")


def _numbers_in(sentence: str) -> list[Answer] | None:
    plain = re.sub(
        r"(?<![\w)])\*\*|\*\*(?![\d(])|__|\\\(|\\\)", " ", _GLUED_CHINESE.sub(" ", plainly(latex_plain(sentence)))
    ).replace("$ ", " ")
    numbers, end = [], 0
    for digits in _DIGITS.finditer(plain):
        if digits.start() < end:
            continue
        number = _NUMBER.match(plain, digits.start())
        before = plain[: digits.start()].rstrip()[-1:]
        if _APPLIED.search(plain, max(0, digits.start() - 20), digits.start()) or _RATIO.search(plain, 0, digits.start()):
            return None
        if not number or number.end() < len(plain[: digits.end()].rstrip(".,")) or before in tuple("-–/*×+^<>≤≥√之"):
            return None
        rest = re.match(r"\s*(?:%|[^\W\d_]+)?", plain[number.end() :])
        if (answer := read_number(number[0].strip() + (rest[0] if rest else ""))) is None:
            answer = read_number(number[0].strip())
            word = (rest[0] if rest else "").strip().casefold()
            if (
                answer is None
                or _CHINESE_AMOUNT.search(word)
                or word in _NO_UNIT - {"is", "are", "was", "if"}
                or word.rstrip("s") in _SCALES
            ):
                return None
        numbers.append(answer)
        end = number.end()
    return numbers
