"""The scripted backend keeps the contract, and plays exactly what it is told."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
from blocking import Awaited, Blocking

from entropy_chains.backends import Sampling
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.backends.text.pieces import LARGEST_ENTROPY
from entropy_chains.core.entropy import token_entropy
from entropy_chains.core.families import FAMILIES
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import MassFloor
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.errors import BackendError, InputError, SettingsError
from entropy_chains.refine import PER_CALL, run_refine

_spec = importlib.util.spec_from_file_location("backend_contract", Path(__file__).with_name("contract.py"))
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)


def ask(text="q"):
    return [{"role": "user", "content": text}]


LINES = Segmentation("line", 1)
STEPS = [("one ", 1.2), ("\n", 0.8), ("two ", 0.1), ("\n", 0.3), ("three ", 0.0), ("\n", 0.0)]
"""Three steps of two tokens each, with means of 1.0, 0.2 and 0 bits."""


def play(script, threshold=0.5, rule="entropy", min_steps=1, max_tokens=100, **given):
    """One run of a script stopped at a threshold."""
    backend = ScriptedBackend(script, segmentation=LINES)
    policy = Policy("scripted", (threshold,), rule, min_steps, segmentation=LINES)
    return backend.generate([ask()], policy=policy, sampling=Sampling(max_tokens=max_tokens), **given)[0]


class TestContract(contract.BackendContract):
    """On four scripts, among them one that never ends its thinking."""

    @pytest.fixture
    def scripts(self):
        scripts = {f"q{n}": Script(STEPS[: 2 * n + 2], f"answer {n}") for n in range(3)}
        return scripts | {"q3": Script(STEPS, "early only", closes=False)}

    @pytest.fixture
    def backend(self, scripts):
        return ScriptedBackend(scripts, segmentation=LINES)

    @pytest.fixture
    def conversations(self):
        return [ask(f"q{n}") for n in range(4)]

    def offered(self, backend):
        return backend.template_settings


class TestAsyncContract(Awaited, TestContract):
    """The same backend by its async calls."""

    @pytest.fixture
    def backend(self, scripts):
        backend = Blocking(ScriptedBackend(scripts, segmentation=LINES))
        yield backend
        backend.close()


def test_a_stop_by_hand():
    """1.0 bits goes on, 0.2 stops: open tag, 2 + 2 tokens, closing tag and blank line, answer of two words = 9 tokens."""
    run = play(Script(STEPS, "the answer", early=["first", "second one"]))
    assert (run.answer, run.tokens, run.reasoning_tokens, run.rest_tokens) == ("second one", 9, 6, 4)
    assert [round(s.record.entropy, 9) for s in run.steps] == [1.0, 0.2]
    assert [s.text for s in run.steps] == ["<think>one \n", "two \n"]
    assert (run.reasoning, run.finish_reason) == ("one \ntwo ", "stop")
    assert (run.outcome.step, run.outcome.entropy) == (2, pytest.approx(0.2))


def test_a_full_run_by_hand():
    """Without a stop: open tag, 6 tokens, closing tag and blank line, answer of two words."""
    run = play(Script(STEPS, "the answer", early=["first"]), threshold=-1.0)
    assert (run.answer, run.tokens, run.rest_tokens, len(run.steps)) == ("the answer", 11, 4, 3)


@pytest.mark.parametrize("entropy", [0.0, 1e-6, 0.25, 1.0, 3.0, 4.3, LARGEST_ENTROPY])
def test_a_piece_has_the_entropy_it_was_given(entropy):
    """To a billionth of a bit, out of real alternatives whose probabilities sum to 1."""
    backend = ScriptedBackend(Script([("a", entropy)], "x"))
    chunk = list(backend.stream(ask()))[1]
    assert chunk.bounds == token_entropy(chunk.token, k=20)
    assert chunk.bounds.entropy == pytest.approx(entropy, abs=1e-9)
    assert chunk.bounds.mass == pytest.approx(1.0)


def test_pieces_of_every_kind():
    """A text is sure; logprobs are taken as they are; None is missing; a Token goes through unchanged."""
    half = math.log(0.5)
    token = Token("d", 3, None, half, (Alternative("d", half, 3), Alternative("e", half, 4)))
    backend = ScriptedBackend(Script(["a", ("b", [half, half]), ("c", None), token], "x"))
    chunks = list(backend.stream(ask()))[1:5]
    assert [c.bounds and c.bounds.entropy for c in chunks] == [0.0, pytest.approx(1.0), None, pytest.approx(1.0)]
    assert chunks[3].token is token


def test_an_impossible_entropy_is_refused():
    """The message gives the largest one."""
    with pytest.raises(InputError, match=r"5.0 bits.*4\.3219"):
        list(ScriptedBackend(Script([("a", 5.0)])).stream(ask()))


def test_missing_logprobs_never_stop():
    """A server that gives none: the steps are there, their entropy is None, the run is in full."""
    run = play(Script([("a", None), ("\n", None)] * 3, "x"), threshold=4.0)
    assert [s.record.entropy for s in run.steps] == [None] * 3
    assert run.outcome.stopped is False


def test_an_answer_that_is_malformed_after_the_stop():
    """Empty, or thinking begun again: the full run's answer, and the tokens of both."""
    whole = play(Script(STEPS, "right"), threshold=-1.0)
    for early, spent in (("", 0), (None, 0), ("<think>again", 1)):
        run = play(Script(STEPS, "right", early=[early]))
        assert (run.answer, run.outcome.stopped) == ("right", False)
        assert run.tokens == whole.tokens + 7 + spent
        assert "malformed" in run.outcome.reason


