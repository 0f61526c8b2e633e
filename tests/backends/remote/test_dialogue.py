"""The reply of a server as a pure state machine: requests out, updates in."""

from __future__ import annotations

import pytest
from dialogues import ANSWER, ASKED, FOUR, SURE, THINK, UNSURE, piece, policy, updates

from entropy_chains.backends import Generation
from entropy_chains.backends.remote.attempt import MOST_BARE_TOKENS
from entropy_chains.backends.remote.continuations import Prefill, RawCompletion, Turn
from entropy_chains.backends.remote.dialogue import Dialogue
from entropy_chains.backends.remote.drive import drive
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.readers import Piece, Update, Usage
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.steps import Segmentation
from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.errors import BackendError, NoLogprobsError, PolicyMismatch


def run(dialogue, *streams):
    """Play streams of updates, and what the server says when told to end its thinking, in order.

    Returns the requests made, what a reader saw of the answer, and the run.
    """
    requests, left = [], list(streams)

    def send(request):
        requests.append(request)
        for update in left.pop(0):
            if isinstance(update, Exception):
                raise update
            yield update

    def control(stream):
        requests.append(stream)
        return left.pop(0)

    seen = [chunk for shown in drive(dialogue, send, control) for chunk in shown.chunks]
    assert not left
    return requests, "".join(c.text for c in seen if c.phase is ANSWER), dialogue.result()


@pytest.mark.parametrize(
    ("way", "last", "prefix"),
    [
        (Prefill(), "<think>\n2+2=4\n</think>\n\n", None),
        (RawCompletion(), "2+2?", "<think>\n2+2=4\n</think>\n\n"),
        (Turn("now"), "now", None),
    ],
)
def test_a_sure_step_closes_the_stream_and_asks_for_the_answer(way, last, prefix):
    """The stream is closed at the boundary, the answer asked for after exactly this thinking; tokens of both are counted."""
    requests, shown, made = run(
        Dialogue(ASKED, Plan(ThinkTags(), (way,)), policy=policy()), [Update((s,)) for s in SURE], updates(*FOUR)
    )
    assert [r.purpose for r in requests] == ["reason", "answer"]
    assert (requests[1].messages[-1]["content"], requests[1].prefix, requests[1].logprobs) == (last, prefix, False)
    assert (shown, made.answer, made.tokens, made.reasoning_tokens, made.prefill_tokens) == ("4", "4", 3, 2, 2)
    assert (made.outcome.stopped, made.outcome.step, made.reasoning) == (True, 1, "2+2=4")


def test_an_unsure_run_is_one_request():
    """Nothing is stopped, the usage of the server is taken for the tokens."""
    stream = updates(*UNSURE, *FOUR, usage=Usage(7, 5, 2))
    requests, _, made = run(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy()), stream)
    assert len(requests) == 1
    assert (made.answer, made.tokens, made.prompt_tokens, made.prefill_tokens) == ("4", 5, 7, 0)
    assert (made.outcome.stopped, made.outcome.reason) == (False, "reasoning ended by itself")


def test_tokens_of_a_chunk_after_the_boundary_are_counted_and_not_read():
    """A chunk of several tokens may go past the boundary: computed, but no part of the thinking that is continued."""
    stream = [Update((*SURE, piece("never"), piece("read")))]
    requests, _, made = run(Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy()), stream, updates(*FOUR))
    assert requests[1].messages[-1]["content"] == "<think>\n2+2=4\n</think>\n\n"
    assert made.tokens == 5


def test_inline_thinking_is_found_by_its_tags():
    """Without a reasoning field the tags in the text tell; the tags are not shown, and the thinking is sent back as it was."""
    pieces = [piece("<think>", None), *(piece(p.text, None, 0.1) for p in SURE)]
    requests, _, made = run(
        Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy()), [Update((p,)) for p in pieces], updates(*FOUR)
    )
    assert requests[1].messages[-1]["content"] == "<think>2+2=4\n</think>\n\n"
    assert made.reasoning == "2+2=4"


