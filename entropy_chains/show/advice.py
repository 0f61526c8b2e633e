"""What a calibration gives, in figures, and, where it will not stop, what to do next: signal, format, number, model or limit."""

from __future__ import annotations

import math
from typing import Any

from entropy_chains.core.policy import Policy
from entropy_chains.offline.calibrate import largest_max_loss
from entropy_chains.offline.certify import examples_needed
from entropy_chains.offline.diagnose import FEWEST, NO_ANSWERS, NOT_RECORDED, ONE_STEP
from entropy_chains.offline.no_thinking import MOST_MISSING
from entropy_chains.show import wording

MANY_MISSING = 0.2
"""Share of early answers without which the format is at fault."""


def saving(policy: Policy) -> str:
    """What it saves, with the interval, and on which questions that was seen; empty where it was not judged."""
    judged = policy.calibration.get("judged")
    if not judged or not policy.active:
        return ""
    bounds = wording.interval(judged["tokens_saved_interval"], wording.percent)
    text = f"{wording.percent(judged['tokens_saved'])} of the tokens ({bounds}), "
    if judged["on"] == "held_out":
        return text + f"on {judged['groups']} questions that calibration never saw"
    if judged["on"] == "folds":
        return f"{text}estimated on {judged['groups']} questions by folds: policies fitted alike on four fifths, judged on the rest"
    return text + "on the calibration questions themselves, which flatters; --hold-out 0.3 judges on kept-back ones"


def change(policy: Policy) -> str:
    """How the accuracy changed there, with the interval; empty where that is not known."""
    judged = policy.calibration.get("judged")
    if not judged or not policy.active or judged["accuracy_change"] is None:
        return ""
    bounds = wording.interval(judged["accuracy_change_interval"], wording.points)
    return f"{wording.points(judged['accuracy_change'])} points ({bounds}); right answers lost: {judged['lost_correct']}"


def losable(policy: Policy) -> str:
    """What it may lose, as a share of all questions and of those answered right; empty without a certificate."""
    certificate, accuracy = policy.calibration.get("certificate"), policy.calibration.get("accuracy_full")
    if not certificate:
        return ""
    text = f"at most {wording.short_percent(certificate['max_loss'])} of all questions"
    if accuracy:
        text += f", which is {wording.short_percent(certificate['max_loss'] / accuracy)} of those answered right in full"
    return f"{text} (with {wording.short_percent(certificate['confidence'])} confidence)"


def places(policy: Policy) -> str:
    """Where its rule can run, and where not."""
    rule = policy.stop_rule
    if policy.hindrance and rule.uncomputed:
        return f"nothing live, only replay and compare: {policy.hindrance}."
    needs = " The server must give logprobs." if rule.reads_signal else " It needs no logprobs."
    if policy.scope == "agent":
        return "agents: the middleware and the agents of the integrations." + needs
    if policy.mode == "refine":
        return f"the refine loop, over servers and local models; not the vLLM plug-in or callbacks, which see single calls.{needs}"
    if rule.reads_answers:
        why = "which cannot ask for an answer (--rule entropy makes a policy that they can serve)"
        return f"the client and the wrappers, over servers, and local models; not the vLLM plug-in or callbacks, {why}.{needs}"
    return f"the vLLM plug-in, callbacks, the client and the wrappers, and local models.{needs}"


def evidence(policy: Policy) -> str:
    """What is to be known of the signal beside the verdict; empty where it is plain."""
    figures, reads = policy.calibration, policy.stop_rule.reads_signal
    if figures.get("entropy_recorded") == 0:
        return NOT_RECORDED
    if not policy.active or policy.method != "certified":
        return ""
    verdict, wrong = figures.get("verdict"), figures.get("questions_wrong_early")
    if reads and verdict == "too_few_examples" and wrong is not None:
        return (
            f"That entropy tells wrong answers is not shown: {wrong} questions have a wrong early answer, and {FEWEST} would be "
            "needed. Only such answers can be lost, and the certificate counts them: the promise rests on that count alone."
        )
    if not reads and verdict in ("no_signal", "inverted_signal"):
        return f"Entropy does not tell right from wrong answers here (AUROC {_auroc_text(figures)}); this rule does not read it."
    return ""


