"""Stop strings of many hundred characters: the server holds as much text back, and the run is stopped as without them."""

from __future__ import annotations

import pytest
from frameworks import WAYS, Asker
from hostile import Hostile, begin, end, event, events
from loopback import SURE, UNSURE, Reply, is_answer_call, line, said
from wire import HEAD, entry, top

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

STOP = "a stop string that is longer than any other\n" * 20
POLICY = Policy("scripted", (0.5,), segmentation=Segmentation("line", 8))
TOKENS = [*line(" ".join(["so"] * 40), UNSURE), *line(" ".join(["then"] * 400), SURE), *line(" ".join(["end"] * 40), SURE)]


def script(request):
    """As vLLM: logprobs with every token, the text later by the length of the longest stop string."""
    if is_answer_call(request.body):
        return [*begin(), *events(Reply(said("The answer is 42")), request.body), *end(4)]
    behind = len((request.body.get("stop") or [" "])[0]) - 1
    text, sent, made, chunks = "".join(t.text for t in TOKENS), 0, 0, []
    for token in [*TOKENS, None]:
        made += len(token.text) if token else 0
        upto = max(sent, made - behind) if token else len(text)
        delta = {"reasoning": text[sent:upto]} if upto > sent else {}
        logprobs = {"content": [entry(token, top(request.body))]} if token and request.body.get("logprobs") else None
        chunks.append(event({**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": logprobs}]}))
        sent = upto
    return [*begin(), *chunks, *events(Reply(said("The answer is 42")), request.body), *end(len(TOKENS))]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_stopped_as_without_stop_strings(way):
    """880 characters, more than entries wait for their text where no stop string is as long: same step, entropy and answer."""
    seen = []
    with Hostile(script) as server:
        for stop in (None, [STOP]):
            got = Asker(way, server.url, POLICY, {"stop": stop} if stop else None).ask()
            seen.append((got.stopped, got.told["early_stop_step"], round(got.told["early_stop_entropy"], 9), got.answer))
    assert seen == [(True, 2, seen[0][2], "The answer is 42")] * 2


def test_it_is_no_lack_of_logprobs():
    """A policy that never stops, without leave to go on without logprobs: the run ends by itself, with every step measured."""
    with Hostile(script) as server:
        never = Policy("scripted", (0.0,), segmentation=Segmentation("line", 8))
        got = Asker("core", server.url, never, {"stop": [STOP]}, without_logprobs="error").ask()
    assert (got.stopped, got.told["early_stop_active"], got.answer) == (False, True, "The answer is 42")