@pytest.mark.parametrize(
    ("bad", "read", "why"),
    [
        ("", 0, "malformed"),
        ("  \n", 3, "malformed"),
        ("<think>\nlet me think again", len("<think>\nl"), "think again"),
        ("<think>\nlet me</think>5", len("<think>\nl"), "think again"),
    ],
)
def test_a_malformed_answer_is_run_in_full(bad, read, why):
    """Empty, or thinking begun again: a full run follows, nothing of the bad answer is shown, all tokens that came are counted.

    The stream is closed where the thinking begins.
    """
    broken = updates(*(piece(c, ANSWER) for c in bad))
    full = updates(*UNSURE, *FOUR)
    requests, shown, made = run(
        Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy()), [Update((s,)) for s in SURE], broken, full
    )
    assert [r.purpose for r in requests] == ["reason", "answer", "full"]
    assert (shown, made.answer, made.tokens) == ("4", "4", 2 + read + 3)
    assert (made.outcome.stopped, made.outcome.tokens_saved) == (False, None)
    assert why in made.outcome.reason


@pytest.mark.parametrize("told", [Update(tool_call=True), Update(refusal="no")])
def test_a_tool_call_or_a_refusal_after_the_stop_is_an_answer(told):
    """It has no text, and is none the less what the model answers: no full run follows."""
    requests, _, made = run(Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy()), [Update((s,)) for s in SURE], [told])
    assert [r.purpose for r in requests] == ["reason", "answer"]
    assert (made.outcome.stopped, made.answer) == (True, None)


@pytest.mark.parametrize("debris", ["</think>\n\n", "\n\n", "<think>\n\n</think>\n\n"])
def test_debris_before_the_answer_is_left_out(debris):
    """A second closing tag, blank lines, empty thinking: neither shown nor part of the answer."""
    answer = updates(*(piece(c, ANSWER) for c in debris + "4"))
    _, shown, made = run(Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy()), [Update((s,)) for s in SURE], answer)
    assert (shown, made.answer, made.outcome.stopped) == ("4", "4", True)


def test_thinking_begun_again_in_its_own_field_is_no_answer():
    """A server that splits it off: the attempt is closed and thrown away, whatever content would follow; blanks are no thinking."""
    plan = Plan(ThinkTags(), (Turn(),))
    again = updates(piece(" ", THINK), piece("so ", THINK), piece("again", THINK), *FOUR)
    with pytest.warns(UserWarning, match="think again"):
        requests, shown, made = run(
            Dialogue(ASKED, plan, policy=policy()), [Update((s,)) for s in SURE], again, updates(*UNSURE, piece("5", ANSWER))
        )
    assert [r.purpose for r in requests] == ["reason", "answer", "full"]
    assert (shown, made.answer, made.tokens, made.outcome.stopped) == ("5", "5", 2 + 2 + 3, False)
    assert "think again" in made.outcome.reason
    blank = updates(piece("\n", THINK), *FOUR)
    _, shown, made = run(Dialogue(ASKED, plan, policy=policy()), [Update((s,)) for s in SURE], blank)
    assert (shown, made.answer, made.outcome.stopped) == ("4", "4", True)


def test_thinking_that_goes_on_after_an_answer_has_begun_is_not_stopped():
    """The answer after a stop would be put beside what was said already."""
    pieces = [piece("hm\n", THINK, 0.9), piece("Let me check.\n", ANSWER), *SURE, piece("It is 4", ANSWER)]
    requests, shown, made = run(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy()), updates(*pieces))
    assert (len(requests), made.outcome.stopped) == (1, False)
    assert shown == made.answer == "Let me check.\nIt is 4"
    assert "after the answer has begun" in made.outcome.reason


def test_a_refused_way_is_followed_by_the_next_and_last_by_the_full_run():
    """400 on the prefill: the turn is tried; where that fails too, the run is done in full and says why."""
    plan = Plan(ThinkTags(), (Prefill(), Turn("now")))
    no = [BackendError("400")]
    requests, _, made = run(Dialogue(ASKED, plan, policy=policy()), [Update((s,)) for s in SURE], no, updates(*FOUR))
    assert (requests[2].messages[-1]["content"], made.outcome.stopped) == ("now", True)
    requests, _, made = run(Dialogue(ASKED, plan, policy=policy()), [Update((s,)) for s in SURE], no, no, updates(*UNSURE, *FOUR))
    assert [r.purpose for r in requests] == ["reason", "answer", "answer", "full"]
    assert (made.answer, made.outcome.stopped) == ("4", False)
    assert "could not be had (400)" in made.outcome.reason


def test_an_error_in_the_run_or_in_a_shown_answer_is_raised():
    """No second answer is put beside a part of one; a failed run is one clear error."""
    plan = Plan(ThinkTags(), (Prefill(), Turn()))
    with pytest.raises(BackendError, match="reset"):
        run(Dialogue(ASKED, plan, policy=policy()), [Update((UNSURE[0],)), BackendError("reset")])
    with pytest.raises(BackendError, match="reset"):
        run(Dialogue(ASKED, plan, policy=policy()), [Update((s,)) for s in SURE], [Update((FOUR[0],)), BackendError("reset")])


