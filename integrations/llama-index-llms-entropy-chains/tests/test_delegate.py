"""What EarlyStopLLM has of the LLM inside it: every inherited field, its settings, its serialised form."""

from __future__ import annotations

import asyncio
import json

import pytest
from llama_index.core.llms import LLM, ChatMessage, MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.entropy_chains._delegate import MIRRORED
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking
from pydantic import BaseModel

from entropy_chains import Segmentation, ThinkTags
from entropy_chains.core.policy import Policy
from entropy_chains.errors import SettingsError

limits = pytest.importorskip("llama_index.core.rate_limiter")  # older cores have none

ASKED = [ChatMessage(role="user", content="What is 6*7?")]
LINES = Segmentation("line", 32)
POLICY = Policy("scripted", (0.2,), segmentation=LINES)
PROBING = Policy("scripted", (0.1,), signal="trial_entropy", segmentation=LINES)
KEY = "sk-hidden-in-tests"


def inside(server, **settings):
    given = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8000, "max_retries": 0} | settings
    return OpenAILike(model="scripted", api_base=server.url, api_key=KEY, **given)


class Counting(limits.TokenBucketRateLimiter):
    """Counts instead of waiting."""

    def acquire(self, *args, **kwargs):
        self._acquired = getattr(self, "_acquired", 0) + 1

    async def async_acquire(self, *args, **kwargs):
        self.acquire()


def limiter():
    return Counting(requests_per_minute=60)


def set_later(llm, **settings):
    made = EarlyStopLLM(llm, POLICY)
    made.rate_limiter = settings["rate_limiter"]
    return made


LIMITED = {
    "on the inner LLM": lambda server, one: EarlyStopLLM(inside(server, rate_limiter=one), POLICY),
    "given to the wrapper": lambda server, one: EarlyStopLLM(inside(server), POLICY, rate_limiter=one),
    "set on the wrapper": lambda server, one: set_later(inside(server), rate_limiter=one),
    "on both": lambda server, one: EarlyStopLLM(inside(server, rate_limiter=limiter()), POLICY, rate_limiter=one),
}


@pytest.mark.parametrize("how", ["chat", "achat", "stream_chat"])
@pytest.mark.parametrize("where", LIMITED)
def test_a_rate_limiter_is_asked_before_each_request(server, where, how):
    """Wherever it was set; the wrapper's own goes before the inner LLM's, which is not changed."""
    one = limiter()
    llm = LIMITED[where](server, one)
    before = llm.llm.rate_limiter
    if how == "achat":
        asyncio.run(llm.achat(ASKED))
    else:
        list(llm.stream_chat(ASKED)) if how == "stream_chat" else llm.chat(ASKED)
    assert one._acquired == len(server.calls) == 2
    assert llm.llm.rate_limiter is before


def test_a_rate_limiter_is_asked_before_probes_too():
    """Each is a request of its own."""

    def script(body):
        if is_answer_call(body):
            return Reply(said("The answer is 42", SURE if "step2" in str(body["messages"]) else UNSURE))
        return thinking(*[UNSURE] * 4, answer="The answer is 42", pace=0.0005)

    with Loopback(script) as server:
        EarlyStopLLM(inside(server), PROBING, rate_limiter=(one := limiter())).chat(ASKED)
    assert one._acquired == len(server.calls) > 2


class Sum(BaseModel):
    """A sum's result."""

    result: int


def test_structured_output_has_the_wrappers_own_settings():
    """Its system prompt, way and limiter, though the inner LLM makes the call; without any the inner LLM makes it itself."""
    with Loopback(lambda body: Reply(tools=[("Sum", {"result": 42})])) as server:
        given = {"system_prompt": "Be brief.", "rate_limiter": (one := limiter())}
        llm = EarlyStopLLM(inside(server), POLICY, pydantic_program_mode=PydanticProgramMode.FUNCTION, **given)
        assert llm.structured_predict(Sum, PromptTemplate("What is 6*7?")).result == 42
        assert "Be brief." in str(server.calls[0].body["messages"])
        assert one._acquired == 1
        plain = EarlyStopLLM(inside(server), POLICY)
        assert plain.structured_predict(Sum, PromptTemplate("What is 6*7?")).result == 42
        assert plain._inner_with_shared is plain.llm


