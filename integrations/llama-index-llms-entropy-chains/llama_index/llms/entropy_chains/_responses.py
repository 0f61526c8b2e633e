"""The responses that a caller gets: those of the LLM inside and, after a stop, corrected so that they are one reply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
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
        self._heard: Any = None  # the LLM's own last response
        self._last = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT))
        self._counts: dict[str, Reply] = {}  # by purpose
        self._purpose = "reason"
        self._tokens: list[Token] | None = [] if logprobs else None

    def tell(self, shown: Show) -> ChatResponse | None:
        """Returns the response to hand out for what came, if any: the LLM's own object, which its last event holds as well."""
        update, chunks, closing, response = shown.update, shown.chunks, shown.closing, None
        if update.raw is not None:  # a probe's answer has none, and text that was kept back: it was told as it came
            self._purpose, response = update.raw
            self._heard = response or self._heard
        self._counts.setdefault(self._purpose, Reply(self._purpose)).take(update)
        if self._tokens is not None:
            self._tokens += [c.token for c in chunks if c.token]
        if self._purpose == "reason" and (update.raw is not None or not closing):
            told = self._as_it_is(response, closing)
        else:
            told = self._corrected(response, "".join(c.text for c in chunks if c.phase is Phase.ANSWER))
        if told is not None:
            self._last = told
        if not closing and (update.finish_reason or (update.usage and not update.pieces)):  # vLLM counts on every chunk
            self._mark()
        return told

    def _as_it_is(self, response: Any, closing: bool) -> ChatResponse | None:
        """Returns the response to a chunk of the run's own request. ``closing``: the stream is closed after it."""
        if response is None:
            return None
        told = as_chat(response)
        self._thinking = next((b for b in told.message.blocks if isinstance(b, ThinkingBlock)), self._thinking)
        if closing:  # what stands after the boundary is not the answer
            told.delta = (told.delta or "").partition(self._tags.close)[0]
        self._text += told.delta or ""
        if closing:
            self._rewrite(told)
        return told

    def _corrected(self, response: Any, answer: str) -> ChatResponse | None:
        """Returns the response to a chunk of a request after a stop: its text follows what was told; new thinking is left out."""
        if response is None and not answer:
            return None
        told = as_chat(response) if response is not None else self._last.model_copy(deep=True)  # with its tool calls
        if answer and self._whole and self._text.strip():  # the thinking stands in the content: it is closed there, too
            answer = "\n" * (not self._text.endswith("\n")) + self._tags.close + self._tags.after + answer
        self._whole = self._whole and not answer
        if self._purpose == "full":
            self._thinking = next((b for b in told.message.blocks if isinstance(b, ThinkingBlock)), self._thinking)
        else:
            told.additional_kwargs.pop("thinking_delta", None)
        told.delta = answer
        self._text += answer
        self._rewrite(told)
        return told

    def _rewrite(self, told: ChatResponse) -> None:
        others = [b for b in told.message.blocks if not isinstance(b, TextBlock | ThinkingBlock)]
        thinking = [self._thinking] if self._thinking else []
        told.message.blocks = [*thinking, TextBlock(text=self._text), *others]

    def _mark(self) -> None:
        """Write the outcome on the LLM's own object, which events and callbacks get; the tokens there are its request's own."""
        if self._heard is not None:
            told = self._outcome.metadata()
            del told["early_stop_tokens"]
            self._heard.additional_kwargs.update(told)

    @property
    def _outcome(self) -> Outcome:
        outcome = self.dialogue.result().outcome
        return replace(outcome, reason=self._why) if self._why else outcome

    def final(self) -> tuple[ChatResponse, Outcome]:
        """The last response (the whole message, no delta, the outcome, the server's finish reason, all tokens), and the outcome."""
        run, told = self.dialogue.result(), self._last
        counts: dict[str, Any] = {"completion_tokens": run.tokens, "finish_reason": run.finish_told}
        prompt = run.prompt_tokens or self._prompt_estimate(run.tokens)
        if prompt is not None:
            counts |= {"prompt_tokens": prompt, "total_tokens": prompt + run.tokens}
        kept = {k: v for k, v in told.additional_kwargs.items() if k != "thinking_delta"}
        logprobs = None if self._tokens is None else [alternatives(t) for t in self._tokens if t.alternatives]
        outcome = self._outcome
        last = {"delta": "", "logprobs": logprobs, "additional_kwargs": kept | outcome.metadata() | counts}
        return told.model_copy(update=last), outcome

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
