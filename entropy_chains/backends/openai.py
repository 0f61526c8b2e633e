"""Models behind an OpenAI-compatible API: vLLM, llama.cpp, SGLang, OpenAI, and whoever speaks the same.

The user brings the client (``openai.OpenAI`` or ``openai.AsyncOpenAI``), which is never changed. A reply is streamed with
logprobs; at the boundary where the policy stops, the stream is closed, so the server stops working, and the answer is asked for in
the best way the server has (:mod:`.remote.continuations`). What to send and what it means stands in
:class:`.remote.dialogue.Dialogue`, the loops around it in :mod:`.remote.drive`; here is what opens a request, sync and async.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from functools import partial
from typing import Any, Self

from entropy_chains.backends import Chunk, Generation, Message, Probe, Sampling
from entropy_chains.backends.remote.continuations import Request
from entropy_chains.backends.remote.dialogue import Dialogue
from entropy_chains.backends.remote.drive import adrive, drive
from entropy_chains.backends.remote.errors import failures
from entropy_chains.backends.remote.events import Show
from entropy_chains.backends.remote.introductions import awho, who
from entropy_chains.backends.remote.model import ServedModel, ended, only_its_own, prompt_of, seeded
from entropy_chains.backends.remote.readers import Update
from entropy_chains.backends.remote.refused import additions
from entropy_chains.backends.remote.servers import CONTROL, end_thinking, is_done
from entropy_chains.backends.remote.transfer import Transfer
from entropy_chains.core.phases import Phase
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError, MissingExtraError, all_of
from entropy_chains.options import OnMismatch

try:
    import openai
except ImportError as error:
    raise MissingExtraError("openai", "openai") from error


class OpenAIBackend(ServedModel):
    """A served model that answers, streams, is stopped early, and can be recorded.

    Args:
        client: an ``openai.OpenAI``; its settings (base URL, key, timeout, retries) are the user's.
        model: the served model's name.
        name: the label compared with the policy's model, if it is another.
        k: alternatives asked for when there is no policy.
        think_tags: thinking tags; found in the server's chat template where it shows one, ``<think>`` otherwise.
        segmentation: the model's own steps; from the chat template, or paragraphs, otherwise.
        opened: the prompt opens the thinking, and the server does not split the reasoning off (no ``<think>`` in the stream).
        continuation: how the answer is got after a stop: ``auto`` (by the kind of server), ``prefill``, ``completion``,
            ``control``, ``turn``, or several in order.
        temperature_mode: ``raw`` if the server's logprobs are those before temperature (vLLM, llama.cpp), ``scaled`` otherwise.
        without_logprobs: what to do where the server gives none, or refuses to: ``error``; ``agreement`` (stop when the answers
            after two steps in a row agree; not certified); ``full`` (never stop). The last two warn, once a model. A policy whose
            rule reads no entropy, one that is not active, and one that is switched off need none.
        concurrency: most requests at a time.
        plugin: ``auto`` lets a vLLM that has this package's plug-in close the thinking by itself; False never does.
        api: ``chat`` completions, or ``responses``: entropies of thinking that stands in the output text (its reasoning items
            have no logprobs), and the answer after a stop by a ``turn``.
        request: further settings of every request (``extra_body`` and the like). Where they give the reply's form
            (``response_format``, a grammar, a forced tool call, …), nothing is cut.
    """

    _cancelled: threading.Event | None = None

    def worker(self, cancelled: threading.Event) -> Self:
        """See :class:`entropy_chains.backends.Backend`: each request in the thread that calls."""
        self.connect()  # once, and not in every thread
        other = copy.copy(self)
        other._concurrency, other._cancelled = 1, cancelled
        return other

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
        on_mismatch: OnMismatch = "error",
    ) -> list[Generation]:
        """Answer every conversation, some at a time; see :class:`entropy_chains.backends.Backend`.

        Raises:
            BatchError: some conversations failed; the others' runs are on it. Where every one failed, the first one's own error.
        """
        self.connect()
        self._check(policy, sampling, segmentation, on_mismatch)

        def answer(n: int, over: threading.Event) -> Generation:
            held = bool(holdout is not None and holdout[n])
            dialogue = self._dialogue(conversations[n], policy, sampling, segmentation, stop, held, on_mismatch)
            with closing(self._events(dialogue, seeded(sampling, n))) as events:
                for _ in events:
                    if over.is_set():
                        break
            return dialogue.result()

        return self._together(answer, len(conversations))

    def stream(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
        on_mismatch: OnMismatch = "error",
    ) -> Generator[Chunk, None, None]:
        """Answer one conversation token by token; closing the generator closes the connection."""
        self.connect()
        self._check(policy, sampling, segmentation, on_mismatch)
        dialogue = self._dialogue(messages, policy, sampling, segmentation, stop, holdout, on_mismatch)
        with closing(self._events(dialogue, sampling)) as events:
            for event in events:
                yield from event.chunks
        yield Chunk("", Phase.ANSWER, final=dialogue.result())

    def probe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """See :class:`entropy_chains.backends.Backend`: the live closing text, by the first way the server has."""
        self.connect()

        def ask(n: int, over: threading.Event) -> Probe:
            trial = self._trial(*runs[n], sampling)
            send = partial(self._updates, sampling=seeded(sampling, n))
            with closing(drive(trial, send)) as updates:
                for _ in updates:
                    if over.is_set():
                        break
            return trial.reply.probe(self.tags, trial.request.k)

        return self._together(ask, len(runs))

    def _together(self, work: Callable[[int, threading.Event], Any], count: int) -> list[Any]:
        over = self._cancelled or threading.Event()

        def one(n: int) -> Any:
            try:
                return work(n, over)
            except BackendError as error:
                return only_its_own(error)

        if self._concurrency == 1:  # one after the other needs no thread: Ctrl-C ends the request itself
            return all_of([one(n) for n in range(count)])
        with ThreadPoolExecutor(min(self._concurrency, count) or 1, "entropy-chains") as pool:
            futures = [pool.submit(one, n) for n in range(count)]
            try:
                return all_of([f.result() for f in futures])
            except BaseException:
                over.set()  # nobody waits for the other requests: they end at their next token
                for future in futures:
                    future.cancel()
                raise

    def connect(self) -> None:
        """Ask the server who it is; done by itself before the first request. Raises BackendError where there is none."""
        if self._server is not None:
            return
        with failures(self._client):
            self._server = self._introduction.who(lambda: who(self._client, self._served, plugin=bool(self._plugin)))

    def _events(self, dialogue: Dialogue, sampling: Sampling) -> Generator[Show, None, None]:
        return drive(dialogue, partial(self._updates, sampling=sampling), self._control)

    def _updates(self, request: Request, sampling: Sampling) -> Generator[Update, None, None]:
        """One request's stream; closing this closes the connection, so that the server stops."""
        with additions(request), failures(self._client, self._request, logprobs=request.logprobs):
            reader, path, arguments = self._sending(request, sampling)
            if request.prefix is not None:
                rendered = self._client.post(self._template_url, body=self._to_render(request), cast_to=object)
                arguments["body"]["prompt"] = prompt_of(rendered, request)
            transfer = Transfer()
            stream = transfer.listen(self._client.post(path, stream_cls=openai.Stream[object], **arguments))
            try:
                for chunk in stream:
                    yield transfer.mark(reader.feed(chunk))
                yield ended(reader, transfer)
            finally:
                stream.close()

    def _control(self, stream: str | None) -> bool:
        with suppress(BackendError), failures(self._client):
            return is_done(self._client.post(CONTROL, body=end_thinking(stream), cast_to=object))
        return False


