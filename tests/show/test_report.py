"""The report page: what it says, that it stands alone, and that no text from outside becomes markup."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import RULES
from entropy_chains.errors import MissingExtraError, OutputError, PolicyMismatch
from entropy_chains.offline.table import Table
from entropy_chains.offline.traces import Step, Trace, append_traces
from entropy_chains.show import plots, report, wording
from entropy_chains.show.report import build_report, write_report

HOSTILE = "</style></pre></svg>\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}&amp;\u202eü漢\ud800\x00 -->"
CERTIFICATE = {"risk": "lost-correct", "max_loss": 0.05, "confidence": 0.9, "groups": 240, "losses": 4}


def worked() -> list[Trace]:
    """20 runs of two steps of 100 tokens and 1 s each.

    Ten are sure (0.1 bits) and right at once; eight unsure (0.9 bits), wrong, then right; one sure, wrong, then right; one sure,
    right, then wrong.
    """
    plan = [(0.1, True, True)] * 10 + [(0.9, False, True)] * 8 + [(0.1, False, True), (0.1, True, False)]
    return [
        Trace(
            f"run {i}",
            [
                Step("7" if first else "8", value, 100, seconds=1.0, text=f"thinking about {i}"),
                Step("7" if last else "9", 0.05, 100, seconds=1.0, text="checking"),
            ],
            question=f"question {i}",
            gold="7",
            model="m",
        )
        for i, (value, first, last) in enumerate(plan)
    ]


def policy(**fields) -> Policy:
    fields = {"method": "certified", "reason": "certified", "calibration": {"groups": 240, "certificate": CERTIFICATE}} | fields
    return Policy("m", **{"thresholds": (0.5,)} | fields)


def random_traces(runs: int, seed: int = 0, *, gold: bool = True) -> list[Trace]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(runs):
        right = rng.random(3) < (0.7, 0.85, 0.9)
        values = rng.lognormal(np.where(right, -2.0, -1.0), 0.5)
        steps = [Step("7" if r else f"8{i % 3}", float(v), int(rng.integers(50, 200))) for r, v in zip(right, values, strict=True)]
        made.append(Trace(f"q{i}", steps, gold="7" if gold else None, model="m"))
    return made


def text_of(page: str) -> str:
    """What a reader sees: without style and tags, spaces joined."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


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


# --- what it says


def test_headline_by_hand() -> None:
    """12 of 20 runs stop at step 1: 1 - (12·100 + 8·200)/4000 = 30 % saved; one lost, one gained: change 0.0.

    The oracle stops the ten runs whose first answer is the final one: 10·100/4000 = 25 %, and more was saved, with other answers.
    """
    page = text_of(build_report(worked(), policy()))
    assert "stopping saved 30 % of the tokens and changed accuracy by 0.0 points (right answers lost: 1, gained: 1)" in page
    assert "tokens saved 30 %" in page
    assert "saves 25 %" in page
    assert "120 %" not in page
    assert "possible saving more" in page
    assert "More can be saved only by giving other answers" in page
    assert "95.0 % 95.0 %" in page


def test_points_of_the_tradeoff_by_hand(monkeypatch) -> None:
    """Full (200, .95), oracle (150, .95), cut at step 1 (100, .55), the policy (140, .95): the curve passes through its point."""
    seen = {}

    def capture(curve, fixed, marks, here, judged):
        seen.update(curve=curve, fixed=fixed, marks=marks, here=here, judged=judged)
        return "<svg></svg>"

    monkeypatch.setattr(plots, "accuracy_against_tokens", capture)
    build_report(worked(), policy())
    assert seen["fixed"] == pytest.approx(np.array([[100, 0.55], [200, 0.95]]))
    assert seen["marks"] == [("full", 200.0, pytest.approx(0.95)), ("oracle", 150.0, pytest.approx(0.95))]
    assert (seen["here"]["tokens"], seen["here"]["accuracy"]) == (140.0, pytest.approx(0.95))
    assert [140.0, pytest.approx(0.95)] in seen["curve"].tolist()
    assert seen["curve"][0].tolist() == [200.0, pytest.approx(0.95)]


def test_error_bars_by_hand() -> None:
    """Saved .3 in [.2, .45] of 200 tokens is 140 tokens in [110, 160]: 30 to the left, 20 to the right."""
    assert wording.distances([0.2, 0.45], 0.3, 200.0, flipped=True) == [[pytest.approx(30.0)], [pytest.approx(20.0)]]
    assert wording.distances([-0.02, 0.01], -0.01, 1.0) == [[pytest.approx(0.01)], [pytest.approx(0.02)]]
    assert wording.distances(None, 0.3, 200.0) == [[0.0], [0.0]]


