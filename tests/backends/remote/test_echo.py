"""A begun turn that the server sends back before it goes on from it: no part of the answer, and no new thinking.

The servers are scripted (fakes): llama.cpp does so by default, vLLM where ``echo`` is set.
"""

from __future__ import annotations

import openai
import pytest
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.backends.remote.echo import BegunTurn, Echo, without_echo
from entropy_chains.core.phases import Phase
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from scripts import ECHOES, echoing, rethinking, trials

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [[{"role": "user", "content": "What is 6*7?"}]]
TURN = BegunTurn("six times\nseven ", "</think>", "<think>\n")


def run(script, policy=POLICY):
    with Loopback(script) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        (made,) = OpenAIBackend(client, "scripted").generate(ASKED, policy=policy)
        return made, server


def content(*texts):
    return [(None, text) for text in texts]


def own(*chunks):
    """The texts that are left of those of these chunks."""
    echo = Echo(TURN)
    return [text for parts in [*map(echo.take, chunks), echo.rest()] for _, text in parts]


def test_a_closing_tag_alone_is_no_echo():
    """Of a turn without thinking nothing but tags could come back; a model that writes one before its answer wrote it itself."""
    bare = BegunTurn("\n", "</think>", "<think>")
    assert without_echo("</think>42", bare) == "</think>42"
    assert without_echo("<think>\n</think>\n\n42", bare) == "42"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ECHOES)
def test_the_run_is_stopped_and_only_the_answer_is_counted(form):
    """However the server sends the turn back: two requests, the answer alone, and nothing is warned of."""
    made, server = run(echoing(form, lambda body: said_after(body, words=400)))
    assert (made.answer, made.outcome.stopped, len(server.calls)) == ("The answer is 42", True, 2)
    assert made.outcome.tokens == 3 * 400 + 4


def said_after(body, words):
    return Reply(said("The answer is 42")) if is_answer_call(body) else thinking(UNSURE, UNSURE, SURE, SURE, SURE, words=words)


@pytest.mark.parametrize("form", ["content", "the field of the reasoning"])
def test_thinking_after_the_echo_is_new_thinking(form):
    """The turn once, and more of it: the model thinks again, and the run is had in full."""
    made, server = run(echoing(form, rethinking(lambda body: said_after(body, words=40))))
    assert (made.outcome.stopped, len(server.calls)) == (False, 3)
    assert "think again" in made.outcome.reason


def test_a_probes_answer_is_without_it():
    """A rule that reads trial answers reads the answer alone."""

    def script(body):
        return trials({**body, "prompt": body["messages"][-1]["content"]} if body.get("continue_final_message") else body)

    policy = Policy("scripted", (0.1,), signal="trial_entropy", segmentation=Segmentation("line", 32))
    made, _ = run(echoing("content", script), policy)
    assert (made.answer, made.outcome.stopped, made.outcome.step) == ("The answer is 42", True, 3)


def test_an_answer_that_begins_like_the_turn_is_kept():
    """Whole, whether it goes on otherwise, ends there, or says all of the thinking without its end."""
    for answer in (["six"], ["six times", " nine"], ["six times ", "seven"], ["six times seven"], ["<think>", " is a tag"]):
        assert own(*[content(text) for text in answer]) == answer


def test_the_rest_of_a_chunk_is_the_answer():
    """The echo's last chunk may hold the answer's beginning, and blanks may come otherwise than they were sent."""
    assert own(content("<think>six times seven</think>\n\nIt is", " 42")) == ["It is", " 42"]
    assert own(content("<think>", "\nsix times", "\nseven\n</th"), content("ink>\n", "42")) == ["42"]


def test_a_field_of_the_reasoning_may_hold_it():
    """Whole, it is left out; a part of it, or more than it, is thinking of the reply."""
    answer = [(Phase.ANSWER, "42")]
    assert own([(Phase.THINKING, "six times\nseven")], answer) == ["42"]
    assert own([(Phase.THINKING, "six times\n")], answer) == ["six times\n", "42"]
    assert own([(Phase.THINKING, "six times\n"), (Phase.THINKING, "seven and"), *answer]) == ["six times\n", "seven and", "42"]


def test_a_whole_replys_text_is_without_it():
    """As a reply that does not stream has it."""
    assert without_echo("<think>\nsix times\nseven </think>\n\n42 </think>", TURN) == "42 </think>"
    assert without_echo("six times seven", TURN) == "six times seven"
    assert without_echo(" 42", None) == " 42"
