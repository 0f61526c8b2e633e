"""The responses that a caller gets: those of the LLM inside and, after a stop, corrected so that they are one reply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)

from entropy_chains import Outcome, ThinkTags, Token
from entropy_chains.adapters import Dialogue, Phase, Reply, Show


class Telling:
    """Makes the responses of one run.

    Args:
        dialogue: the run.
        tags: the family's thinking tags.
        why: why it may not be stopped, if so.
        logprobs: whether the last response carries them.
    """

    def __init__(self, dialogue: Dialogue, tags: ThinkTags, *, why: str | None = None, logprobs: bool = False):
        self.dialogue, self._tags, self._why = dialogue, tags, why
        self._text = ""  # content told so far
        self._thinking: ThinkingBlock | None = None
        self._whole = True  # until something follows a stop
        self._raw: Any = None  # the LLM's own last response
        self._last = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT))
        self._counts: dict[str, Reply] = {}  # by purpose
        self._purpose = "reason"
        self._tokens: list[Token] | None = [] if logprobs else None

    def tell(self, event: Show) -> ChatResponse | None:
        """Returns the response to hand out for what came, if any: the LLM's own object, which its last event holds as well."""
        update, chunks, closing, raw = event.update, event.chunks, event.closing, None
        if update.raw is not None:  # a probe's answer has none, and text that was kept back: it was told as it came
            self._purpose, raw = update.raw
            self._raw = raw or self._raw
        self._counts.setdefault(self._purpose, Reply(self._purpose)).take(update)
        if self._tokens is not None:
            self._tokens += [c.token for c in chunks if c.token]
        if self._purpose == "reason" and (update.raw is not None or not closing):
            response = self._as_it_is(raw, closing)
        else:
            response = self._corrected(raw, "".join(c.text for c in chunks if c.phase is Phase.ANSWER))
        if response is not None:
            self._last = response
        if not closing and (update.finish_reason or (update.usage and not update.pieces)):  # vLLM counts on every chunk
            self._mark()
        return response

    def _as_it_is(self, raw: Any, closing: bool) -> ChatResponse | None:
        """Returns the response to a chunk of the run's own request. ``closing``: the stream is closed after it."""
        if raw is None:
            return None
        response = as_chat(raw)
        self._thinking = next((b for b in response.message.blocks if isinstance(b, ThinkingBlock)), self._thinking)
        if closing:  # what stands after the boundary is not the answer
            response.delta = (response.delta or "").partition(self._tags.close)[0]
        self._text += response.delta or ""
        if closing:
            self._rewrite(response)
        return response

    def _corrected(self, raw: Any, answer: str) -> ChatResponse | None:
        """Returns the response to a chunk of a request after a stop: its text follows what was told; new thinking is left out."""
        if raw is None and not answer:
            return None
        response = as_chat(raw) if raw is not None else self._last.model_copy(deep=True)  # with its tool calls
        if answer and self._whole and self._text.strip():  # the thinking stands in the content: it is closed there, too
            answer = "\n" * (not self._text.endswith("\n")) + self._tags.close + self._tags.after + answer
        self._whole = self._whole and not answer
        if self._purpose == "full":
            self._thinking = next((b for b in response.message.blocks if isinstance(b, ThinkingBlock)), self._thinking)
        else:
            response.additional_kwargs.pop("thinking_delta", None)
        response.delta = answer
        self._text += answer
        self._rewrite(response)
        return response

    def _rewrite(self, response: ChatResponse) -> None:
        others = [b for b in response.message.blocks if not isinstance(b, TextBlock | ThinkingBlock)]
        thinking = [self._thinking] if self._thinking else []
        response.message.blocks = [*thinking, TextBlock(text=self._text), *others]

    def _mark(self) -> None:
        """Write the outcome on the LLM's own object, which events and callbacks get; the tokens there are its request's own."""
        if self._raw is not None:
            table = self._outcome.metadata()
            del table["early_stop_tokens"]
            self._raw.additional_kwargs.update(table)

    @property
    def _outcome(self) -> Outcome:
        outcome = self.dialogue.result().outcome
        return replace(outcome, reason=self._why) if self._why else outcome

    def final(self) -> tuple[ChatResponse, Outcome]:
        """The last response (the whole message, no delta, the outcome, the server's finish reason, all tokens), and the outcome."""
        run, response = self.dialogue.result(), self._last
        counts: dict[str, Any] = {"completion_tokens": run.tokens, "finish_reason": run.finish_told}
        prompt = run.prompt_tokens or self._prompt_estimate(run.tokens)
        if prompt is not None:
            counts |= {"prompt_tokens": prompt, "total_tokens": prompt + run.tokens}
        additional_kwargs = {k: v for k, v in response.additional_kwargs.items() if k != "thinking_delta"}
        logprobs = None if self._tokens is None else [alternatives(t) for t in self._tokens if t.alternatives]
        outcome = self._outcome
        last = {"delta": "", "logprobs": logprobs, "additional_kwargs": additional_kwargs | outcome.metadata() | counts}
        return response.model_copy(update=last), outcome

    def _prompt_estimate(self, tokens: int) -> int | None:
        """Returns the prompt's tokens where the server counts nothing on a closed stream: the answer's less the thinking."""
        answer = self._counts.get("answer")
        return None if answer is None or answer.prompt is None else max(0, answer.prompt - (tokens - answer.tokens))


def as_chat(response: Any) -> ChatResponse:
    """A chat response as it is; a completion as the chat response that LlamaIndex makes of one."""
    if isinstance(response, ChatResponse):
        return response
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=response.text),
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def as_completion(response: ChatResponse) -> CompletionResponse:
    """The completion that LlamaIndex makes of a chat response."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def alternatives(token: Token) -> list[LogProb]:
    """A token's alternatives, most likely first, as LlamaIndex has them."""
    return [LogProb(token=a.text, logprob=a.logprob, bytes=list(a.bytes or a.text.encode())) for a in token.alternatives or ()]


def last_of(responses: ChatResponseGen) -> ChatResponse:
    """The last response; every run has one."""
    for response in responses:
        last = response
    return last


async def alast_of(responses: ChatResponseAsyncGen) -> ChatResponse:
    """The same for ``asyncio``."""
    async for response in responses:
        last = response
    return last
