"""The report's words and table cells: figures as a reader wants them. Everything returned is plain text, escaped by the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from entropy_chains.core.policy import Policy
from entropy_chains.core.policy_fields import BY_HAND
from entropy_chains.core.signals import Signal
from entropy_chains.offline import cut_runs
from entropy_chains.offline.diagnose import Diagnosis
from entropy_chains.offline.replay import ReplayResult
from entropy_chains.offline.table import Array, Table

NONE = "–"

REASONS = {
    "no_signal": "in calibration the entropies of right and wrong answers could not be told apart: there is nothing to stop on.",
    "inverted_signal": "in calibration wrong answers had the lower entropy, so low entropy is no sign of a right one.",
    "no_safe_threshold": "no threshold kept the loss of right answers as small as asked, so every question runs in full.",
    "too_few_examples": "there were too few calibration questions to set or certify a threshold.",
}


ONLY_WITH_OTHERS = "More can be saved only by giving other answers than the full runs"
"""What is said of a saving above the oracle's."""


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return NONE if value is None else f"{_minus(f'{100 * value:.{digits}f}')} %"


def less_or_more(before: float, after: float) -> str:
    """How ``after`` compares with ``before``, which is not 0: ``30.2 % less``, ``0.9 % more``."""
    change = after / before - 1
    return f"{percent(abs(change))} {'more' if change > 0 else 'less'}"


def short_percent(value: float | None) -> str:
    """A round fraction as a percentage, without superfluous zeros."""
    return NONE if value is None else f"{100 * value:.3g} %"


def points(value: float | None) -> str:
    """A change of accuracy, a fraction, as signed percentage points without the unit."""
    return NONE if value is None else _minus(f"{100 * value + 0.0:+.1f}")


def _minus(text: str) -> str:
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def interval(bounds: Sequence[float] | None, show: Any) -> str:
    """An interval in words, with ``show`` for its ends."""
    return "no interval" if not bounds else f"{show(bounds[0])} to {show(bounds[1])}"


def number(value: float | None) -> str:
    """A large or small number as people read it."""
    if value is None:
        return NONE
    if abs(value) >= 1e7:
        return f"{value:.3g}".replace("e+", "e")
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def distances(bounds: Sequence[float] | None, centre: float, scale: float, *, flipped: bool = False) -> list[list[float]]:
    """Error bars [[low], [high]] from an interval; ``flipped`` where a larger value lies further to the left."""
    if not bounds:
        return [[0.0], [0.0]]
    low, high = max(0.0, (centre - bounds[0]) * scale), max(0.0, (bounds[1] - centre) * scale)
    return [[high], [low]] if flipped else [[low], [high]]


def unit_of(signal: str, form: str = " {}") -> str:
    """The unit of a signal, as it stands after a number; empty where it is not known."""
    unit = Signal.named(signal).unit
    return form.format(unit) if unit else ""


def value_text(value: float, signal: str, policy: Policy | None, step: int) -> str:
    """A step's signal beside its threshold."""
    text = "entropy missing" if math.isnan(value) else f"{value:.3g}{unit_of(signal)}"
    threshold = None if policy is None else policy.stop_rule.threshold(step)
    return text if threshold is None else f"{text}, threshold {threshold:.3g}"


def judged_text(correct: bool | None, labels: str) -> str:
    """How an answer was judged; None: not at all."""
    if correct is None:
        return "(not judged: the run was cut off)"
    if labels == "gold":
        return "(right)" if correct else "(wrong)"
    return "(the full run's answer)" if correct else "(another answer than the full run)"


def example_line(right: bool, right_full: bool, stop: int, steps: int, labels: str, stopping: bool, cut: bool) -> str:
    """One line on an example run; ``cut``: its full run was cut off."""
    how = f"stopped after step {stop} of {steps}" if stop else f"ran all {steps} steps" if stopping else f"{steps} steps"
    if cut:
        grade = "right" if right else "with an answer that is not known to be right"
        return how + (f", {grade}; the full run was cut off" if stop else ", then cut off")
    if labels != "gold":
        return how + ("" if not stop else ", with the full run's answer" if right else ", with another answer than the full run")
    if right and not right_full:
        return how + ", right, though the full run is wrong"
    if right_full and not right:
        return how + ", wrong, though the full run is right: a lost answer"
    return how + (", right" if right else ", wrong" if not stop else ", wrong, as the full run is")


