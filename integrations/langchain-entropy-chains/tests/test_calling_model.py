"""A callback looks for the model that calls it, where the form of the reply is given by a field that LangChain does not tell."""

from __future__ import annotations

from typing import Any

import pytest
from chats import ASKED, POLICY, chat
from langchain_core.language_models import BaseChatModel
from langchain_entropy_chains import EarlyStopped, EntropyCallbackHandler
from langchain_openai import ChatOpenAI
from loopback import Loopback

from scripts import paced


class Around(BaseChatModel):
    """A user's model that has a field ``inner`` of its own, and one that gives the reply's form."""

    inner: Any
    base_url: str
    guided_regex: str | None = None
    streaming: bool = True

    @property
    def _llm_type(self) -> str:
        return "around"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        model = ChatOpenAI(model="scripted", base_url=self.base_url, api_key="none", logprobs=True, top_logprobs=20)
        yield from model._stream(messages, stop, None, **kwargs)


@pytest.mark.parametrize("inner", ["a text", None, 3, {"model": "x"}])
def test_a_field_of_the_users_that_is_called_inner_is_no_model(inner):
    """The run is stopped as any other; where the model's own field gives the form, it is left whole."""
    with Loopback(paced) as server:
        handler = EntropyCallbackHandler(POLICY.for_model("around"), stop=True)
        with pytest.raises(EarlyStopped):
            Around(inner=inner, base_url=server.url).invoke(ASKED, {"callbacks": [handler]})
        whole = Around(inner=inner, base_url=server.url, guided_regex="[0-9]+").invoke(ASKED, {"callbacks": [handler]})
    assert whole.content == "The answer is 42"
    assert "guided_regex" in whole.response_metadata["early_stop_reason"]


def test_two_models_with_one_handler_are_judged_by_their_own_fields():
    """The one whose field gives the form of the reply is left whole."""
    with Loopback(paced) as server:
        handler = EntropyCallbackHandler(POLICY, stop=True)
        model = chat(server, logprobs=True, top_logprobs=20, extra_body={"guided_regex": "[0-9]+"})
        assert model.invoke(ASKED, {"callbacks": [handler]}).content == "The answer is 42"
        with pytest.raises(EarlyStopped):
            chat(server, logprobs=True, top_logprobs=20).invoke(ASKED, {"callbacks": [handler]})