def test_a_server_told_to_end_the_thinking_goes_on_in_the_same_stream():
    """llama.cpp: no second request; it is told the stream's id. What it made before is computed, counted, and not shown."""
    plan = Plan(ThinkTags(), (Turn(),), control=True)
    stream = [*(Update((s,), id="c1") for s in SURE), *updates(piece("more "), *FOUR)]
    requests, shown, made = run(Dialogue(ASKED, plan, policy=policy()), stream, True)
    assert (len(requests), requests[1], shown, made.answer, made.reasoning) == (2, "c1", "4", "4", "2+2=4")
    assert (made.tokens, made.prefill_tokens, made.outcome.stopped) == (4, 0, True)


def test_a_server_that_does_not_end_the_thinking_runs_in_full():
    """It says no, or the call fails: the stream is read on, all of it is shown, and the run does not count as stopped."""
    plan = Plan(ThinkTags(), (Turn(),), control=True)
    stream = [*(Update((s,), id="c1") for s in SURE), *updates(piece("more "), *FOUR)]
    _, shown, made = run(Dialogue(ASKED, plan, policy=policy()), stream, False)
    assert (shown, made.reasoning, made.outcome.stopped) == ("4", "2+2=4\nmore ", False)
    assert "did not end" in made.outcome.reason


def test_a_probe_runs_beside_the_stream():
    """Agreement of two answers: the second equal one is the run's answer; both probes are counted."""
    plan = Plan(ThinkTags(), (Prefill(),))
    dialogue = Dialogue(ASKED, plan, policy=policy(rule="entropy+agreement", min_steps=2))
    stream = [Update((s,)) for s in (*SURE, *SURE, *SURE)]
    requests, shown, made = run(dialogue, stream, updates(*FOUR), updates(*FOUR))
    assert [r.purpose for r in requests] == ["reason", "probe", "probe"]
    assert (shown, made.answer, made.tokens, made.outcome.step) == ("4", "4", 6, 2)


def test_a_probe_s_entropy_decides():
    """Its request asks for logprobs, as no other rule's does; the first answer is not sure enough, the second one is the run's."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy(0.5, signal="trial_entropy"))
    unsure, sure = updates(piece("4", ANSWER, entropy=1.0)), updates(piece("4", ANSWER, entropy=0.25))
    requests, shown, made = run(dialogue, [Update((s,)) for s in (*SURE, *SURE, *SURE)], unsure, sure)
    assert [(r.purpose, r.logprobs) for r in requests] == [("reason", True), ("probe", True), ("probe", True)]
    assert (shown, made.answer, made.outcome.step) == ("4", "4", 2)
    assert (made.outcome.entropy, made.outcome.threshold) == (pytest.approx(0.25), 0.5)
    agreeing = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy(rule="entropy+agreement", min_steps=2))
    asked, _, _ = run(agreeing, [Update((s,)) for s in (*SURE, *SURE, *SURE)], updates(*FOUR), updates(*FOUR))
    assert [r.logprobs for r in asked] == [True, False, False]


@pytest.mark.parametrize("reason", ["length", "content_filter", "abort"])
def test_a_probe_that_was_cut_off_is_no_answer(reason):
    """The server ended it: however sure its beginning is, the run goes on."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy(0.5, signal="trial_entropy"))
    cut = [*updates(piece("4", ANSWER)), Update(finish_reason=reason)]
    _, shown, made = run(dialogue, [*(Update((s,)) for s in SURE), *updates(*FOUR)], cut)
    assert (shown, made.outcome.stopped, made.tokens) == ("4", False, 4)