class AsyncOpenAIBackend(ServedModel):
    """The same for ``asyncio``: ``client`` is an ``openai.AsyncOpenAI``; the rest as in :class:`OpenAIBackend`."""

    async def agenerate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
        on_mismatch: OnMismatch = "error",
    ) -> list[Generation]:
        """Answer every conversation, some at a time; errors as in :meth:`OpenAIBackend.generate`."""
        await self.connect()
        self._check(policy, sampling, segmentation, on_mismatch)

        async def answer(n: int) -> Generation:
            held = bool(holdout is not None and holdout[n])
            dialogue = self._dialogue(conversations[n], policy, sampling, segmentation, stop, held, on_mismatch)
            async with aclosing(self._chunks(dialogue, seeded(sampling, n))) as chunks:
                async for _ in chunks:
                    pass
            return dialogue.result()

        return await self._together(answer, len(conversations))

    async def astream(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
        on_mismatch: OnMismatch = "error",
    ) -> AsyncGenerator[Chunk, None]:
        """Answer one conversation token by token; closing the generator closes the connection."""
        await self.connect()
        self._check(policy, sampling, segmentation, on_mismatch)
        dialogue = self._dialogue(messages, policy, sampling, segmentation, stop, holdout, on_mismatch)
        async with aclosing(self._chunks(dialogue, sampling)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield Chunk("", Phase.ANSWER, final=dialogue.result())

    async def aprobe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """See :meth:`OpenAIBackend.probe`."""
        await self.connect()

        async def ask(n: int) -> Probe:
            trial = self._trial(*runs[n], sampling)
            send = partial(self._updates, sampling=seeded(sampling, n))
            async with aclosing(adrive(trial, send)) as updates:
                async for _ in updates:
                    pass
            return trial.reply.probe(self.tags, trial.request.k)

        return await self._together(ask, len(runs))

    async def _together(self, work: Callable[[int], Awaitable[Any]], count: int) -> list[Any]:
        free = asyncio.Semaphore(self._concurrency)

        async def one(n: int) -> Any:
            async with free:
                try:
                    return await work(n)
                except BackendError as error:
                    return only_its_own(error)

        tasks = [asyncio.create_task(one(n)) for n in range(count)]
        try:
            return all_of(await asyncio.gather(*tasks))
        finally:  # after an error nothing goes on unseen
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def connect(self) -> None:
        """See :meth:`OpenAIBackend.connect`."""
        if self._server is not None:
            return
        with failures(self._client):
            self._server = await self._introduction.awho(lambda: awho(self._client, self._served, plugin=bool(self._plugin)))

    async def _chunks(self, dialogue: Dialogue, sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        send = partial(self._updates, sampling=sampling)
        async with aclosing(adrive(dialogue, send, self._control)) as events:
            async for event in events:
                for chunk in event.chunks:
                    yield chunk

    async def _updates(self, request: Request, sampling: Sampling) -> AsyncGenerator[Update, None]:
        with additions(request), failures(self._client, self._request, logprobs=request.logprobs):
            reader, path, arguments = self._sending(request, sampling)
            if request.prefix is not None:
                rendered = await self._client.post(self._template_url, body=self._to_render(request), cast_to=object)
                arguments["body"]["prompt"] = prompt_of(rendered, request)
            transfer = Transfer()
            stream = transfer.listen(await self._client.post(path, stream_cls=openai.AsyncStream[object], **arguments))
            try:
                async for chunk in stream:
                    yield transfer.mark(reader.feed(chunk))
                yield ended(reader, transfer)
            finally:
                await stream.close()

    async def _control(self, stream: str | None) -> bool:
        with suppress(BackendError), failures(self._client):
            return is_done(await self._client.post(CONTROL, body=end_thinking(stream), cast_to=object))
        return False
