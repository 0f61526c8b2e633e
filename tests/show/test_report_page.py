"""The report page stands alone, and no text from outside becomes markup, however odd the data."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from report_runs import CERTIFICATE, policy, text_of, worked

from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import RULES
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.show.report import build_report

HOSTILE = "</style></pre></svg>\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}&amp;\u202eü漢\ud800\x00 -->"


class Outline(HTMLParser):
    """Tags outside and inside of drawings, ids, attributes that load something, and text."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, page: str):
        super().__init__()
        self.outside: list[str] = []
        self.inside: set[str] = set()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.labels: list[str | None] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        given = dict(attrs)
        if "svg" in self.open:
            self.inside.add(tag)
        else:
            self.outside.append(tag)
        if tag == "svg":
            self.labels.append(given.get("aria-label") if given.get("role") == "img" else None)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.loads += [given[a] for a in ("src", "href", "action", "data", "srcset") if a in given]
        self.handlers += [a for a in given if a.startswith("on")]

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


# --- it stands alone, and is only ever our own markup


def test_page_stands_alone() -> None:
    """No script, no handler, no address to load from, unique ids, closed tags, and an alternative text on every drawing."""
    page = build_report(worked(), policy())
    outline = Outline(page)
    assert not re.search(r"https?:|//[a-z]|<script|@import|javascript:", page)
    assert outline.open == []
    assert all(re.fullmatch(r"#[\w-]+", target) for target in outline.loads)
    assert {target[1:] for target in outline.loads} <= set(outline.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(outline.ids)
    assert page.count("url(") == page.count("url(#")
    assert outline.handlers == []
    assert len(outline.ids) == len(set(outline.ids))
    assert len(outline.labels) == 5
    assert all(label and len(label) > 30 for label in outline.labels)


def hostile(word: str) -> str:
    """The page with ``word`` in every text field that can hold one."""
    named = word.replace("\ud800", "")  # a policy's texts are such as can be written
    steps = [
        Step(word, 0.1, 10, correct=True, text=word, signals={word: 0.2, named: 0.2}),
        Step(word + "2", 0.05, 10, correct=True, text=word, signals={word: 0.1, named: 0.1}),
    ]
    wrong = [
        Step(word, 0.9, 10, correct=False, text=word, signals={word: 0.9, named: 0.9}),
        Step(None, None, 10, correct=False, text=word),
    ]
    kinds = [steps, wrong]
    traces = [
        Trace(
            f"{word}{i}",
            kinds[i % 2],
            group=f"{word}{i}",
            question=word,
            gold=word,
            model=named,
            template=named,
            signal="mean_entropy",
        )
        for i in range(12)
    ]
    made = Policy(
        named, (0.5,), aliases=(named,), signal=named, reason=named, template=named, method="certified",
        calibration={"certificate": CERTIFICATE | {"risk": named}, "labels": named, "groups": 12},
    )  # fmt: skip
    pages = [
        build_report(traces, made, title=word),
        build_report(traces, Policy(named, (0.5,), active=False, reason=named, template=named), title=word),
        build_report(
            traces, title=word, live={"model": word, "questions": 3, "stops_at_step": [1], "method": word, "policy": word}
        ),
    ]
    return "\n".join(pages)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_text_from_outside_is_never_markup() -> None:
    """Ids, questions, answers, texts, models, signals, reasons, titles: tags are the same as with harmless words.

    The hostile word closes style, pre and svg, opens script and img, tries a template, and holds a lone surrogate and a NUL.
    """
    page, harmless = hostile(HOSTILE), hostile("word")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "alert(2)&gt;49" not in page
    assert "alert(2)&gt;{{ 7*7 }}&amp;amp;" in page
    bad, good = Outline(page), Outline(harmless)
    assert bad.outside == good.outside
    assert bad.inside <= {"g", "path", "use", "text", "defs", "style", "rect", "clippath", "tspan", "pattern", "svg"}
    assert bad.handlers == []
    assert bad.open == []
    page.encode("utf-8")
    for label in bad.labels:
        assert label


def test_no_control_character_is_in_the_page() -> None:
    """Line ends of a thinking stay; NUL is no text of a page, and a terminal that shows the file would obey an escape."""
    runs = [Trace("a", [Step("\x1b[31m7\x07\x00", 0.1, 9, text="one\ntwo\x1b]0;x\x07")], question="q\x00", gold="7", model="m")]
    page = build_report([*worked(), *runs])
    assert not [c for c in page if not c.isprintable() and c not in "\n\t"]


def test_page_is_deterministic() -> None:
    """The same input makes the same bytes: no dates, no random ids."""
    assert build_report(worked(), policy()) == build_report(worked(), policy())


# --- odd data


@pytest.mark.parametrize(
    "traces",
    [
        [Trace("one", [Step("7", 0.1, 10)], gold="7", model="m")],
        [Trace("one", [Step(None, None, 0)], gold="7", model="m")],
        [Trace("one", [Step("7", 0.0, 10), Step("7", 0.0, 0)], model="m")],
        [Trace(f"{i}", [Step("7", None, 5), Step("7", None, 5)], gold="7", model="m") for i in range(3)],
        [Trace(f"{i}", [Step("7", 0.2, 5)] * 60, gold="7", model="m") for i in range(3)],
    ],
    ids=["one run", "no tokens", "no labels", "no entropies", "many steps"],
)
@pytest.mark.parametrize("rule", RULES)
def test_odd_data_still_make_a_page(traces, rule: str) -> None:
    """One run, no tokens, no entropies, 60 steps: a whole page comes out, with every rule and without a policy, and no NaN."""
    given = {"thresholds": (2.0,)} if rule == "fixed-step" else {}
    for page in (build_report(traces, policy(rule=rule, min_steps=2, **given)), build_report(traces)):
        outline = Outline(page)
        assert outline.open == []
        assert not re.search(r"\bnan\b|\binf\b|None", text_of(page))