def next_step(policy: Policy) -> str:
    """What is at fault where it will not stop, and what to do, in figures; empty where nothing is known or it stops."""
    figures = policy.calibration
    if policy.active or figures.get("examples_needed") is None:
        return ""
    if len(figures.get("remaining_tokens") or (0, 0)) == 1:
        return f"Steps: {ONE_STEP[:1].lower()}{ONE_STEP[1:]}"
    if policy.mode == "thinking" and (figures.get("answers_missing") or 0) >= MOST_MISSING:
        return f"Format: {wording.percent(figures['answers_missing'], 0)} of the early answers are missing: {NO_ANSWERS}"
    parts = [_missing_answers(figures), _STEPS[policy.reason](figures) if policy.reason in _STEPS else ""]
    return " ".join(filter(None, parts))


def _missing_answers(figures: Any) -> str:
    missing, right, groups = (figures.get(name) for name in ("answers_missing", "questions_right", "groups"))
    if missing is not None and missing >= MANY_MISSING:
        return (
            f"Format: {wording.percent(missing, 0)} of the early answers are missing; ask for a form that can be read "
            "(--system), and look at the answers in the traces."
        )
    if right == 0 and groups and figures.get("labels") == "gold" and figures.get("cut") != figures.get("runs"):
        return f"Format or model: no full answer of {groups} questions equals its gold answer; look at both in the traces."
    return ""


def _too_few(figures: Any) -> str:
    right, groups, needed = (figures.get(name) for name in ("questions_right", "groups", "examples_needed"))
    if figures.get("cut") and figures["cut"] == figures.get("runs"):
        return ""  # what cut runs need is said elsewhere
    if right is not None and groups is not None and right < FEWEST:
        more = f"; at this rate that takes {math.ceil(FEWEST * groups / right)} questions" if right else ""
        return f"Number: the full answer is right in {right} of {groups} questions, and {FEWEST} right ones are the least{more}."
    if groups is None:
        return f"Number: {_needed(figures)}."
    if groups < needed:
        return f"Number: {_needed(figures)}; there are {groups}, so record {needed - groups} more."
    return "Number: record questions of which some are answered right and some wrong after the first step."


def _needed(figures: Any) -> str:
    needed, rules = figures["examples_needed"], figures.get("rules") or 1
    tried = "one rule needs" if rules == 1 else f"{rules} rules and signals need"
    terms = ""
    if figures.get("max_loss") is not None and figures.get("confidence") is not None:
        loss, sure = wording.short_percent(figures["max_loss"]), wording.short_percent(figures["confidence"])
        terms = f" for a loss of at most {loss} with {sure} confidence"
    return f"to be certified{terms}, {tried} at least {needed} questions of which none is lost"


def _unsafe(figures: Any) -> str:
    accuracy, loss, groups, needed = (figures.get(n) for n in ("accuracy_full", "max_loss", "groups", "examples_needed"))
    if loss is None:
        return ""
    if loss > (largest := largest_max_loss(accuracy)):
        sensible = math.floor(1000 * largest) / 1000
        text = (
            f"Model: {wording.percent(accuracy)} of the full answers are right, so {wording.short_percent(loss)} of all questions "
        )
        text += f"would be {wording.percent(min(1.0, loss / accuracy) if accuracy else 1.0, 0)} of the right answers. "
        if not sensible:
            return text + "No promise is worth anything here: take a better model, or easier questions."
        delta = round(1 - (figures.get("confidence") or 0.0), 12)
        least = f", which needs {examples_needed(sensible, delta, figures.get('rules') or 1)} questions" if 0 < delta < 1 else ""
        return f"{text}The largest sensible limit is --max-loss {sensible:g}{least}; or take a better model."
    if groups is not None and groups < needed:
        return f"Number: {_needed(figures)}; with {groups} only some rules could be tried. Record {needed - groups} more."
    if groups is None:
        return ""
    return (
        f"Number or limit: on {groups} questions no setting that saves anything lost few enough. Record more questions, which "
        f"allows more losses at the same promise, or accept a larger --max-loss than {loss:g}."
    )


def _silent(figures: Any) -> str:
    return (
        f"Signal: AUROC {_auroc_text(figures)} over early answers, where .5 is a coin. Try another statistic (--signal), an "
        "answer's own entropy (trial_entropy, recorded in thinking mode), or other steps (--boundary, --min-tokens); a fixed step "
        "was tried and lost too much. Else do not stop this model."
    )


_STEPS = {"too_few_examples": _too_few, "no_safe_threshold": _unsafe, "no_signal": _silent, "inverted_signal": _silent}


def _auroc_text(figures: Any) -> str:
    if figures.get("auroc") is None:
        return "not known"
    return f"{figures['auroc']:.2f} ({wording.interval(figures.get('auroc_interval'), '{:.2f}'.format)})"
