"""What the tests of LlamaIndex have in common: a scripted server, and LlamaIndex's dispatcher left as it was."""

from __future__ import annotations

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.llms.entropy_chains import EntropyEventHandler
from loopback import Loopback


@pytest.fixture
def server():
    """A server that thinks in lines, unsure of the first two, and then answers (a fake: it thinks nothing)."""
    with Loopback() as running:
        yield running


@pytest.fixture
def quiet():
    """LlamaIndex's dispatcher, left as it was found."""
    dispatcher = get_dispatcher()
    kept = list(dispatcher.event_handlers), list(dispatcher.span_handlers)
    yield dispatcher
    dispatcher.event_handlers[:], dispatcher.span_handlers[:] = kept


@pytest.fixture
def listen(quiet):
    """Handlers that hear of all calls, until the test ends."""

    def add(*args, **settings):
        handler = EntropyEventHandler(*args, **settings)
        quiet.add_event_handler(handler)
        return handler

    return add


@pytest.fixture
def index():
    """Two texts to ask for."""
    documents = [Document(text="Six times seven is 42.") for _ in range(2)]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4))