def certificate_sentence(policy: Policy) -> str:
    """The promise in plain words, or that there is none."""
    certificate = policy.calibration.get("certificate")
    if policy.method == BY_HAND:
        return "uncertified: the threshold was set by hand, and nothing is promised about lost answers."
    if not isinstance(certificate, Mapping) or policy.method != "certified":
        return (
            f"uncertified: the threshold comes from the “{policy.method}” formula on examples of right and wrong answers, "
            "and nothing is promised about lost answers."
        )
    loses = (
        "lose a correct answer through stopping"
        if certificate.get("risk") == "lost-correct"
        else "end with another answer than full reasoning would have given"
    )
    sentence = (
        f"with {short_percent(certificate.get('confidence'))} confidence, at most "
        f"{short_percent(certificate.get('max_loss'))} of the questions {loses}, for questions drawn like those of calibration"
    )
    if certificate.get("losses") is not None and certificate.get("groups") is not None:
        sentence += f" ({certificate['losses']} of {certificate['groups']} did there)"
    return sentence + "."


def state_sentence(policy: Policy) -> str:
    """What an active policy promises, or why the policy does not stop; and what cut runs had to do with it."""
    state = (
        certificate_sentence(policy) if policy.active else REASONS.get(policy.reason, f"the policy's reason is {policy.reason}.")
    )
    return f"{state} {cut_runs.of_calibration(policy)}".strip()


def thresholds_text(policy: Policy) -> str:
    """The thresholds of the steps in order, equal ones of several steps as one."""
    parts = []
    for threshold, same in groupby(policy.thresholds):
        steps = len(list(same))
        parts.append(("never" if threshold is None else f"{threshold:.4g}") + (f" for {steps} steps" if steps > 1 else ""))
    return ", ".join([*parts[:12], "…"] if len(parts) > 12 else parts)


