"""A wrong setting is one error of this package, which names it and what it must be; nothing is sent. The server is scripted."""

from __future__ import annotations

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.llms.entropy_chains import attach
from llms import POLICY, inside, wrapped

from entropy_chains.errors import SettingsError

WRONG = {
    "holdout is 2.0; it must be between 0": {"holdout": 2},
    "holdout is -1.0; it must be between 0": {"holdout": -1},
    "holdout is nan; it must be between 0": {"holdout": float("nan")},
    "holdout is 'x'; it must be a valid number": {"holdout": "x"},
    "think_tags is '<a>'; it must be .* ThinkTags": {"think_tags": "<a>"},
    "segmentation is 'line'; it must be .* Segmentation": {"segmentation": "line"},
    "ask is 'x'; it must be a valid dictionary": {"ask": "x"},
    "temperature_mode is 'x'; it must be one of raw": {"temperature_mode": "x"},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_setting_is_named(server, message):
    """On one line; the same of ``attach``."""
    index = SummaryIndex.from_documents([Document(text="Six times seven is 42.")])
    for made in (
        lambda: wrapped(server, **WRONG[message]),
        lambda: attach(index.as_query_engine(llm=inside(server)), POLICY, **WRONG[message]),
    ):
        with pytest.raises(SettingsError, match=message) as error:
            made()
        assert "\n" not in str(error.value)
    assert not server.calls
