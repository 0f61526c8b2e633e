"""Families on real tokenizers: however a tag is cut into tokens, reasoning and answer are what they are, in every way to ask.

The models are tiny, random and steered: they write a script in each family's form. Tokenizers: ``scripts/install_tokenizers.py``.
"""

from __future__ import annotations

import functools

import install_tokenizers
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from langchain_core.messages import HumanMessage
from langchain_entropy_chains import ChatTransformers
from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.entropy_chains import TransformersLLM
from steered import Script, real_tokenizer, tiny
from tool_forms import FORMS

from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.families import FAMILIES, ThinkTags
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Phase, Segmentation

pytestmark = pytest.mark.servers

TOKENIZERS = sorted(install_tokenizers.SOURCES)
FIRST = "We compute 34*7 = 238, and check each digit of it once more.\n\n"
SECOND = "Again: 30*7 = 210 and 4*7 = 28, in all 238.\n\n"
ANSWER = "The answer is **238**, and \N{GRINNING FACE} <think> </think> [x] is text."
SHORT = "It is **238**."
GREEDY = Sampling(temperature=0, max_tokens=160)
STEPS = Segmentation("blank_line", 8)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}{{ 'A:\n' }}{% endif %}"
DEEP, QUICK = "34*7=? deep", "34*7=? quick"


@functools.cache
def loaded(name: str):
    """A tokenizer and a model that writes a script with it; made once."""
    tokenizer = real_tokenizer(name, TEMPLATE)
    model = tiny(tokenizer)
    return tokenizer, model, Script(model, tokenizer)


def set_up(name, tags):
    """The backend for a family on a tokenizer, its policy, and what its model says in full."""
    tokenizer, model, script = loaded(name)
    end = tokenizer.eos_token
    whole = f"{tags.open}\n{FIRST}{SECOND}{tags.close}{tags.after}{ANSWER}{tags.end}{end}"
    script.set({DEEP: whole, QUICK: SHORT + end}, tags.close + tags.after, f"{SHORT}{tags.end}{end}")
    backend = TransformersBackend(model, tokenizer, name="tiny", think_tags=tags)
    return backend, Policy("tiny", thresholds=(9.0,), segmentation=STEPS, template=backend.template)


def asked(text):
    return [{"role": "user", "content": text}]


def shown(chunks):
    """The run of a stream, and the reasoning and the answer that it showed."""
    texts = dict.fromkeys(Phase, "")
    for chunk in chunks:
        if chunk.final is not None:
            return chunk.final, texts[Phase.THINKING], texts[Phase.ANSWER]
        texts[chunk.phase] += chunk.text
    raise AssertionError("no run came")


@pytest.mark.parametrize("tags", FAMILIES, ids=lambda t: t.open)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_backend(name, tags):
    """In a batch, in a stream and stopped: the thinking alone, the answer letter for letter, and each row its own."""
    backend, policy = set_up(name, tags)
    full, plain = backend.generate([asked(DEEP), asked(QUICK)], sampling=GREEDY, segmentation=STEPS)
    assert (full.reasoning.strip(), full.answer, full.finish_reason) == ((FIRST + SECOND).strip(), ANSWER, "stop")
    assert (plain.reasoning, plain.answer, plain.reasoning_tokens) == ("", SHORT, 0)
    run, reasoning, answer = shown(backend.stream(asked(DEEP), sampling=GREEDY, segmentation=STEPS))
    assert (run.reasoning, run.answer, run.token_ids) == (full.reasoning, full.answer, full.token_ids)
    assert (reasoning.strip("\n"), answer.strip()) == (run.reasoning, run.answer)

    stopped, untouched = backend.generate([asked(DEEP), asked(QUICK)], policy=policy, sampling=GREEDY)
    assert (stopped.outcome.stopped, stopped.outcome.step) == (True, 1)
    assert (stopped.reasoning.strip(), stopped.answer) == (FIRST.strip(), SHORT)
    assert (untouched.answer, untouched.outcome.stopped) == (SHORT, False)
    run, reasoning, answer = shown(backend.stream(asked(DEEP), policy=policy, sampling=GREEDY))
    assert (run.reasoning, run.answer, run.token_ids) == (stopped.reasoning, stopped.answer, stopped.token_ids)
    assert (reasoning.strip("\n"), answer.strip()) == (run.reasoning, run.answer)


