"""TransformersLLM on the bundled model: the eight methods, engines on it, and work that ends when nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from llama_index.core import MockEmbedding, SummaryIndex, VectorStoreIndex
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ThinkingBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatStartEvent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import TransformersLLM, attach
from llama_index.llms.entropy_chains._local_messages import conversation
from llama_index.llms.entropy_chains._replacement import original_of
from llama_index.llms.entropy_chains.attachment import detach
from pydantic import BaseModel

from entropy_chains import Policy, SettingsError
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME

ASKED = "34*7=?"


@pytest.fixture(scope="module")
def backend():
    return TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)


@pytest.fixture(scope="module")
def policy(backend):
    return Policy(MODEL_NAME, thresholds=(0.2,), segmentation=backend.segmentation, template=backend.template)


@pytest.fixture
def llm(backend, policy):
    return TransformersLLM(backend=backend, policy=policy, temperature=0, max_tokens=600)


WAYS = ["chat", "stream_chat", "achat", "astream_chat", "complete", "stream_complete", "acomplete", "astream_complete"]


async def responses(llm, way, **settings):
    """All responses of one of the eight methods to the same question."""
    asked = [ChatMessage(content=ASKED)] if "chat" in way else ASKED
    if way in ("chat", "complete"):
        return [getattr(llm, way)(asked, **settings)]
    if way in ("achat", "acomplete"):
        return [await getattr(llm, way)(asked, **settings)]
    if way.startswith("a"):
        return [r async for r in await getattr(llm, way)(asked, **settings)]
    return list(getattr(llm, way)(asked, **settings))


def text(response):
    return response.message.content if hasattr(response, "message") else response.text


def test_names_of_base_classes_contains_llm():
    """LlamaIndex's own check of integrations."""
    assert BaseLLM.__name__ in [b.__name__ for b in TransformersLLM.__mro__]


@pytest.mark.parametrize("way", WAYS)
def test_every_method_stops_and_says_so(llm, way):
    """The same answer, the same table and the same counts from all eight; deltas add up to the text."""
    found = asyncio.run(responses(llm, way))
    last, plain = found[-1], llm.chat([ChatMessage(content=ASKED)])
    assert text(last) == "238"
    assert last.additional_kwargs == plain.additional_kwargs
    told = last.additional_kwargs
    assert (told["early_stop_stopped"], told["early_stop_step"], told["finish_reason"]) == (True, 1, "stop")
    assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]
    assert told["completion_tokens"] == told["early_stop_tokens"] > told["reasoning_tokens"] > 0
    if "stream" in way:
        assert "".join(r.delta or "" for r in found) == "238"


@pytest.mark.parametrize("way", ["chat", "stream_chat", "achat", "astream_chat"])
def test_the_thinking_is_a_block_of_its_own(llm, way):
    """As OpenAI's class does it: a ThinkingBlock first, its parts in ``thinking_delta``, and none of it in the content."""
    found = asyncio.run(responses(llm, way))
    thinking, answer = found[-1].message.blocks
    assert isinstance(thinking, ThinkingBlock)
    assert isinstance(answer, TextBlock)
    assert thinking.content.startswith("34*7 34*7=238;so 238.")
    assert thinking.num_tokens == found[-1].additional_kwargs["reasoning_tokens"]
    if "stream" in way:
        assert "".join(r.additional_kwargs.get("thinking_delta", "") for r in found) == thinking.content


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("switch", ["call", "field", "environment"])
def test_stopping_can_be_switched_off(llm, way, switch, monkeypatch):
    """By the call, the LLM's field, the environment: full runs, and where they would have stopped."""
    if switch == "environment":
        monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    model = llm.model_copy(update={"early_stop": False}) if switch == "field" else llm
    found = asyncio.run(responses(model, way, **({"early_stop": False} if switch == "call" else {})))
    told = found[-1].additional_kwargs
    assert (told["early_stop_active"], told["early_stop_reason"], told["early_stop_step"]) == (False, "stopping is switched off", 1)
    assert told["completion_tokens"] > 100


def test_settings_of_a_call_win(llm):
    """Sampling, stop sequences and template settings; an unknown one is an error that names those there are."""
    assert llm.complete(ASKED, max_tokens=20).additional_kwargs["completion_tokens"] == 20
    assert llm.complete(ASKED, stop=["8"]).text == "23"
    assert llm.complete("3*4=?", chat_template_kwargs={"enable_thinking": False}).additional_kwargs["completion_tokens"] < 6
    with pytest.raises(SettingsError, match=r"tools=.*early_stop"):
        llm.chat([ChatMessage(content=ASKED)], tools=[])


