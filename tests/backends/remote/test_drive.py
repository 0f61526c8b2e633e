"""The two loops around an exchange: the same requests, the same chunks, the same end, and every stream closed."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import aclosing, closing
from dataclasses import replace

import pytest
from dialogues import ANSWER, ASKED, SURE, THINK, UNSURE, piece, policy, updates
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.backends.remote.continuations import Prefill, Turn
from entropy_chains.backends.remote.dialogue import Dialogue
from entropy_chains.backends.remote.drive import adrive, drive
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.readers import Update
from entropy_chains.core.families import ThinkTags
from entropy_chains.errors import BackendError, NoLogprobsError, PolicyMismatch

RULES = [
    policy(),
    policy(rule="entropy+agreement", min_steps=2),
    policy(0.5, signal="trial_entropy"),
    policy(min_steps=3),
    None,
]
LINES = [*SURE, *UNSURE, piece("blind\n", entropy=None), piece("4\n", THINK, 0.2), piece("4", ANSWER), piece(" ", ANSWER)]
LINES += [piece("<thi", ANSWER), piece("so\n</th", None, 0.1)]  # what may become a tag is kept back
ERRORS = [BackendError("reset"), NoLogprobsError("refused", "no")]
STREAMS = st.lists(
    st.lists(st.one_of(st.sampled_from(LINES), st.sampled_from(LINES), st.sampled_from(ERRORS)), max_size=8), max_size=6
)


class Server:
    """Plays one stream a request, the last one again and again; keeps what it was sent, and which streams were closed."""

    def __init__(self, streams, *, obeys=True):
        self._streams, self._obeys = streams or [[]], obeys
        self.sent, self.open = [], 0

    def _stream(self, request):
        self.sent.append(request)
        played = self._streams[min(len(self.sent), len(self._streams)) - 1]
        # A request that asks for no logprobs gets none refused.
        return [e for e in played if request.logprobs or not isinstance(e, NoLogprobsError)]

    @staticmethod
    def _played(each):
        if isinstance(each, Exception):
            raise each
        return Update((each,), id="c1", raw=each)

    def send(self, request):
        self.open += 1
        try:
            for each in self._stream(request):
                yield self._played(each)
            yield Update(finish_reason="stop")
        finally:
            self.open -= 1

    async def asend(self, request):
        self.open += 1
        try:
            for each in self._stream(request):
                await asyncio.sleep(0)
                yield self._played(each)
            yield Update(finish_reason="stop")
        finally:
            self.open -= 1

    def control(self, stream):
        self.sent.append(stream)
        return self._obeys

    async def acontrol(self, stream):
        return self.control(stream)


def outcome(dialogue, error):
    """The run without its times, or the error."""
    if error is not None:
        return type(error), str(error)
    made = dialogue.result()
    return replace(made, seconds=0.0, steps=tuple(replace(s, seconds=0.0) for s in made.steps))


def played(dialogue, server):
    shown, error = [], None
    try:
        shown += drive(dialogue, server.send, server.control)
    except (BackendError, PolicyMismatch) as raised:
        error = raised
    return server.sent, shown, outcome(dialogue, error), server.open


async def aplayed(dialogue, server):
    shown, error = [], None
    try:
        async for event in adrive(dialogue, server.asend, server.acontrol):
            shown += [event]  # also what came before an error
    except (BackendError, PolicyMismatch) as raised:
        error = raised
    return server.sent, shown, outcome(dialogue, error), server.open


@settings(max_examples=200, deadline=None)
@given(
    STREAMS,
    st.sampled_from(RULES),
    st.sampled_from(["error", "agreement", "full"]),
    st.sampled_from([None, {"vllm_xargs": {}}]),
    st.booleans(),
    st.booleans(),
)
def test_both_loops_do_the_same(streams, given_, without, engine, control, obeys):
    """Whatever the server sends: the same requests in the same order, the same events, the same run or error, nothing left open."""
    made = []
    for play in (played, lambda *what: asyncio.run(aplayed(*what))):
        plan = Plan(ThinkTags(), (Prefill(), Turn()), control=control, engine=engine, without_logprobs=without)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.append(play(Dialogue(ASKED, plan, policy=given_), Server(streams, obeys=obeys)))
    assert made[0] == made[1]
    assert made[0][-1] == 0


def test_whoever_leaves_closes_the_stream():
    """A reader that goes away in the middle: the connection is closed at once, and nothing further is sent."""
    server = Server([[*UNSURE, *UNSURE]])
    with closing(drive(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy()), server.send)) as events:
        next(events)
        assert server.open == 1
    assert (server.open, len(server.sent)) == (0, 1)


async def test_whoever_leaves_closes_the_async_stream():
    """The same for ``asyncio``."""
    server = Server([[*UNSURE, *UNSURE]])
    async with aclosing(adrive(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy()), server.asend)) as events:
        await anext(events)
        assert server.open == 1
    assert (server.open, len(server.sent)) == (0, 1)


def test_a_stream_is_closed_before_the_next_request_and_after_its_last_chunk():
    """So the server stops at the stop, and a framework has its chunk marked before its stream ends."""
    order = []

    def send(request):
        order.append(request.purpose)
        try:
            if request.purpose == "reason":
                yield from [Update((s,)) for s in (*SURE, *SURE)]
            else:
                yield from updates(piece("4", ANSWER))
        finally:
            order.append("closed")

    for shown in drive(Dialogue(ASKED, Plan(ThinkTags(), (Turn(),)), policy=policy()), send):
        order += ["last" if shown.closing else "shown"]
    assert order == ["reason", "shown", "last", "closed", "answer", "shown", "shown", "closed"]


def test_where_nobody_can_tell_the_server_the_run_is_a_full_one():
    """A plan that wants it, and a loop that was given no way."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Turn(),), control=True), policy=policy())
    for _ in drive(dialogue, Server([[*SURE, piece("4", ANSWER)]]).send):
        pass
    assert (dialogue.result().answer, dialogue.result().outcome.stopped) == ("4", False)