def test_promise_in_plain_words() -> None:
    """A certificate is one sentence with its confidence, its loss and its evidence; a plain method promises nothing."""
    page = text_of(build_report(worked(), policy()))
    assert "Stopping is on: with 90 % confidence, at most 5 % of the questions lose a correct answer" in page
    assert "(4 of 240 did there)" in page
    plain = text_of(build_report(worked(), policy(method="mean", reason="uncertified")))
    assert "Stopping is on, uncertified" in plain
    assert "with 90 % confidence" not in plain
    other = wording.certificate_sentence(
        policy(calibration={"certificate": CERTIFICATE | {"risk": "disagreement", "max_loss": 0.025}})
    )
    assert "at most 2.5 % of the questions end with another answer" in other


def test_without_a_policy_it_says_what_could_be_saved() -> None:
    """No policy: accuracy and cost of the full runs, the oracle's saving, and nothing about stopped runs."""
    page = build_report(worked())
    text = text_of(page)
    assert "no policy was given" in text
    assert "would save 25 % of the tokens" in text
    assert "Stopping is not set up." in text
    assert page.count("<svg") == 2
    assert "stopped after step" not in text


@pytest.mark.parametrize("reason", ["no_signal", "inverted_signal", "no_safe_threshold", "too_few_examples"])
def test_inactive_policy_says_why(reason: str) -> None:
    """A policy that never stops: off, the reason in words, and no saving is claimed."""
    off = policy(active=False, reason=reason, calibration={"examples_needed": 45})
    text = text_of(build_report(worked(), off))
    assert "Stopping is off: " + wording.REASONS[reason] in text
    assert "nothing is saved" in text
    assert "tokens saved" not in text
    assert ("at least 45 questions" in text) == (reason == "too_few_examples")


def test_agreement_labels_claim_no_accuracy() -> None:
    """Without right answers accuracy is not known: the page counts changed answers and never speaks of lost right ones."""
    traces = random_traces(120, gold=False)
    text = text_of(build_report(traces, policy()))
    changed = sum(
        next((s.answer for s in t.steps[:-1] if s.entropy <= 0.5), t.steps[-1].answer) != t.steps[-1].answer for t in traces
    )
    assert 0 < changed < 120
    assert f"{changed} questions end with another answer than in full" in text
    assert "accuracy is not known" in text
    assert "right answers lost" not in text
    assert "same answer as in full" in text
    assert "change of accuracy" not in text
    assert "accuracy of full runs not known" in text_of(build_report(traces))


def test_live_figures_stand_in_the_headline() -> None:
    """Given a live run, headline, stop counts and latencies are its own, marked measured; FLOPs are marked estimated."""
    live = {
        "questions": 400, "groups": 400, "accuracy_full": 0.96, "accuracy": 0.955, "accuracy_change": -0.005,
        "accuracy_change_interval": [-0.0125, 0.0025], "lost_correct": 3, "gained_correct": 1, "tokens_full": 80000,
        "tokens": 32000, "tokens_saved": 0.6, "tokens_saved_interval": [0.58, 0.62], "seconds_full": 100.0, "seconds": 41.0,
        "oracle_tokens_saved": 0.75, "stopped_early": 0.5, "stops_at_step": [150, 50, 0], "model": "live-model",
        "parameters": 1.3e6, "method": "certified", "flops_full": 2.08e11, "flops": 8.32e10,
        "latency_full": {"mean": 0.25, "p50": 0.24, "p95": 0.4, "std": 0.05},
        "latency": {"mean": 0.11, "p50": 0.1, "p95": 0.3, "std": 0.06}, "policy": "x",
    }  # fmt: skip
    page = build_report(worked(), policy(), live=live)
    text = text_of(page)
    assert "Run live on 400 questions, stopping saved 60 % of the tokens and changed accuracy by −0.5 points" in text
    assert "live-model" in text
    assert "possible saving 80 %" in text
    assert "95 % interval −1.2 to +0.2" in text or "95 % interval −1.3 to +0.2" in text
    assert re.search(r"FLOPs 2.08e11 8.32e10 −60.0 % estimated", text)
    assert re.search(r"latency, mean \(s\) 0.25 0.11 −56.0 % measured", text)
    assert "150 after step 1, 50 after step 2, 200 in full" in page
    assert "in full median 0.24 s" in page


def test_live_without_optional_figures() -> None:
    """A live run without clock or parameters leaves those rows and the latency plot out."""
    live = {
        "questions": 10,
        "tokens_full": 100,
        "tokens": 50,
        "tokens_saved": 0.5,
        "oracle_tokens_saved": 0.0,
        "stops_at_step": [5],
    }
    page = build_report(worked(), policy(), live=live)
    assert "FLOPs" not in text_of(page)
    assert "latency-" not in page