PAIRS = [(TOKENIZERS[n % len(TOKENIZERS)], tags) for n, tags in enumerate(FAMILIES)]
"""Each family with one tokenizer, in turn."""


def in_full_and_stopped(test):
    """For each of those pairs."""
    each = pytest.mark.parametrize(("name", "tags"), PAIRS, ids=[f"{name} {tags.open}" for name, tags in PAIRS])
    return each(pytest.mark.parametrize("stop", [False, True], ids=["in full", "stopped"])(test))


def expected(stop):
    """Thinking and answer."""
    return (FIRST.strip(), SHORT) if stop else ((FIRST + SECOND).strip(), ANSWER)


@in_full_and_stopped
def test_langchain(name, tags, stop):
    """``invoke``, ``batch`` and ``stream`` say the same."""
    backend, policy = set_up(name, tags)
    chat = ChatTransformers(backend=backend, policy=policy, early_stop=stop, temperature=0, max_tokens=160)
    thought, answer = expected(stop)
    streamed = functools.reduce(lambda a, b: a + b, chat.stream(DEEP))
    for message in (chat.invoke(DEEP), chat.batch([DEEP, QUICK])[0], streamed):
        assert (message.content, message.additional_kwargs["reasoning_content"]) == (answer, thought)
        assert message.response_metadata["early_stop_stopped"] is stop
    again = chat.invoke([HumanMessage(QUICK), streamed, HumanMessage(DEEP)])  # what was said goes into the next turn
    assert again.content == answer


@in_full_and_stopped
def test_llama_index(name, tags, stop):
    """``chat``, ``complete`` and their streams say the same."""
    backend, policy = set_up(name, tags)
    llm = TransformersLLM(backend=backend, policy=policy, early_stop=stop, temperature=0, max_tokens=160)
    thought, answer = expected(stop)
    message = ChatMessage(role="user", content=DEEP)
    *_, last = llm.stream_chat([message])
    for response in (llm.chat([message]), last):
        thinking, text = response.message.blocks
        assert (thinking.content, text.text) == (thought, answer)
    *parts, end = llm.stream_complete(DEEP)
    assert llm.complete(DEEP).text == end.text == answer
    assert "".join(part.delta or "" for part in [*parts, end]) == answer


CALLS = [("deepseek_v3" if "DeepSeek" in form else TOKENIZERS[n % len(TOKENIZERS)], form) for n, form in enumerate(FORMS)]
"""Each form with one tokenizer; DeepSeek's markers hold a sign that others read as a space."""


def add(a: int, b: str) -> str:
    """Adds."""
    return f"{a}{b}"


@pytest.mark.parametrize(("name", "form"), CALLS, ids=[f"{name} {form}" for name, form in CALLS])
def test_tool_calls(name, form):
    """Read in every form, special tokens or spelled; nothing of a call shows, in a stream as in a whole reply."""
    tokenizer, model, script = loaded(name)
    script.set({DEEP: f"<think>\n{FIRST}</think>\n\nLet me see.\n{FORMS[form]}{tokenizer.eos_token}"}, "", "")
    backend = TransformersBackend(model, tokenizer, name="tiny", think_tags=ThinkTags())
    chat = ChatTransformers(backend=backend, temperature=0, max_tokens=160).bind_tools([add])
    for message in (chat.invoke(DEEP), functools.reduce(lambda a, b: a + b, chat.stream(DEEP))):
        assert (message.content, message.additional_kwargs["reasoning_content"]) == ("Let me see.", FIRST.strip())
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [("add", {"a": 1, "b": "x"})]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_counted_by_the_models_own_tokenizer(name):
    """Offline, special tokens as one each."""
    backend, _ = set_up(name, ThinkTags())
    chat, text = ChatTransformers(backend=backend), f"34*7=? \N{GRINNING FACE}{loaded(name)[0].eos_token}"
    assert chat.get_num_tokens(text) == len(loaded(name)[0](text, add_special_tokens=False).input_ids)
