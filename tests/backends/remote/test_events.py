"""The dialogue by hand, without any I/O: it is told what came, and its events say what to do."""

from __future__ import annotations

import pytest
from dialogues import ANSWER, ASKED, FOUR, SURE, UNSURE, piece, policy, updates

from entropy_chains.backends.remote.attempt import NOT_CLOSED
from entropy_chains.backends.remote.continuations import Prefill, Request, Turn
from entropy_chains.backends.remote.dialogue import THINKS_AGAIN, Dialogue
from entropy_chains.backends.remote.events import Close, Control, Finish, Send, Show, Try
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.readers import Piece, Update
from entropy_chains.backends.remote.trial import Trial
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.tokens import Token
from entropy_chains.errors import BackendError, NoLogprobsError


def begun(*ways, given=None, **fields):
    """A dialogue whose first request was sent; ``fields`` are the plan's."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), ways or (Prefill(),), **fields), policy=given or policy())
    assert purpose(dialogue.start()) == "reason"
    return dialogue


def purpose(event):
    """What the request is for that an event sends."""
    assert isinstance(event, Send)
    return event.request.purpose


def told(dialogue, *pieces):
    """All the events of tokens that come one by one."""
    return [event for each in pieces for event in dialogue.feed(Update((each,)))]


def kinds(events):
    return [type(event) for event in events]


def text(events):
    """What a reader sees of the answer."""
    return "".join(c.text for e in events if isinstance(e, Show) for c in e.chunks if c.phase is ANSWER)


def test_every_update_is_shown_also_one_without_text():
    """A framework passes on its own chunk, which is the update's."""
    dialogue, nothing = begun(), Update(raw="a chunk")
    assert dialogue.feed(nothing) == [Show([], nothing)]
    (shown,) = dialogue.feed(Update((UNSURE[0],), raw="another"))
    assert ([c.text for c in shown.chunks], shown.update.raw, shown.closing) == (["hm "], "another", False)


def test_a_stop_and_its_answer():
    """Show, close, and once the stream is over the request for the answer; then the end, and text that was kept back before it."""
    dialogue = begun()
    first, last, close = told(dialogue, *SURE)
    assert (first.closing, last.closing, close) == (False, True, Close())
    rest, following = dialogue.over()
    assert (rest, purpose(following)) == ([], "answer")
    assert following.request.messages[-1]["content"] == "<think>\n2+2=4\n</think>\n\n"
    events = told(dialogue, *FOUR, piece("<", ANSWER))
    assert (kinds(events), text(events)) == ([Show, Show], "4<")
    assert dialogue.over() == ([], Finish())
    assert dialogue.result().outcome.stopped


def test_text_that_was_kept_back_is_shown_at_the_end():
    """It might have become a tag: no update of its own brings it."""
    dialogue = begun()
    told(dialogue, *SURE)
    dialogue.over()
    assert text(told(dialogue, piece("<thi", ANSWER))) == ""
    (rest,), end = dialogue.over()
    assert (text([rest]), rest.update, end) == ("<thi", Update(), Finish())


def test_of_a_stream_that_was_closed_no_rest_is_shown():
    """What an engine wrote after it was to close the thinking, and was kept back because it may become a tag."""
    dialogue = begun(opened=True, engine={})
    events = told(dialogue, piece("2+2=4\n", None, 0.1), piece("more <", None, 0.1))
    assert kinds(events) == [Show, Show, Close]
    rest, following = dialogue.over()
    assert (rest, purpose(following)) == ([], "answer")