def test_examples_show_each_outcome() -> None:
    """Examples name their outcome, show the text of each step, and mark what stopping would not have computed."""
    text = text_of(build_report(worked(), policy()))
    for outcome in (
        "stopped after step 1 of 2, right",
        "wrong, though the full run is right: a lost answer",
        "right, though the full run is wrong",
        "ran all 2 steps, right",
    ):
        assert outcome in text
    assert "thinking about 18" in text
    assert "0.1 bits, threshold 0.5 · 100 tokens" in text
    assert "not computed with stopping" in text


def test_long_texts_lose_their_middle() -> None:
    """A step of 100,000 characters is shown by its beginning and end, and the gap is counted."""
    traces = worked()
    traces[0].steps[0].text = "BEGIN" + "x" * 100_000 + "FINISH"
    page = build_report(traces, policy())
    assert "BEGIN" in page
    assert "FINISH" in page
    assert "98,511 characters left out" in page
    assert len(page) < 400_000


# --- sources


def test_files_memory_and_generators_give_the_same_page(tmp_path) -> None:
    """One file, two files, a list and a generator make the same page; a table the same without examples."""
    traces = worked()
    append_traces(tmp_path / "all.jsonl", traces)
    append_traces(tmp_path / "a.jsonl", traces[:9])
    append_traces(tmp_path / "b.jsonl", traces[9:])
    page = build_report(traces, policy())
    assert build_report(tmp_path / "all.jsonl", policy()) == page
    assert build_report([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], policy()) == page
    assert build_report((t for t in traces), policy()) == page
    write_report(tmp_path / "page.html", traces, policy())
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    table = build_report(Table.from_traces(traces), policy())
    assert "Example runs" not in table
    assert table.split("<h2>The policy")[0] == page.split("<h2>The policy")[0]


def test_a_page_never_takes_the_place_of_its_traces(tmp_path):
    """Named as a file, several, or an iterator of them: refused before anything is read, and the traces are kept."""
    path, link = tmp_path / "t.jsonl", tmp_path / "link"
    path.write_text("kept")
    link.symlink_to(path)
    for given in (path, str(path), [tmp_path / "other.jsonl", path], iter([link])):
        with pytest.raises(OutputError, match="is the same file as the input"):
            write_report(path, given)
    assert path.read_text() == "kept"


def test_mismatch_is_an_error() -> None:
    """A policy of another model is refused, unless the caller only wants a warning."""
    with pytest.raises(PolicyMismatch, match="model"):
        build_report(worked(), Policy("other", (0.5,)))
    with pytest.warns(UserWarning, match="model"):
        build_report(worked(), Policy("other", (0.5,)), on_mismatch="warn")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_extra_names_the_line_to_type(monkeypatch, package: str) -> None:
    """Without jinja2 or matplotlib the error says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*entropy-chains\[report\]"):
        build_report(worked(), policy())


def test_importing_loads_neither_matplotlib_nor_jinja2() -> None:
    """The module can be imported where the extra is not installed."""
    code = "import sys; import entropy_chains.show.report; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_users_matplotlib_is_left_alone() -> None:
    """Drawing changes no setting and opens no figure of the user's pyplot."""
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    build_report(worked(), policy())
    assert dict(mpl.rcParams) == before


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


def test_many_runs_make_no_large_page() -> None:
    """25,000 runs (75,000 steps, above the curve's limit): dots are limited and the page stays under 600 kB."""
    table = Table.from_traces(random_traces(25_000))
    assert len(table.step) > report.CURVE_ROWS
    page = build_report(table, policy())
    dots = page[page.index('id="tokens-') :].split("</svg>")[0].count("<use")
    assert 1000 < dots < plots.MOST_DOTS + 100
    assert "1,500 of 25,000 runs" in page
    assert len(page) < 600_000


def test_signal_axis_is_logarithmic_over_many_decades() -> None:
    """Values over five decades get a logarithmic axis with zeros kept at its edge; a narrow spread a linear one."""
    wide = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 50)])
    assert "logarithmic; zeros at the left edge" in plots.right_and_wrong(wide, wide, 0.1, "x", ("right", "wrong"))
    assert "logarithmic" not in plots.right_and_wrong(np.linspace(0.1, 1, 50), wide[:0], None, "x", ("right", "wrong"))


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


def test_a_change_for_the_worse_reads_as_more():
    """Nobody has to read "-25 % less"."""
    assert [wording.less_or_more(4.0, after) for after in (3.0, 4.0, 5.0)] == ["25.0 % less", "0.0 % less", "25.0 % more"]


def test_traces_without_a_model_s_name_make_a_page():
    """Only ids and steps are needed."""
    traces = [Trace(t.id, t.steps, gold=t.gold) for t in worked()]
    assert "unnamed model" in build_report(traces)