def test_the_stream_of_a_malformed_stop_shows_the_full_run_after_it():
    """The last chunk tells; every token was shown."""
    backend = ScriptedBackend(Script(STEPS, "right", early=[""]), segmentation=LINES)
    chunks = list(backend.stream(ask(), policy=Policy("scripted", (0.5,), segmentation=LINES)))
    assert chunks[-1].final.tokens == sum(c.token is not None for c in chunks)
    assert chunks[-2].text == "right"


def test_debris_of_closing_is_not_in_the_answer():
    """A second closing tag is not shown to the user."""
    assert play(Script(STEPS, early=["</think>\n\n42"])).answer == "42"


def test_agreement_by_hand():
    """Answers 1, 2, 2: stopped after step 3; three probes of closing (2) and one word; the answer is the last probe's."""
    run = play(Script(STEPS, "9", early=["1", "2", "2"]), threshold=4.0, rule="entropy+agreement", min_steps=2)
    assert (run.answer, run.outcome.step, run.tokens) == ("2", 3, 7 + 3 * 3)
    assert run.prefill_tokens == 3 + 5  # it went on twice, after 3 and after 5 tokens


def test_the_answer_of_a_probe_is_streamed():
    """A reader of the stream sees the answer, though it came out of a probe."""
    backend = ScriptedBackend(Script(STEPS, "9", early=["2"]), segmentation=LINES)
    policy = Policy("scripted", (4.0,), "entropy+agreement", 2, segmentation=LINES)
    chunks = list(backend.stream(ask(), policy=policy))
    assert "".join(c.text for c in chunks if c.phase is Phase.ANSWER) == chunks[-1].final.answer == "2"


def test_a_failure_on_order():
    """At the token told, after those before it; generate fails alike."""
    backend = ScriptedBackend(Script(STEPS, "x", fail_at=3))
    stream = backend.stream(ask())
    next(stream), next(stream)
    with pytest.raises(BackendError, match="token 3"):
        next(stream)
    with pytest.raises(BackendError, match="token 3"):
        backend.generate([ask()])


def test_scripts_by_question_and_turn():
    """The refine loop plays a question's scripts turn by turn; a question without a script is an error that names it."""
    turns = [Script(answer=[("1", 2.0)]), Script(answer=[("2", 0.1)]), Script(answer=[("3", 0.0)])]
    backend = ScriptedBackend({"a": turns, "b": [Script(answer=[("7", 0.0)])]})
    policy = Policy("scripted", (0.5,), mode="refine", segmentation=PER_CALL, mass_floor=MassFloor())
    runs = run_refine(backend, [ask("a"), ask("b")], policy=policy)
    assert [(r.answer, r.outcome.step, len(r.calls)) for r in runs] == [("2", 2, 2), ("7", 1, 1)]
    with pytest.raises(InputError, match=r"no script for.*'c'"):
        backend.generate([ask("c")])


@pytest.mark.parametrize("tags", FAMILIES, ids=lambda t: t.open)
def test_every_family_of_tags(tags):
    """Stopped early or not, no tag of the family is left in reasoning or answer."""
    backend = ScriptedBackend(Script(STEPS, "42", early=["41"]), think_tags=tags, segmentation=LINES)
    for threshold, expected in ((4.0, "41"), (-1.0, "42")):
        policy = Policy("scripted", (threshold,), segmentation=LINES, template=backend.template)
        run = backend.generate([ask()], policy=policy)[0]
        assert run.answer == expected
        assert run.reasoning == ("one " if threshold > 0 else "one \ntwo \nthree ")


def test_k_is_checked():
    """As on a real backend."""
    with pytest.raises(SettingsError, match="k is 0"):
        ScriptedBackend(Script(), k=0)
