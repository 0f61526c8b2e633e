"""A begun turn that the server sends back before it goes on from it, through LlamaIndex's LLMs.

The servers are scripted (fakes): llama.cpp does so by default, vLLM where ``echo`` is set.
"""

from __future__ import annotations

import pytest
from llms import ANSWER, ask_all, text_of, wrapped
from loopback import Loopback

from scripts import ECHOES, echoing


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("form", ECHOES)
def test_the_run_is_stopped_and_the_answer_is_the_servers(form):
    """Chatted, and streamed with asyncio: two requests each, nothing is thrown away, and nothing is warned of."""
    for method in ("chat", "astream_chat"):
        with Loopback(echoing(form)) as server:
            responses = ask_all(wrapped(server), method)
        last = responses[-1]
        assert text_of(last) == ANSWER
        assert (last.additional_kwargs["early_stop_stopped"], last.additional_kwargs["completion_tokens"]) == (True, 124)
        assert len(server.calls) == 2