def test_nothing_changes_where_nobody_sends_what_follows():
    """A callback only follows the events of the run: what it finds after the close is the run up to the stop."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), ()), policy=policy())
    dialogue.start()
    assert told(dialogue, *SURE)[-1] == Close()
    made = dialogue.result()
    assert (made.answer, made.tokens, made.prefill_tokens, made.outcome.stopped) == (None, 2, 0, True)


@pytest.mark.parametrize("answers", [("4", "4"), ("4", "5")])
def test_a_probe_is_driven_beside_the_stream(answers):
    """It is an exchange of its own. Where its answer stops the run, that is shown, and the stream closed; else nothing follows."""
    dialogue = begun(given=policy(rule="entropy+agreement", min_steps=1))
    for answer, decides in zip(answers, (False, answers[0] == answers[1]), strict=True):
        *shown, asked = told(dialogue, *SURE)
        assert kinds(shown) == [Show, Show]
        assert isinstance(asked, Try)
        first = asked.probe.start()
        assert (purpose(first), first.request.logprobs) == ("probe", False)
        for update in updates(piece(answer, ANSWER)):
            assert text(asked.probe.feed(update)) == ""
        assert asked.probe.over() == ([], Finish())
        events = dialogue.tried()
        assert (kinds(events), text(events)) == (([Show, Close], answer) if decides else ([], ""))
        if decides:
            assert events[0].closing
    if decides:
        assert dialogue.over() == ([], Finish())
    assert dialogue.result().outcome.stopped is decides


def test_a_probe_without_logprobs_is_asked_again():
    """Once, and by the same exchange; any other error ends it and is kept, for the run goes on without it."""
    dialogue = begun(given=policy(0.5, signal="trial_entropy"))
    asked = told(dialogue, *SURE)[-1]
    assert asked.probe.start().request.logprobs
    assert asked.probe.failed(NoLogprobsError("refused", "no")).request.logprobs is False
    again = NoLogprobsError("refused", "no")
    assert (asked.probe.failed(again), asked.probe.lost) == (Finish(), again)
    assert dialogue.tried() == []
    assert "could not be had (refused)" in dialogue.result().outcome.reason


def test_a_probe_that_is_recorded_raises_its_error():
    """There the probe is what was asked for: nothing goes on without it."""
    asked = Trial([Request("probe", ASKED, 10)])
    for error in (BackendError("500"), NoLogprobsError("refused", "no")):
        if isinstance(error, NoLogprobsError):
            assert asked.failed(error).request.logprobs is False
        with pytest.raises(type(error)):
            asked.failed(error)


@pytest.mark.parametrize("done", [True, False])
def test_a_server_is_told_to_end_the_thinking(done):
    """The stream goes on; where the server did not do so, the run does not count as stopped."""
    dialogue = begun(Turn(), control=True)
    events = [e for p in SURE for e in dialogue.feed(Update((p,), id="c1"))]
    assert (kinds(events), events[-1]) == ([Show, Show, Control], Control("c1"))
    dialogue.controlled(done)
    events = told(dialogue, piece("more "), *FOUR)
    assert (kinds(events), text(events)) == ([Show, Show], "4")
    assert dialogue.over() == ([], Finish())
    assert dialogue.result().outcome.stopped is done


@pytest.mark.parametrize("obeys", [True, False])
def test_an_engine_that_closes_the_thinking_by_itself(obeys):
    """Its settings go with the request, and nothing is to be done; where it goes on thinking, the stream is closed."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),), engine={"vllm_xargs": {"x": 1}}), policy=policy())
    assert dialogue.start().request.extra == {"vllm_xargs": {"x": 1}}
    assert kinds(told(dialogue, *SURE)) == [Show, Show]
    if obeys:
        events = told(dialogue, piece("</think>", None, None), piece("\n\n", ANSWER, None), *FOUR)
        assert (kinds(events), text(events)) == ([Show, Show, Show], "4")
        assert dialogue.over()[1] == Finish()
    else:
        assert kinds(told(dialogue, piece("more"))) == [Show, Close]
        assert NOT_CLOSED in dialogue.result().outcome.reason
        assert purpose(dialogue.over()[1]) == "answer"


def test_thinking_begun_again_is_closed_and_run_in_full():
    """The attempt still is the run while its last chunk is shown; the full one takes its place with its request."""
    dialogue = begun()
    told(dialogue, *SURE)
    dialogue.over()
    events = told(dialogue, piece("so "))
    assert (kinds(events), text(events), dialogue.result().outcome.stopped) == ([Show, Close], "", True)
    assert purpose(dialogue.over()[1]) == "full"
    made = dialogue.result()
    assert (made.outcome.stopped, made.outcome.reason) == (False, THINKS_AGAIN)
    assert kinds(told(dialogue, *SURE, *FOUR)) == [Show] * 3
    assert dialogue.over()[1] == Finish()


def test_refused_logprobs_are_left_out_and_remembered_once_that_was_at_fault():
    """The same request again; the next dialogue of the plan asks for none from the start."""
    plan = Plan(ThinkTags(), (Turn(),), without_logprobs="full")
    dialogue = Dialogue(ASKED, plan, policy=policy())
    assert dialogue.start().request.logprobs
    again = dialogue.failed(NoLogprobsError("refused", "not allowed"))
    assert (purpose(again), again.request.logprobs, plan.known.refused) == ("reason", False, None)
    with pytest.warns(UserWarning, match="refuses logprobs"):
        dialogue.feed(Update((piece("a", entropy=None),)))
    assert "not allowed" in plan.known.refused
    assert Dialogue(ASKED, plan, policy=policy()).start().request.logprobs is False


def test_a_cut_stream_ends_a_run_and_not_an_answer():
    """Of a run the error is raised with the steps so far; for an answer the next way is taken, and last the full run."""
    dialogue = begun()
    told(dialogue, *UNSURE)
    with pytest.raises(BackendError, match="reset") as caught:
        dialogue.failed(BackendError("reset"))
    assert caught.value.run is not None
    assert (len(caught.value.run.steps), caught.value.run.finish_reason) == (1, "error")
    dialogue = begun(Prefill(), Turn("now"))
    told(dialogue, *SURE)
    dialogue.over()
    assert dialogue.failed(BackendError("400")).request.messages[-1]["content"] == "now"
    assert purpose(dialogue.failed(BackendError("400"))) == "full"
    assert "could not be had (400)" in dialogue.result().outcome.reason


def test_an_answer_that_was_shown_in_part_is_not_asked_for_again():
    """No second one is put beside it."""
    dialogue = begun(Prefill(), Turn("now"))
    told(dialogue, *SURE)
    dialogue.over()
    told(dialogue, *FOUR)
    with pytest.raises(BackendError, match="reset"):
        dialogue.failed(BackendError("reset"))


def test_an_empty_answer_is_run_in_full():
    """That shows only when its stream has ended."""
    dialogue = begun()
    told(dialogue, *SURE)
    dialogue.over()
    assert kinds(told(dialogue, Piece(Token(" "), ANSWER, " "))) == [Show]
    assert purpose(dialogue.over()[1]) == "full"