@pytest.mark.parametrize(("signal", "entropy"), [("trial_entropy", None), ("eat", 0.1)])
def test_an_answer_of_which_nothing_is_told_is_no_silent_loss(signal, entropy):
    """Probes that stop nothing would cost tokens at every step: an error, or by leave a full run with no more of them."""
    answer = updates(piece("4", ANSWER, entropy=entropy))
    streams = [Update((s,)) for s in (*SURE, *SURE, *FOUR)], answer
    with pytest.raises(NoLogprobsError, match=f"does not tell {signal}"):
        run(Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy(0.5, signal=signal)), *streams)
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),), without_logprobs="full"), policy=policy(0.5, signal=signal))
    with pytest.warns(UserWarning, match="in full"):
        requests, _, made = run(dialogue, *streams)
    assert ([r.purpose for r in requests], made.answer, made.outcome.stopped) == (["reason", "probe"], "4", False)
    assert "does not tell" in made.outcome.reason


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        *[(w, "stop") for w in ("stop", "eos", "tool_calls")],
        *[(w, "length") for w in ("length", "max_tokens")],
        *[(w, w) for w in ("content_filter", "abort", "repetition", "network_error")],
    ],
)
def test_a_run_tells_how_the_server_ended_it(word, reason):
    """One word for a normal end and one for a full limit; of an end that is neither, and beside both, the server's own."""
    _, _, made = run(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),))), updates(*UNSURE, *FOUR, finish=word))
    assert (made.finish_reason, made.finish_raw, made.answer) == (reason, word, "4")


def test_nothing_is_cut_once_a_tool_call_or_a_refusal_has_begun():
    """However sure the model is from there on."""
    for begun in (Update(tool_call=True), Update(refusal="I")):
        stream = [begun, *updates(*SURE, *FOUR)]
        requests, _, made = run(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy()), stream)
        assert (len(requests), made.outcome.stopped) == (1, False)
    assert made.outcome.reason == "the model refuses"


BLIND = [piece("a", entropy=None)] * MOST_BARE_TOKENS + [piece("\n", entropy=None)]


def test_missing_logprobs_are_an_error_by_default():
    """A stop that silently never happens is the worst bug."""
    with pytest.raises(NoLogprobsError, match="without_logprobs"):
        run(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy()), updates(*BLIND, *FOUR))


def test_missing_logprobs_may_be_allowed_loudly():
    """``full``: a warning, the whole run, and a reason; missing is never taken for sure."""
    plan = Plan(ThinkTags(), (Turn(),), without_logprobs="full")
    with pytest.warns(UserWarning, match="no logprobs"):
        requests, _, made = run(Dialogue(ASKED, plan, policy=policy()), updates(*BLIND, *FOUR))
    assert (len(requests), made.outcome.stopped) == (1, False)
    assert "no logprobs" in made.outcome.reason


def test_without_logprobs_answers_may_decide():
    """``agreement``: two equal answers in a row stop, with no entropy at all."""
    plan = Plan(ThinkTags(), (Prefill(),), without_logprobs="agreement")
    with pytest.warns(UserWarning, match="agreement"):
        requests, _, made = run(
            Dialogue(ASKED, plan, policy=policy()), [Update((p,)) for p in (*BLIND, *BLIND)], updates(*FOUR), updates(*FOUR)
        )
    assert [r.purpose for r in requests] == ["reason", "probe", "probe"]
    assert (made.answer, made.outcome.stopped, made.outcome.reason, made.outcome.entropy) == ("4", True, "answers agree", None)


def test_fewer_alternatives_than_the_policy_reads_are_a_mismatch():
    """A server that caps the list at 5 gives other entropies; one fewer than asked is what engines do."""
    few = [piece("x", entropy=0.9, k=5)]
    few[0] = Piece(Token("x", 0, None, -3.0, tuple(Alternative(str(n), -3.0) for n in range(5))), THINK, "x")
    with pytest.raises(PolicyMismatch, match="policy is for k 20, but this run has k 5"):
        run(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy()), updates(*few))
    plan = Plan(ThinkTags(), (Turn(),), on_mismatch="warn")
    with pytest.warns(UserWarning, match="k 20"):
        run(Dialogue(ASKED, plan, policy=policy()), updates(*few, *FOUR))


def test_a_call_of_the_loop_is_one_step_with_its_content_as_answer():
    """Refine: every token of a call is reasoning, the answer is the content, whatever field the thinking came in."""
    call = Segmentation("call", 1)
    stream = updates(piece("so ", THINK, 0.2), piece("4", ANSWER, 0.4))
    _, _, made = run(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), segmentation=call), stream)
    assert isinstance(made, Generation)
    assert (made.answer, len(made.steps)) == ("4", 1)
    assert made.steps[0].record.entropy == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("stop", [False, True])
def test_shadow_figures_are_kept(stop):
    """A run that is only watched tells where it would have stopped."""
    d = Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy(), stop=stop, holdout=stop)
    requests, _, made = run(d, updates(*SURE, *FOUR))
    assert (len(requests), made.outcome.step, made.outcome.stopped, made.outcome.active) == (1, 1, False, False)