def test_a_probe_whose_logprobs_are_refused_is_asked_again_without():
    """The run goes on, and the probe's answer is read."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy(0.5, signal="trial_entropy"))
    server = Server([[*SURE, piece("4", ANSWER)], [NoLogprobsError("refused", "no")], [piece("4", ANSWER, entropy=0.1)]])
    shown = list(drive(dialogue, server.send))
    assert [(r.purpose, r.logprobs) for r in server.sent] == [("reason", True), ("probe", True), ("probe", False)]
    assert "".join(c.text for s in shown for c in s.chunks if c.phase is ANSWER) == "4"


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_lost_probe_costs_no_answer(asynchronously):
    """A probe that ends in an error stops nothing: the run goes on in full, and its reason says why."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy(0.5, signal="trial_entropy"))
    server = Server([[*SURE, *SURE, piece("4", ANSWER)], [BackendError("500")]])

    async def run():
        return [show async for show in adrive(dialogue, server.asend)]

    shown = asyncio.run(run()) if asynchronously else list(drive(dialogue, server.send))
    assert [r.purpose for r in server.sent] == ["reason", "probe"]
    assert "".join(c.text for s in shown for c in s.chunks if c.phase is ANSWER) == "4"
    outcome = dialogue.result().outcome
    assert (outcome.stopped, "could not be had (500): run in full" in outcome.reason) == (False, True)


def test_an_answer_under_way_is_not_closed_for_a_probe_s():
    """One update holds a step's end and the answer's beginning: no probe is sent, and the answer comes once."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy(0.5, signal="trial_entropy"))
    sent = []

    def send(request):
        sent.append(request.purpose)
        yield Update((*SURE, piece("The ", ANSWER)), id="c1")
        yield Update((piece("4", ANSWER),), id="c1")
        yield Update(finish_reason="stop")

    shown = list(drive(dialogue, send))
    assert sent == ["reason"]
    assert "".join(c.text for s in shown for c in s.chunks if c.phase is ANSWER) == "The 4"
    assert dialogue.result().answer == "The 4"


def test_blanks_of_an_answer_s_field_are_no_answer_under_way():
    """Some servers send a line end as answer before the thinking: probes are sent all the same."""
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)), policy=policy(0.5, signal="trial_entropy"))
    server = Server([[piece("\n", ANSWER), *SURE, piece("4", ANSWER)], [piece("4", ANSWER, entropy=0.1)]])
    shown = list(drive(dialogue, server.send))
    assert [r.purpose for r in server.sent] == ["reason", "probe"]
    assert "".join(c.text for s in shown for c in s.chunks if c.phase is ANSWER).strip() == "4"
    assert dialogue.result().outcome.stopped
