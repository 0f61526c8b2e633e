"""Models behind an OpenAI-compatible API: vLLM, llama.cpp, SGLang, OpenAI, and whoever speaks the same.

The user brings the client (``openai.OpenAI`` or ``openai.AsyncOpenAI``), which is never changed and whose key is never read. A
reply is streamed with logprobs; at the boundary where the policy stops, the stream is closed, so the server stops working, and
the answer is asked for in the best way the server has (:mod:`.continuations`). What to send and what it means stands in
:class:`.dialogue.Dialogue`; here are only the two shells that do the sending, one sync, one async.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, contextmanager, suppress
from typing import Any

from entropy_chains.backends import Chunk, Generation, Message, Probe, Sampling
from entropy_chains.backends.chunks import Update
from entropy_chains.backends.continuations import Request
from entropy_chains.backends.dialogue import Dialogue, Reply
from entropy_chains.backends.served import CONTROL, ServedModel, is_done, prompt_of, seeded
from entropy_chains.backends.servers import identify
from entropy_chains.errors import BackendError, EntropyChainsError, MissingExtraError, without_secrets
from entropy_chains.policy import Policy
from entropy_chains.steps import Phase, Segmentation

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
        tags: thinking tags; found in the server's chat template where it shows one, ``<think>`` otherwise.
        segmentation: the model's own steps; from the chat template, or paragraphs, otherwise.
        opened: the prompt opens the thinking, and the server does not split the reasoning off (no ``<think>`` in the stream).
        continuation: how the answer is got after a stop: ``auto`` (by the kind of server), ``prefill``, ``completion``,
            ``control``, ``turn``, or several in order.
        temperature_mode: ``raw`` if the server's logprobs are those before temperature (vLLM, llama.cpp), ``scaled`` otherwise.
        without_logprobs: what to do where the server gives none: ``error``; ``agreement`` (stop when the answers after two
            steps in a row agree; not certified); ``full`` (never stop). The last two warn.
        concurrency: most requests at a time.
        request: further settings of every request (``extra_body`` and the like).
    """

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
        on_mismatch: str = "error",
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """Answer every conversation, some at a time; see :class:`entropy_chains.backends.Backend`."""
        self.connect()
        self._check(policy, sampling, segmentation, on_mismatch)

        def answer(n: int, over: threading.Event) -> Generation:
            held = bool(holdout is not None and holdout[n])
            dialogue = self._dialogue(conversations[n], policy, sampling, segmentation, stop, held, on_mismatch)
            with closing(self._talk(dialogue, seeded(sampling, n))) as chunks:
                for _ in chunks:
                    if over.is_set():
                        break
            if on_done:
                on_done(1)
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
        on_mismatch: str = "error",
    ) -> Generator[Chunk, None, None]:
        """Answer one conversation token by token; closing the generator closes the connection."""
        self.connect()
        self._check(policy, sampling, segmentation, on_mismatch)
        dialogue = self._dialogue(messages, policy, sampling, segmentation, stop, holdout, on_mismatch)
        yield from self._talk(dialogue, sampling)
        yield Chunk("", Phase.ANSWER, final=dialogue.result())

    def probe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """See :class:`entropy_chains.backends.Backend`: the live closing text, by the first way the server has."""
        self.connect()

        def ask(n: int, over: threading.Event) -> Probe:
            reply = Reply("probe")
            with closing(self._updates(self._probing(*runs[n], sampling), seeded(sampling, n), self._k)) as updates:
                for update in updates:
                    reply.take(update)
                    if over.is_set():
                        break
            return reply.probe(self.tags)

        return self._together(ask, len(runs))

    def _together(self, work: Callable[[int, threading.Event], Any], count: int) -> list[Any]:
        over = threading.Event()  # set on Ctrl-C or an error: nobody waits for the other requests, they end at their next token
        with ThreadPoolExecutor(min(self._concurrency, count) or 1, "entropy-chains") as pool:
            futures = [pool.submit(work, n, over) for n in range(count)]
            try:
                return [f.result() for f in futures]
            except BaseException:
                over.set()
                for future in futures:
                    future.cancel()
                raise

    def connect(self) -> None:
        """Ask the server who it is; done by itself before the first request. Raises BackendError where there is none."""
        if self._server is not None:
            return
        asking = identify(str(self._client.base_url), self._served)
        answer = None
        with _errors():
            try:
                while True:
                    address, answer = asking.send(answer), None
                    with suppress(openai.APIStatusError):  # a server that does not tell is an unknown one
                        answer = self._client.get(address, cast_to=object)
            except StopIteration as done:
                self._server = done.value

    def _talk(self, dialogue: Dialogue, sampling: Sampling) -> Generator[Chunk, None, None]:
        """Send what the dialogue asks for, until it is over."""
        request: Request | None = dialogue.first()
        while request is not None:
            try:
                with closing(self._updates(request, sampling, dialogue.k)) as updates:
                    for update in updates:
                        yield from dialogue.feed(update)
                        if dialogue.wants_probe:
                            with closing(self._updates(dialogue.wants_probe, sampling, dialogue.k)) as probe:
                                for found in probe:
                                    dialogue.feed_probe(found)
                            yield from dialogue.probed()
                        if dialogue.wants_control:
                            dialogue.controlled(self._control(dialogue.id))
                        if dialogue.closing:
                            break
                request = dialogue.next()
            except BackendError as error:
                request = dialogue.failed(error)

    def _updates(self, request: Request, sampling: Sampling, k: int) -> Generator[Update, None, None]:
        """One request's stream; closing this closes the connection, so that the server stops."""
        with _errors():
            reader, arguments = self._arguments(request, sampling, k)
            if request.prefix is None:
                stream = self._client.chat.completions.create(**arguments)
            else:
                rendered = self._client.post(self._template_url, body={"messages": list(request.messages)}, cast_to=object)
                stream = self._client.completions.create(prompt=prompt_of(rendered, request), **arguments)
            try:
                for chunk in stream:
                    yield reader.feed(chunk)
                yield reader.finish()
            finally:
                stream.close()

    def _control(self, run: str | None) -> bool:
        with suppress(BackendError), _errors():
            return is_done(self._client.post(CONTROL, body={"id": run, "action": "reasoning_end"}, cast_to=object))
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
        on_mismatch: str = "error",
    ) -> list[Generation]:
        """Answer every conversation, some at a time."""
        await self.connect()
        self._check(policy, sampling, segmentation, on_mismatch)
        free = asyncio.Semaphore(self._concurrency)

        async def answer(n: int) -> Generation:
            held = bool(holdout is not None and holdout[n])
            async with free:
                dialogue = self._dialogue(conversations[n], policy, sampling, segmentation, stop, held, on_mismatch)
                async with aclosing(self._talk(dialogue, seeded(sampling, n))) as chunks:
                    async for _ in chunks:
                        pass
            return dialogue.result()

        tasks = [asyncio.create_task(answer(n)) for n in range(len(conversations))]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # after an error nothing goes on unseen
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def astream(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
        on_mismatch: str = "error",
    ) -> AsyncGenerator[Chunk, None]:
        """Answer one conversation token by token; closing the generator closes the connection."""
        await self.connect()
        self._check(policy, sampling, segmentation, on_mismatch)
        dialogue = self._dialogue(messages, policy, sampling, segmentation, stop, holdout, on_mismatch)
        async with aclosing(self._talk(dialogue, sampling)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield Chunk("", Phase.ANSWER, final=dialogue.result())

    async def aprobe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """See :meth:`OpenAIBackend.probe`."""
        await self.connect()
        free = asyncio.Semaphore(self._concurrency)

        async def ask(n: int) -> Probe:
            reply = Reply("probe")
            async with free, aclosing(self._updates(self._probing(*runs[n], sampling), seeded(sampling, n), self._k)) as updates:
                async for update in updates:
                    reply.take(update)
            return reply.probe(self.tags)

        return list(await asyncio.gather(*map(ask, range(len(runs)))))

    async def connect(self) -> None:
        """See :meth:`OpenAIBackend.connect`."""
        if self._server is not None:
            return
        asking = identify(str(self._client.base_url), self._served)
        answer = None
        with _errors():
            try:
                while True:
                    address, answer = asking.send(answer), None
                    with suppress(openai.APIStatusError):  # a server that does not tell is an unknown one
                        answer = await self._client.get(address, cast_to=object)
            except StopIteration as done:
                self._server = done.value

    async def _talk(self, dialogue: Dialogue, sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        request: Request | None = dialogue.first()
        while request is not None:
            try:
                async with aclosing(self._updates(request, sampling, dialogue.k)) as updates:
                    async for update in updates:
                        for chunk in dialogue.feed(update):
                            yield chunk
                        if dialogue.wants_probe:
                            async with aclosing(self._updates(dialogue.wants_probe, sampling, dialogue.k)) as probe:
                                async for found in probe:
                                    dialogue.feed_probe(found)
                            for chunk in dialogue.probed():
                                yield chunk
                        if dialogue.wants_control:
                            dialogue.controlled(await self._control(dialogue.id))
                        if dialogue.closing:
                            break
                request = dialogue.next()
            except BackendError as error:
                request = dialogue.failed(error)

    async def _updates(self, request: Request, sampling: Sampling, k: int) -> AsyncGenerator[Update, None]:
        with _errors():
            reader, arguments = self._arguments(request, sampling, k)
            if request.prefix is None:
                stream = await self._client.chat.completions.create(**arguments)
            else:
                rendered = await self._client.post(self._template_url, body={"messages": list(request.messages)}, cast_to=object)
                stream = await self._client.completions.create(prompt=prompt_of(rendered, request), **arguments)
            try:
                async for chunk in stream:
                    yield reader.feed(chunk)
                yield reader.finish()
            finally:
                await stream.close()

    async def _control(self, run: str | None) -> bool:
        with suppress(BackendError), _errors():
            return is_done(await self._client.post(CONTROL, body={"id": run, "action": "reasoning_end"}, cast_to=object))
        return False


@contextmanager
def _errors() -> Iterator[None]:
    """What SDK and connection raise becomes one kind of error, with the cause chained and without the user's key."""
    try:
        yield
    except (openai.OpenAIError, OSError, ValueError) as error:
        if isinstance(error, EntropyChainsError):
            raise
        raise BackendError(_told(error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise BackendError(_told(error)) from error
        raise


def _told(error: Exception) -> str:
    if isinstance(error, openai.APIStatusError):
        return f"the server refused the request ({error.status_code}): {without_secrets(str(error.message))[:500]}"
    url = getattr(getattr(error, "request", None), "url", None)
    place = f"{url.scheme}://{url.netloc.decode().rpartition('@')[2]}" if url is not None else "the server"
    why = without_secrets(str(error.__cause__ or error))[:500]
    return f"the connection to {place} failed ({type(error).__name__}: {why}); check the address, and that the server runs"
