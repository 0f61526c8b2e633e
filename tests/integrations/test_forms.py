"""A reply whose form is given is never cut, whoever asks: both wrappers, the callback, the event handler, the core; over HTTP."""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import replace

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopMiddleware, EarlyStopped, EntropyCallbackHandler, instrument
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM, EntropyEventHandler
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, Loopback, Reply, is_answer_call, said, thinking
from ollama_loopback import Ollama
from pydantic import BaseModel

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.backends.remote import forms
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import SettingsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
ASKED = "What is 6*7?"
SCHEMA = {"type": "object", "properties": {"value": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}

FORMS = [
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    {"text": {"format": {"type": "json_object"}}},
    {"format": "json"},
    {"format": SCHEMA},
    {"json_mode": True},
    {"structured_outputs": {"json": {}}},
    {"guided_json": SCHEMA},
    {"guided_regex": "[0-9]+"},
    {"guided_choice": ["yes", "no"]},
    {"guided_grammar": "root ::= [0-9]+"},
    {"json_schema": SCHEMA},
    {"regex": "[0-9]+"},
    {"ebnf": "root ::= [0-9]+"},
    {"structural_tag": {"structures": [{}]}},
    {"grammar": "root ::= [0-9]+"},
    {"grammar": {"type": "regex", "value": "[0-9]+"}},
    {"grammar_path": "digits.gbnf"},
    {"grammar_string": "root ::= [0-9]+"},
    {"regex_pattern": "[0-9]+"},
    {"guided_decoding": {"regex": "[0-9]+"}},
    {"response_mime_type": "application/json"},
    {"response_schema": SCHEMA},
    {"response_json_schema": SCHEMA},
    {"generation_config": {"response_schema": SCHEMA}},
    {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    {"output_config": {"text_format": {"type": "json_schema", "structure": SCHEMA}}},
    {"additional_model_request_fields": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}},
    {"nvext": {"guided_json": SCHEMA}},
    {"tool_choice": "required"},
    {"tool_choice": "any"},
    {"tool_choice": "f"},
    {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"function_call": {"name": "f"}},
    {"function_calling_config": {"mode": "ANY"}},
    {"tool_config": {"function_calling_config": {"mode": "ANY"}}},
    {"n": 2},
    {"best_of": 2},
    {"candidate_count": 2},
]
FREE = [
    {"response_format": {"type": "text"}},
    {"text": {"format": {"type": "text"}, "verbosity": "low"}},
    {"guided_json": None, "structured_outputs": {}, "grammar": "", "json_schema": None, "format": ""},
    {"tool_choice": "auto"},
    {"tool_choice": "none"},
    {"tool_choice": {"auto": {}}, "structured_outputs": {"backend": "xgrammar"}, "generationConfig": {"candidateCount": 1}},
    {"function_call": "none"},
    {"n": 1},
    {"parallel_tool_calls": False},
]
KNOWN = ("response_format", "tool_choice", "function_call", "n")
"""Those that the SDK takes by name."""


def short(body):
    """A line of sure thinking, and three more; then the answer."""
    return Reply(said("42")) if is_answer_call(body) else thinking(SURE, SURE, SURE, SURE, words=10, answer="42")


@pytest.fixture
def server():
    with Loopback(short) as server:
        yield server


@pytest.fixture(autouse=True)
def silent():
    """The wrapper's warning that a call is not stopped is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


# --- where settings stand: (of the model, bound, of the call) as LangChain takes them; the model's and the call's of LlamaIndex


def langchain_places(form):
    inside = {"extra_body": form}
    places = [(inside, {}, {}), ({}, inside, {}), ({}, {}, inside)]
    if form.keys() <= {*KNOWN}:
        own = form if "n" in form else {"model_kwargs": form}
        places += [(own, {}, {}), ({}, form, {}), ({}, {}, form)]
    return places


def llama_index_places(form):
    inside = {"extra_body": form}
    places = [({"additional_kwargs": inside}, {}), ({}, inside)]
    return places + ([({"additional_kwargs": form}, {}), ({}, form)] if form.keys() <= {*KNOWN} else [])


# --- the ways; each tells whether the run was stopped


def chat(server, settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


def langchain_invoke(server, model, bound, call):
    message = EarlyStopChatModel(chat(server, model).bind(**bound), POLICY).invoke(ASKED, **call)
    return message.response_metadata["early_stop_stopped"]


def langchain_stream(server, model, bound, call):
    chunks = list(EarlyStopChatModel(chat(server, model), POLICY).bind(**bound).stream(ASKED, **call))
    return sum(chunks[1:], chunks[0]).response_metadata["early_stop_stopped"]


def langchain_callback(server, model, bound, call):
    asked = chat(server, {"logprobs": True, "top_logprobs": 20, **model}).bind(**bound)
    try:
        asked.invoke([HumanMessage(ASKED)], {"callbacks": [EntropyCallbackHandler(POLICY, stop=True)]}, **call)
    except EarlyStopped:
        return True
    return False


def like(server, settings):
    return OpenAILike(model="scripted", api_base=server.url, api_key="none", is_chat_model=True, max_retries=0, **settings)


MESSAGES = [ChatMessage(role="user", content=ASKED)]


def llama_index_chat(server, model, call):
    return EarlyStopLLM(like(server, model), POLICY).chat(MESSAGES, **call).additional_kwargs["early_stop_stopped"]


def llama_index_stream(server, model, call):
    *_, last = EarlyStopLLM(like(server, model), POLICY).stream_chat(MESSAGES, **call)
    return last.additional_kwargs["early_stop_stopped"]


def llama_index_handler(server, model, call):
    handlers = get_dispatcher().event_handlers
    before = list(handlers)
    handler, llm = EntropyEventHandler(POLICY, stop=True), like(server, {"logprobs": True, "top_logprobs": 20, **model})
    handlers.append(handler)
    try:
        handler.prepare(llm)
        list(llm.stream_chat(MESSAGES, **call))
    finally:
        handlers[:] = before
    (row,) = handler.summary().rows
    return row.outcome.stopped


LANGCHAIN = (langchain_invoke, langchain_stream, langchain_callback)
LLAMA_INDEX = (llama_index_chat, llama_index_stream, llama_index_handler)


def core(server, settings):
    """The core's own run, which tells the reason as well."""
    backend = OpenAIBackend(openai.OpenAI(base_url=server.url, api_key="none", max_retries=0), "scripted", request=settings)
    (run,) = backend.generate([[{"role": "user", "content": ASKED}]], policy=POLICY)
    return run.outcome


def runs(server, form):
    """Every way with a form in every place: what it is, and whether the run was stopped."""
    for way, places in [(w, langchain_places(form)) for w in LANGCHAIN] + [(w, llama_index_places(form)) for w in LLAMA_INDEX]:
        for place in places:
            yield f"{way.__name__}{place}", way(server, *place)
    for settings in ({"extra_body": form}, form) if form.keys() != {"n"} else ():  # the core reads one reply
        yield f"core {settings}", core(server, settings).stopped


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_reply_whose_form_is_given_is_never_cut(server, form):
    """Whatever the setting is called, wherever it stands: no run is stopped, and each is one request, read to its end."""
    assert [what for what, stopped in runs(server, form) if stopped] == []
    places = len(langchain_places(form)) + len(llama_index_places(form))
    assert len(server.calls) == 3 * places + (0 if form.keys() == {"n"} else 2)
    assert all(call.made == call.planned for call in server.calls)


@pytest.mark.parametrize("free", FREE, ids=str)
def test_a_setting_that_is_switched_off_is_no_form(server, free):
    """Such runs are stopped as any other."""
    assert [what for what, stopped in runs(server, free) if not stopped] == []


@pytest.mark.parametrize("settings", [{"n": 2}, {"extra_body": {"n": 2}}], ids=str)
def test_the_core_refuses_several_replies(server, settings):
    """It follows one stream; more of them are an error that names the remedy."""
    with pytest.raises(SettingsError, match=r"set n to 1|request sets n, which"):
        core(server, settings)


def test_every_setting_of_the_list_is_walked():
    """A name that is added to the list is added here."""
    given = [(name, value) for form in FORMS for name, value in form.items()]
    walked = {name for name, _ in given} | {f"{name}.{n}" for name, value in given if isinstance(value, dict) for n in value}
    assert {*forms.FORMATS, *forms.CHOICES, *forms.COUNTS, *forms.CONTAINERS} - {"extra_body"} <= walked


def test_the_core_says_why(server):
    """The run is in full, and not active: as of both wrappers, so that nobody wonders why nothing is saved."""
    outcome = core(server, {"response_format": {"type": "json_object"}})
    assert (outcome.active, outcome.stopped, outcome.step) == (False, False, 1)
    assert outcome.reason == "the form of the reply is given (response_format): structured output is never cut"


def test_a_form_needs_no_logprobs(server):
    """What cannot be stopped does not fail where there is nothing to stop by."""
    server.script = lambda body: replace(short(body), tokens=[replace(t, entropy=None) for t in short(body).tokens])
    assert not core(server, {"response_format": {"type": "json_object"}}).stopped


# --- a form in a field of the model's class, which LangChain tells no handler


@pytest.fixture
def ollama():
    with Ollama(short) as server:
        yield server


def fields(server, **settings):
    return ChatOllama(model="scripted", base_url=server.url, logprobs=True, top_logprobs=20, **settings)


def set_later(server, **settings):
    """What LangChain tells handlers of a model is made with its first call, and kept."""
    model = fields(server)
    model.invoke(ASKED)
    for name, value in settings.items():
        setattr(model, name, value)
    return model


def copied(server, **settings):
    model = fields(server)
    model.invoke(ASKED)
    return model.model_copy(update=settings)


def handled(model, **call):
    """Whether the handler stops it."""
    try:
        model.invoke(ASKED, {"callbacks": [EntropyCallbackHandler(POLICY, stop=True)]}, **call)
    except EarlyStopped:
        return True
    return False


def handled_async(model):
    try:
        asyncio.run(model.ainvoke(ASKED, {"callbacks": [EntropyCallbackHandler(POLICY, stop=True)]}))
    except EarlyStopped:
        return True
    return False


def wrapped(model):
    return model.invoke(ASKED).response_metadata["early_stop_stopped"]


FIELD_WAYS = {
    "callback": handled,
    "callback, asyncio": handled_async,
    "callback, in a chain": lambda model: handled(RunnableLambda(lambda asked: asked) | model),
    "callback, of the model": lambda model: handled(model.model_copy(update={"callbacks": [EntropyCallbackHandler(POLICY)]})),
    "callback, bound": lambda model: handled(model.bind(stop=["x"])),
    "callback and wrapper": lambda model: handled(EarlyStopChatModel(model, POLICY)),
    "wrapper": lambda model: wrapped(EarlyStopChatModel(model, POLICY)),
    "in place": lambda model: wrapped(instrument(model, POLICY)),
    "callback, in place": lambda model: handled(instrument(model, POLICY)),
}


@pytest.mark.parametrize("way", FIELD_WAYS)
@pytest.mark.parametrize("made", [fields, set_later, copied])
@pytest.mark.parametrize("form", ["json", SCHEMA], ids=str)
def test_a_form_in_a_field_of_the_model_is_never_cut(ollama, way, made, form):
    """However the model came to it, and whoever asks: the reply is whole."""
    assert not FIELD_WAYS[way](made(ollama, format=form))
    assert (ollama.bodies[-1]["format"], ollama.made[-1]) == (form, 41)


@pytest.mark.parametrize("way", FIELD_WAYS)
def test_a_model_without_such_a_form_is_stopped(ollama, way):
    """By all who can, whatever else its class may hold."""
    assert FIELD_WAYS[way](fields(ollama))


def test_a_call_wins_over_the_fields(ollama):
    """It may ask for free text."""
    assert handled(fields(ollama, format="json"), format="")


# --- structured output that no setting shows


class Product(BaseModel):
    """What 6*7 is."""

    value: int


class Unforced(ChatOpenAI):
    """A model whose tools cannot be forced, as those of ``ChatOllama``."""

    def bind_tools(self, tools, *, tool_choice=None, **settings):
        return super().bind_tools(tools, **settings)


def unforced(server, **settings):
    server.script = lambda body: replace(short(body), tools=[("Product", {"value": 42})])
    return Unforced(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


STRUCTURED = {
    "wrapper": lambda server: (EarlyStopChatModel(unforced(server), POLICY), {}),
    "in place": lambda server: (instrument(unforced(server), POLICY), {}),
    "callback": lambda server: (
        unforced(server, logprobs=True, top_logprobs=20),
        {"callbacks": [EntropyCallbackHandler(POLICY, stop=True)]},
    ),
}


@pytest.mark.parametrize("way", STRUCTURED)
def test_structured_output_of_a_model_whose_tools_cannot_be_forced(server, way):
    """LangChain says that it was asked for, where the request does not: in one piece, and parsed; streamed as well."""
    model, config = STRUCTURED[way](server)
    chain = model.with_structured_output(Product, method="function_calling")
    assert chain.invoke(ASKED, config) == Product(value=42)
    assert list(chain.stream(ASKED, config))[-1] == Product(value=42)
    assert all(call.made == call.planned and not call.body.get("tool_choice") for call in server.calls)
    assert len(server.calls) == 2


def test_a_structured_response_of_an_agent_whose_model_cannot_be_forced(server):
    """The middleware knows the response format: no call is cut."""
    agent = create_agent(unforced(server), [], middleware=[EarlyStopMiddleware(POLICY)], response_format=ToolStrategy(Product))
    assert agent.invoke({"messages": [HumanMessage(ASKED)]})["structured_response"] == Product(value=42)
    assert [call.made == call.planned for call in server.calls] == [True]