def test_what_cannot_work_fails_at_the_door(backend, policy):
    """Model and backend both or neither, settings of a model that is loaded already, another model's policy, pictures."""
    for given in ({}, {"model": "x", "backend": backend}):
        with pytest.raises(SettingsError, match="either model"):
            TransformersLLM(**given)
    with pytest.raises(SettingsError, match="dtype"):
        TransformersLLM(backend=backend, dtype="bfloat16")
    with pytest.raises(ValueError, match="another"):
        TransformersLLM(backend=backend, policy=replace(policy, model="another")).complete(ASKED)
    with pytest.raises(SettingsError, match="ImageBlock"):
        conversation([ChatMessage(role="user", blocks=[ImageBlock(image=b"x")])])


def test_a_model_is_loaded_by_name(policy, tmp_path):
    """A folder and a policy's file are enough; loader's settings go to the loader."""
    policy.save(tmp_path / "policy.json")
    llm = TransformersLLM(MODEL_FOLDER, policy=tmp_path / "policy.json", name=MODEL_NAME, dtype="float32", temperature=0)
    assert llm.complete(ASKED).text == "238"
    metadata = llm.metadata
    assert (metadata.model_name, metadata.context_window, metadata.is_chat_model) == (MODEL_NAME, 2048, True)
    assert metadata.is_function_calling_model is False


def test_nothing_of_the_model_is_written_down(llm):
    """The serialised form and the payload of events hold settings only."""
    for made in (llm.to_dict(), getattr(llm, "to_payload", llm.to_dict)(), repr(llm)):
        assert "Backend" not in str(made)
        assert "Policy" not in str(made)


def test_a_model_without_thinking_just_answers():
    """No tags, no policy: an ordinary LLM."""

    class Plain(ScriptedBackend):
        @property
        def tags(self):
            raise SettingsError("no thinking tags")

    llm = TransformersLLM(backend=Plain({ASKED: Script(answer="It is 238")}))
    assert llm.complete(ASKED).text == "It is 238"
    assert "".join(r.delta for r in llm.stream_complete(ASKED)) == "It is 238"


def test_earlier_thinking_goes_to_the_template():
    """The family's template decides what becomes of it."""
    message = ChatMessage(role="assistant", blocks=[ThinkingBlock(content="34*7"), TextBlock(text="238")])
    assert conversation([message]) == [{"role": "assistant", "content": "238", "reasoning_content": "34*7"}]


# --- engines, callbacks, instrumentation


def index():
    return [TextNode(text="the price of each item in the store."), TextNode(text="the total of each order.")]


@pytest.mark.parametrize("way", ["query", "aquery", "streaming"])
def test_a_query_engine_on_it(llm, way):
    """The bundled model answers inside LlamaIndex's own question prompt, and is stopped there."""
    retriever = VectorStoreIndex(index(), embed_model=MockEmbedding(8)) if way == "query" else SummaryIndex(index())
    stopped = []

    class Ends(BaseEventHandler):
        def handle(self, event, **kwargs):
            if isinstance(event, LLMChatEndEvent):
                stopped.append(event.response.additional_kwargs["early_stop_stopped"])

    handler = Ends()
    get_dispatcher().add_event_handler(handler)
    try:
        engine = retriever.as_query_engine(llm=llm, streaming=way == "streaming")
        response = asyncio.run(engine.aquery(ASKED)) if way == "aquery" else engine.query(ASKED)
        assert str(response) == "238"
    finally:
        get_dispatcher().event_handlers.remove(handler)
    assert stopped == [True]


@pytest.mark.parametrize("way", ["chat", "stream_chat", "achat"])
def test_a_chat_engine_on_it(llm, way):
    """Two turns: the second is asked with the first in its memory."""
    engine = SimpleChatEngine.from_defaults(llm=llm)

    def turn(question):
        if way == "stream_chat":
            return "".join(engine.stream_chat(question).response_gen)
        return str(asyncio.run(engine.achat(question)) if way == "achat" else engine.chat(question))

    assert [turn(ASKED), turn("12*7=?")] == ["238", "84"]


@pytest.mark.parametrize("way", WAYS)
def test_events_and_callbacks_are_those_of_any_llm(llm, way):
    """One start and one end each; LlamaIndex's token counter finds our counts."""
    counter, seen = TokenCountingHandler(), []

    class Seen(BaseEventHandler):
        def handle(self, event, **kwargs):
            seen.append(type(event).__name__)

    handler = Seen()
    get_dispatcher().add_event_handler(handler)
    try:
        model = llm.model_copy(update={"callback_manager": CallbackManager([counter])})
        told = asyncio.run(responses(model, way))[-1].additional_kwargs
    finally:
        get_dispatcher().event_handlers.remove(handler)
    kind = LLMChatStartEvent.__name__ if "chat" in way else "LLMCompletionStartEvent"
    assert seen.count(kind) == seen.count(kind.replace("Start", "End")) == 1
    assert counter.completion_llm_token_count == told["completion_tokens"]
    assert counter.prompt_llm_token_count == told["prompt_tokens"]


