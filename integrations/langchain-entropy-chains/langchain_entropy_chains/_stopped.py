"""What a callback's stop leaves behind, and how the answer is got from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from entropy_chains import Outcome, ThinkTags
from entropy_chains.adapters import MALFORMED, OLLAMA, Request, begun, clean_answer, entries_of, way, without_echo
from entropy_chains.backends import Generation
from entropy_chains.errors import EntropyChainsError, SettingsError
from langchain_entropy_chains._config import OFF
from langchain_entropy_chains._ollama import settings_of, speaks_ollama
from langchain_entropy_chains._opening import unbound

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.runnables import Runnable, RunnableConfig


class EarlyStopped(EntropyChainsError):  # noqa: N818 (says what it is)
    """A run was stopped by :class:`EntropyCallbackHandler`. The thinking so far is here; the answer is one request away.

    Attributes:
        generation: the run up to the stop: ``reasoning``, ``steps``, ``tokens``, ``outcome``.
        messages: what the model was asked.
        run_id: LangChain's id of the run.
    """

    def __init__(self, generation: Generation, messages: Sequence[BaseMessage], run_id: str, tags: ThinkTags, opened: bool):
        outcome = generation.outcome
        super().__init__(
            f"stopped after step {outcome.step} and {outcome.tokens} tokens ({outcome.reason}); .finish(model) gets the answer"
        )
        self.generation, self.messages, self.run_id = generation, list(messages), run_id
        self._tags, self._opened = tags, opened

    @property
    def outcome(self) -> Outcome:
        """Why it was stopped, and where."""
        return self.generation.outcome

    @property
    def reasoning(self) -> str:
        """The thinking up to the stop."""
        return self.generation.reasoning

    @property
    def answer(self) -> str | None:
        """What of an answer there was; None, for only thinking is stopped."""
        return self.generation.answer

    def finish(self, model: Runnable[Any, Any], config: RunnableConfig | None = None, *, continuation: str = "turn") -> AIMessage:
        """Get the answer from a model: the same one, or another.

        Args:
            model: a chat model, or a binding of one.
            config: of the call.
            continuation: ``turn`` (any chat model) or ``prefill`` (a ChatOpenAI on vLLM or SGLang; the exact continuation).
        """
        request = self._request(continuation, model)
        answer = _own(model.invoke(list(request.messages), _in_full(config), **_request_kwargs(model, request)), request)
        if self._usable(answer):
            return self._with_table(answer)
        return self._with_table(model.invoke(self.messages, _in_full(config)), MALFORMED)

    async def afinish(
        self, model: Runnable[Any, Any], config: RunnableConfig | None = None, *, continuation: str = "turn"
    ) -> AIMessage:
        """The same for ``asyncio``."""
        request = self._request(continuation, model)
        answer = _own(await model.ainvoke(list(request.messages), _in_full(config), **_request_kwargs(model, request)), request)
        if self._usable(answer):
            return self._with_table(answer)
        return self._with_table(await model.ainvoke(self.messages, _in_full(config)), MALFORMED)

    def _request(self, continuation: str, model: Any) -> Request:
        if continuation not in ("turn", "prefill"):
            raise SettingsError(f"continuation is {continuation!r}; finish() knows 'turn' and 'prefill'")
        unthinking = OLLAMA.can.unthinking if speaks_ollama(_chat_of(model)) else {}
        if unthinking and continuation != "turn":
            raise SettingsError(f"continuation is {continuation!r}; Ollama has 'turn' only")
        thinking = begun("".join(s.text for s in self.generation.steps), self._tags, self._opened)
        return way(continuation, unthinking).request("answer", self.messages, thinking, self._tags, 1)  # type: ignore[arg-type]  # passed on

    def _usable(self, answer: AIMessage) -> bool:
        return bool(answer.tool_calls) or clean_answer(answer.text, self._tags) is not None

    def _with_table(self, answer: AIMessage, why: str | None = None) -> AIMessage:
        """The answer with the run's table; its usage is its own request's, for the stopped stream is a run of its own."""
        usage, entries = answer.usage_metadata, entries_of(answer.response_metadata.get("logprobs"))
        tokens = usage["output_tokens"] if usage else len([*entries])
        outcome = replace(self.outcome, tokens=self.outcome.tokens + tokens)
        if why:
            outcome = replace(outcome, stopped=False, reason=why, tokens_saved=None)
        return answer.model_copy(update={"response_metadata": {**answer.response_metadata, **outcome.metadata()}})


def _own(answer: AIMessage, request: Request) -> AIMessage:
    """The answer without what the server sent back of the request."""
    if request.begun is None or not isinstance(answer.content, str):
        return answer
    return answer.model_copy(update={"content": without_echo(answer.content, request.begun)})


def _in_full(config: RunnableConfig | None) -> RunnableConfig:
    config = config or {}
    return {**config, "metadata": {**(config.get("metadata") or {}), OFF: False}}


def _chat_of(model: Any) -> Any:
    """The chat model itself, in its bindings and a wrapper."""
    chat = unbound(model)[0]
    return getattr(chat, "inner", chat)


def _request_kwargs(model: Any, request: Request) -> dict[str, Any]:
    if not request.extra:
        return {}
    if speaks_ollama(_chat_of(model)):
        return settings_of(request.extra) or {}
    bound = getattr(model, "kwargs", None)  # those of a binding; a call's extra_body replaces both, so they are merged
    bodies = [getattr(model, "extra_body", None), bound.get("extra_body") if isinstance(bound, Mapping) else None, request.extra]
    return {"extra_body": {name: value for body in bodies if isinstance(body, Mapping) for name, value in body.items()}}