def test_every_field_that_llms_have_is_passed_on(server):
    """The inner LLM's by default; a field that LlamaIndex adds is passed on as well."""
    assert set(MIRRORED) == set(LLM.model_fields)
    inner = inside(server, system_prompt="Be brief.", rate_limiter=limiter())
    llm = EarlyStopLLM(inner, POLICY)
    assert all(getattr(llm, name) is getattr(inner, name) for name in MIRRORED)


def test_settings_of_the_inner_llm_are_read_and_set_through_it(server):
    """``model``, ``temperature`` and all others; what neither has is an error."""
    llm = EarlyStopLLM(inside(server, temperature=0.3), POLICY)
    assert (llm.model, llm.temperature, llm.max_tokens) == ("scripted", 0.3, None)
    llm.temperature, llm.max_tokens = 0.7, 300
    llm.chat(ASKED)
    assert (llm.llm.temperature, server.calls[0].body["temperature"], server.calls[0].body["max_tokens"]) == (0.7, 0.7, 300)
    assert not hasattr(llm, "modle")
    with pytest.raises(ValueError, match="modle"):
        llm.modle = "x"


GIVEN = {
    "holdout": 0.25,
    "think_tags": ThinkTags("<a>", "</a>"),
    "segmentation": LINES,
    "system_prompt": "Be brief.",
    "continuation": ["turn"],
}


def test_it_comes_back_from_its_dict(server):
    """Whole, and it stops; the key is not in it, and is given again."""
    llm = EarlyStopLLM(inside(server, temperature=0.3), POLICY, **GIVEN | {"think_tags": None, "segmentation": None, "holdout": 0})
    again = EarlyStopLLM.from_dict(llm.to_dict(), api_key=KEY)
    assert type(again.llm) is OpenAILike
    assert (again.to_dict(), again.llm.to_dict(), again.policy) == (llm.to_dict(), llm.llm.to_dict(), POLICY)
    assert again.chat(ASKED).additional_kwargs["early_stop_stopped"] is True
    assert server.calls[0].headers["Authorization"] == f"Bearer {KEY}"


def test_it_comes_back_from_its_json_with_the_settings_given(server):
    """Settings of its own may be given anew, and so may the LLM inside; plain data become what they were."""
    llm = EarlyStopLLM(inside(server), POLICY, **GIVEN)
    again = EarlyStopLLM.from_json(llm.to_json(), max_steps=2)
    assert {name: getattr(again, name) for name in GIVEN} == GIVEN
    assert again.max_steps == 2
    inner = inside(server)
    assert EarlyStopLLM.from_dict(llm.to_dict(), llm=inner).llm is inner


def test_no_secret_is_written(server):
    """Not a key, a header, or a password in the address, however deep."""
    inner = inside(server, default_headers={"X-Key": KEY + "-header"}, additional_kwargs={"extra_headers": {"X": KEY + "-deep"}})
    inner.api_base = "https://user:pass-of-tests@host.example/v1"
    told = json.dumps(EarlyStopLLM(inner, POLICY).to_dict())
    assert KEY not in told
    assert "pass-of-tests" not in told
    assert "host.example/v1" in told


def test_an_unknown_class_is_an_error_with_the_remedy(server):
    """Nothing is imported because a file says so."""
    data = EarlyStopLLM(inside(server), POLICY).to_dict()
    data["llm"]["class_name"] = "NobodysLLM"
    with pytest.raises(SettingsError, match=r"NobodysLLM.*llm="):
        EarlyStopLLM.from_dict(data)
    assert EarlyStopLLM.from_dict(data, llm=MockLLM(), policy=None).llm.class_name() == "MockLLM"
