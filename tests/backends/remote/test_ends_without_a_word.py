"""A stream that ends in order without a finish reason: the server said no word, so none is handed on as its own."""

from __future__ import annotations

import warnings

import openai
import pytest
from hostile import Hostile, begin, event, events
from loopback import SURE, UNSURE, is_answer_call, thinking

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.core.steps import Segmentation
from entropy_chains.recording import record

MADE = thinking(UNSURE, SURE, words=10, answer="The answer is 42")
PROBED = thinking(answer="42")


def script(request):
    made = PROBED if is_answer_call(request.body) else MADE
    return [*begin(), *events(made, request.body), event(b"[DONE]")]


@pytest.mark.parametrize(("limit", "finish", "answer"), [(4096, "stop", "The answer is 42"), (len(MADE.tokens), "length", None)])
def test_no_word_is_invented(limit, finish, answer):
    """``finish`` says what it means, ``finish_raw`` is None, in the run and in its trace; ``finish_told`` has what cut it off."""
    sampling = Sampling(max_tokens=limit)
    with Hostile(script) as server, openai.OpenAI(base_url=server.url, api_key="none") as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = OpenAIBackend(client, "scripted", segmentation=Segmentation("line", 8))
        (run,) = backend.generate([[{"role": "user", "content": "6*7?"}]], sampling=sampling)
        (trace,) = record(backend, [{"id": "q", "question": "6*7?"}], sampling=sampling)
    assert (run.finish_reason, run.finish_raw, run.finish_told) == (finish, None, None if finish == "stop" else finish)
    assert (trace.finish, trace.finish_raw, trace.steps[-1].answer) == (finish, None, answer)
    assert "finish_raw" not in trace.to_dict()