# --- asyncio


@pytest.mark.parametrize("way", ["achat", "astream_chat"])
def test_cancelling_the_task_ends_the_work(backend, way):
    """When the cancelled task is over, no thread of ours runs any more, and the model computed little of its 1,500 tokens."""
    steps = []
    handle = backend._model.register_forward_hook(lambda *_: steps.append(1))
    llm = TransformersLLM(backend=backend, temperature=1, max_tokens=1500)

    async def main():
        async def work():
            found = getattr(llm, way)([ChatMessage(content="3456*7891=?")])
            if way == "achat":
                return await found
            return [r async for r in await found]

        task = asyncio.create_task(work())
        while len(steps) < 5:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        made = len(steps)
        await asyncio.sleep(0.1)
        return made

    try:
        assert asyncio.run(main()) == len(steps) < 400
    finally:
        handle.remove()
    assert not [t for t in threading.enumerate() if t.name.startswith("entropy-chains")]


def test_the_loop_stays_free(llm):
    """While the model computes, other tasks of the event loop run: CustomLLM's async twins would block it."""

    async def main():
        task, turns = asyncio.create_task(llm.acomplete("3456*7891=?")), 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(main()) > 10


def test_leaving_a_stream_ends_the_work(llm):
    """A stream that is closed after its first part leaves no thread behind."""
    stream = llm.stream_complete(ASKED)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("entropy-chains")]


def test_attach_gives_an_engine_a_local_model_that_stops(backend, policy):
    """One line on an existing engine: a copy of the model stops and answers; the given one is as it was, and detach undoes it."""
    plain = TransformersLLM(backend=backend, temperature=0, max_tokens=600)
    engine = SummaryIndex([TextNode(text="the price list")]).as_query_engine(llm=plain)
    full = str(engine.query(ASKED))
    stopped = attach(engine, policy, early_stop=True)._response_synthesizer._llm
    assert str(engine.query(ASKED)) == full == "238"
    assert stopped.chat([ChatMessage(content=ASKED)]).additional_kwargs["early_stop_stopped"]
    assert plain.policy is None
    again = attach(engine, policy, early_stop=False)._response_synthesizer._llm  # replaces; the model is still the one given
    assert (again.backend, again.early_stop, original_of(again)) == (plain.backend, False, plain)
    assert detach(engine)._response_synthesizer._llm is plain


def test_attach_names_a_setting_that_a_local_model_has_not(backend, policy):
    engine = SummaryIndex([TextNode(text="x")]).as_query_engine(llm=TransformersLLM(backend=backend))
    with pytest.raises(SettingsError, match="TransformersLLM has no continuation"):
        attach(engine, policy, continuation="turn")


class Product(BaseModel):
    """What 34*7 is."""

    value: int


SURE = ("I am sure of it by now, and go on all the same. " * 4 + "\n\n", 0.01)


class Watched(ScriptedBackend):
    """A model that answers every question alike, and tells its runs."""

    def __init__(self):
        super().__init__(Script((SURE, SURE, SURE), answer='{"value": 238}'))
        self.stopped = []

    def generate(self, conversations, **settings):
        runs = super().generate(conversations, **settings)
        self.stopped += [run.outcome.stopped for run in runs]
        return runs

    def worker(self, cancelled):
        return self

    def stream(self, *given, **settings):
        for chunk in super().stream(*given, **settings):
            if chunk.final is not None:
                self.stopped.append(chunk.final.outcome.stopped)
            yield chunk


async def structured(llm, way, **settings):
    prompt = PromptTemplate("{asked}")
    given = {"llm_kwargs": settings, "asked": ASKED}
    if way == "as_structured_llm":
        return llm.as_structured_llm(Product).complete(ASKED).raw
    if way.startswith("stream"):
        return list(getattr(llm, way)(Product, prompt, **given))[-1]
    made = await getattr(llm, way)(Product, prompt, **given) if way.startswith("a") else getattr(llm, way)(Product, prompt, **given)
    return [each async for each in made][-1] if way.startswith("astream") else made


@pytest.mark.parametrize(
    "way",
    [
        "structured_predict",
        "astructured_predict",
        "stream_structured_predict",
        "astream_structured_predict",
        "as_structured_llm",
    ],
)
def test_structured_output_is_never_stopped(way):
    """Its request shows nothing of it; the same model is stopped where text is wanted."""
    backend = Watched()
    policy = Policy(backend.model, thresholds=(4.0,), segmentation=replace(backend.segmentation, min_tokens=2))
    llm = TransformersLLM(backend=backend, policy=policy)
    llm.complete(ASKED)
    assert asyncio.run(structured(llm, way, max_tokens=500)) == Product(value=238)
    assert backend.stopped == [True, False]
