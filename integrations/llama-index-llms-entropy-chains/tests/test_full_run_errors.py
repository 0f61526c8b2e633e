"""The full run after a stop whose answer could not be had is the app's own request, and so are its errors."""

from __future__ import annotations

from itertools import count

import openai
import pytest
from llms import ask_all, wrapped
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, thinking


@pytest.mark.parametrize("method", ["chat", "stream_chat", "achat", "astream_chat"])
def test_an_error_of_the_full_run_is_the_inner_llms_own(method):
    """As the first request's: an app that waits and asks again at ``openai.RateLimitError`` does so here too."""
    questions = count(1)

    def script(body):
        if is_answer_call(body):
            return Reply(status=500)
        return thinking(UNSURE, SURE, SURE) if next(questions) == 1 else Reply(status=429, message="slow down")

    with Loopback(script) as server, pytest.raises(openai.RateLimitError):
        ask_all(wrapped(server, inner={"max_retries": 0}), method)
    assert next(questions) == 3