@dataclass(frozen=True)
class Words:
    """The wording of one page: ``labels`` as in the table; ``live``: the headline's figures come from a live run."""

    labels: str
    live: bool

    @property
    def judged(self) -> str:
        """What is counted as right."""
        return "accuracy" if self.labels == "gold" else "same answer as in full"

    @property
    def classes(self) -> tuple[str, str]:
        """Names of the two kinds of answers."""
        return ("right", "wrong") if self.labels == "gold" else ("as in full", "other than in full")

    @property
    def changes(self) -> tuple[str, str]:
        """Names of what stopping can gain and lose."""
        return "right only with stopping", "right only in full" if self.labels == "gold" else "other answer than in full"

    @property
    def signal_title(self) -> str:
        """Title of the histograms."""
        return "Entropy of right and wrong answers" if self.labels == "gold" else "Entropy of final and other answers"

    def subtitle(self, table: Table, figures: Mapping[str, Any] | None) -> str:
        """What the page is about."""
        model = (figures or {}).get("model") if self.live else None
        text = f"{model or table.model or 'unnamed model'} · {table.runs:,} recorded runs of {table.groups:,} questions"
        text += f" · {int(table.cut.sum()):,} of the runs cut off" if table.cut.any() else ""
        return text + (f" · {number(figures.get('questions'))} questions run live" if self.live and figures else "")

    def lead(self, figures: Mapping[str, Any] | None, policy: Policy | None, oracle: float | None) -> str:
        """The first sentence."""
        limit = (
            ""
            if oracle is None
            else f" Stopping where the final answer is first given would save {percent(oracle, 0)} of the tokens."
        )
        if figures is None:
            if policy is None:
                return "These are full runs, and no policy was given: the page shows what stopping could save." + limit
            return "Stopping is off for this model, so every question runs in full and nothing is saved." + limit
        text = f"{'Run live' if self.live else 'Replayed'} on {number(figures.get('questions'))} questions, stopping saved "
        text += f"{percent(figures.get('tokens_saved'), 0)} of the tokens"
        if figures.get("accuracy_change") is not None:
            text += f" and changed accuracy by {points(figures['accuracy_change'])} points "
            text += f"(right answers lost: {number(figures.get('lost_correct'))}, gained: {number(figures.get('gained_correct'))})."
        elif figures.get("lost_correct") is not None:
            text += f"; {number(figures['lost_correct'])} questions end with another answer than in full."
        else:
            text += "."
        return text

    def cards(
        self, figures: Mapping[str, Any] | None, diagnosis: Diagnosis, oracle: float | None, table: Table
    ) -> list[dict[str, Any]]:
        """The three figures at the top."""
        if figures is None:
            labelled = diagnosis.accuracy_full is not None
            full = percent(diagnosis.accuracy_full) if labelled else "not known"
            why = "the traces hold no right answers" if diagnosis.judged else "every run was cut off"
            mean = float(table.tokens.sum()) / table.runs
            return [
                _card("accuracy of full runs", full, "" if labelled else why, words=not labelled),
                _card("tokens a question, in full", number(round(mean)), "counted, mean"),
                _card("what the oracle would save", percent(oracle, 0), "stopping where the final answer is first given"),
            ]
        change, saved = figures.get("accuracy_change"), figures.get("tokens_saved")
        if change is None:
            missing, cut = figures.get("lost_correct"), figures.get("lost_cut") or 0
            share = None if missing is None else (missing + cut) / max(1, figures.get("questions") or 1)
            why = "the traces hold no right answers" if diagnosis.judged else "every run was cut off"
            first = _card("answers that stopping changed", percent(share), f"accuracy is not known: {why}")
        else:
            bounds = interval(figures.get("accuracy_change_interval"), points)
            first = _card("change of accuracy, points", points(change), f"95 % interval {bounds}")
        bounds = interval(figures.get("tokens_saved_interval"), lambda x: percent(x, 0))
        part = None if not oracle or saved is None else saved / oracle
        more = part is not None and part > 1
        limit = f"the oracle, stopping where the final answer is first given, saves {percent(oracle, 0)}"
        return [
            first,
            _card("tokens saved", percent(saved, 0), f"95 % interval {bounds}"),
            _card(
                "share of the possible saving",
                "more" if more else percent(part, 0),
                f"{limit}. {ONLY_WITH_OTHERS}" if more else limit,
                words=more,
            ),
        ]

    def stopping(self, policy: Policy | None, further: str = "") -> dict[str, str]:
        """Whether stopping is active, and why; ``further``: what else is to be said of it."""
        if policy is None:
            text = "There is no policy for this page; “entropy-chains calibrate” makes one from recorded runs."
            return {"tone": "", "head": "Stopping is not set up.", "text": text}
        text = f"{state_sentence(policy)} {further}".strip()
        if not policy.active:
            return {"tone": "warn", "head": "Stopping is off:", "text": text}
        promised = policy.method == "certified" and policy.reason == "certified"
        head = "Stopping is on:" if promised else "Stopping is on,"
        return {"tone": "good" if promised else "warn", "head": head, "text": text}

    def verdict(self, diagnosis: Diagnosis, signal: str) -> dict[str, str]:
        """Diagnosis in plain words."""
        text = diagnosis.sentence
        if self.labels != "gold":
            text += " (Without right answers, an answer other than the full run's counts as wrong.)"
        if diagnosis.auroc is not None:
            text += f" AUROC within steps {diagnosis.auroc:.2f}"
            text += f" ({diagnosis.auroc_interval[0]:.2f} to {diagnosis.auroc_interval[1]:.2f})" if diagnosis.auroc_interval else ""
            text += f", read from {Signal.named(signal).title}; 0.5 would be a coin."
        head = {"signal": "There is a signal.", "no_signal": "No signal.", "inverted_signal": "The signal is inverted."}
        tone = "good" if diagnosis.verdict == "signal" else "warn"
        return {"tone": tone, "head": head.get(diagnosis.verdict, "Not known yet."), "text": text}

    def tradeoff_caption(self, table: Table) -> str:
        """What the first plot shows, and its catch."""
        text = (
            "Recorded runs, replayed; up and to the left is better. Small numbers: steps after which every run is cut. "
            "Where the policy was calibrated on these same runs, its point flatters it."
        )
        return text if self.labels == "gold" else text + " Without right answers, the full run's answer counts as right."

    def lost_and_gained(self, table: Table, replayed: ReplayResult) -> tuple[Array, Array]:
        """Which runs lost and gained a right answer, bool [runs]."""
        gained = replayed.run_correct & ~table.full_right & ~table.cut
        return replayed.run_lost, gained & np.array(self.labels == "gold")

    def rows(self, figures: Mapping[str, Any] | None, diagnosis: Diagnosis, table: Table) -> list[dict[str, str]]:
        """The table of figures; each row says whether it was measured, counted or estimated."""
        if figures is None:
            rows = [
                _row("tokens", number(float(table.tokens.sum())), NONE, NONE, "counted", "completion tokens of the recorded runs")
            ]
            if diagnosis.accuracy_full is not None:
                accuracy = percent(diagnosis.accuracy_full)
                rows.insert(0, _row("accuracy", accuracy, NONE, NONE, "counted", "right answers over questions"))
            return rows
        get = figures.get
        rows = []
        if get("accuracy") is not None:
            change = f"{points(get('accuracy_change'))} ({interval(get('accuracy_change_interval'), points)})"
            how = f"right answers over questions; {number(get('lost_correct'))} lost, {number(get('gained_correct'))} gained"
            rows.append(_row("accuracy", percent(get("accuracy_full")), percent(get("accuracy")), change, "counted", how))
        change = f"{percent(_less(get('tokens_saved')))} ({interval(_turned(get('tokens_saved_interval')), percent)})"
        how = "computed tokens, probes included" if self.live else "recorded tokens up to the stop, probes included"
        rows.append(_row("tokens", number(get("tokens_full")), number(get("tokens")), change, "counted", how))
        if get("flops") is not None:
            how = f"2 × {number(get('parameters'))} parameters × tokens (arXiv 2001.08361), attention left out"
            rows.append(_ratio("FLOPs", get("flops_full"), get("flops"), "estimated", how))
        if get("seconds") is not None:
            how = "wall clock, all questions" if self.live else "recorded seconds; with stopping, those up to the stop"
            rows.append(_ratio("seconds", get("seconds_full"), get("seconds"), "measured" if self.live else "estimated", how))
        for name, what in (("mean", "mean"), ("p50", "median"), ("p95", "95th percentile"), ("std", "standard deviation")):
            full, stopped = ((get(side) or {}).get(name) for side in ("latency_full", "latency"))
            if full is not None and stopped is not None:
                rows.append(_ratio(f"latency, {what} (s)", full, stopped, "measured", "wall clock, one question at a time"))
        return rows

    def steps(self, diagnosis: Diagnosis) -> list[dict[str, str]]:
        """Diagnosis step by step."""
        steps = diagnosis.steps[:40]
        two = "{:.2f}".format
        return [
            {
                "step": str(s.step),
                "n": f"{s.n:,}",
                "accuracy": percent(s.accuracy),
                "auroc": NONE if s.auroc is None else two(s.auroc),
                "interval": interval(s.auroc_interval, two) if s.auroc_interval else NONE,
                "d": NONE if s.cohens_d is None else _minus(two(s.cohens_d)),
            }
            for s in steps
        ]

    def facts(self, policy: Policy) -> list[tuple[str, str]]:
        """The policy, row by row."""
        c, rule = policy.calibration, policy.stop_rule
        facts = [("rule", rule.describe())]
        if rule.reads_signal:
            facts += [
                ("signal", "; ".join(s.title for s in rule.signals)),
                ("threshold", f"{thresholds_text(policy)}{unit_of(policy.signal)}" if policy.active else "none"),
            ]
        if not rule.sets_step:
            facts.append(("first stop allowed after step", str(policy.min_steps)))
        sentence = state_sentence(policy)
        facts += [
            ("promise" if policy.active else "off because", sentence[:1].upper() + sentence[1:]),
            ("model", ", ".join([policy.model, *policy.aliases])),
            (
                "entropy from",
                "the full vocabulary" if policy.k is None else f"the {policy.k} likeliest tokens ({policy.estimator})",
            ),
            (
                "steps are cut at",
                f"{policy.segmentation.boundary}, {policy.segmentation.min_tokens} tokens at least ({policy.mode})",
            ),
        ]
        if policy.temperature:
            facts.append(("temperature", ", ".join(f"{t:g}" for t in policy.temperature)))
        if c.get("groups") is not None:
            facts.append(("calibrated on", f"{number(c['groups'])} questions, labels: {c.get('labels', 'not said')}"))
        if c.get("auroc") is not None:
            facts.append(("AUROC in calibration", f"{c['auroc']:.2f} ({interval(c.get('auroc_interval'), '{:.2f}'.format)})"))
        return [*facts, ("fingerprint", policy.fingerprint)]


def _card(name: str, value: str, under: str, *, words: bool = False) -> dict[str, Any]:
    return {"name": name, "value": value, "under": under, "words": words}


def _row(name: str, full: str, stopped: str, change: str, kind: str, how: str) -> dict[str, str]:
    return {"name": name, "full": full, "stopped": stopped, "change": change, "kind": kind, "how": how}


def _ratio(name: str, full: float | None, stopped: float | None, kind: str, how: str) -> dict[str, str]:
    change = percent(stopped / full - 1.0) if full and stopped is not None else NONE
    return _row(name, number(full), number(stopped), change, kind, how)


def _less(value: float | None) -> float | None:
    return None if value is None else -value


def _turned(bounds: Sequence[float] | None) -> list[float] | None:
    return None if not bounds else [-bounds[1], -bounds[0]]
