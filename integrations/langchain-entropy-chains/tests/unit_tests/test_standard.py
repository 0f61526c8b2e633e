"""LangChain's own unit tests of a chat model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_entropy_chains import EarlyStopChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))


class TestStandard(ChatModelUnitTests):
    """Named as ``init_chat_model`` takes it, so that the suite's own settings reach the model."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return EarlyStopChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"inner": "openai:scripted", "policy": POLICY, "base_url": "http://127.0.0.1:9/v1", "api_key": "none"}
