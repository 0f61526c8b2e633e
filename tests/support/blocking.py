"""An async backend as a sync one, so that both keep the same contract."""

from __future__ import annotations

import asyncio


class Blocking:
    """Runs each call of an ``AsyncBackend`` to its end in a loop of its own; all else is the backend's."""

    def __init__(self, backend, loop=None):
        self.backend, self._loop = backend, loop or asyncio.new_event_loop()

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def wait(self, awaitable):
        """What is awaited."""
        return self._loop.run_until_complete(awaitable)

    def close(self):
        """Its loop ends."""
        self._loop.close()

    def with_template(self, **settings):
        return Blocking(self.backend.with_template(**settings), self._loop)

    def generate(self, *args, **given):
        return self.wait(self.backend.agenerate(*args, **given))

    def probe(self, *args, **given):
        return self.wait(self.backend.aprobe(*args, **given))

    def stream(self, *args, **given):
        chunks = self.backend.astream(*args, **given)
        try:
            while (chunk := self.wait(anext(chunks, None))) is not None:
                yield chunk
        finally:
            self.wait(chunks.aclose())


class Awaited:
    """What a contract for :class:`Blocking` backends has of its own: several tasks in one loop."""

    def awaited(self, backend, conversations, **given):
        """The runs, each in a task of its own."""

        async def together():
            asked = {"sampling": self.sampling, **given}
            found = await asyncio.gather(*(backend.backend.agenerate([c], **asked) for c in conversations))
            return [run for (run,) in found]

        return backend.wait(together())

    def awaited_chunks(self, backend, messages, **given):
        """The chunks of one of two streams that are read in turns."""

        async def in_turns():
            one, other = (backend.backend.astream(messages, sampling=self.sampling, **given) for _ in range(2))
            found = []
            while (chunk := await anext(one, None)) is not None:
                found.append(chunk)
                await anext(other)
            await other.aclose()
            return found

        return backend.wait(in_turns())

    def is_cancelled(self, backend, conversations, seconds=0.0):
        """Whether a task that is cancelled after some time ends by that."""

        async def run():
            task = asyncio.create_task(backend.backend.agenerate(conversations, sampling=self.sampling))
            if seconds:
                await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()

        return backend.wait(run())

    def test_cancelled_runs_end_at_their_next_token(self, backend, conversations, full):
        """A cancelled task is one, and the backend goes on as before."""
        assert self.is_cancelled(backend, conversations)
        assert self.idle(backend)
        assert [run.answer for run in self.run(backend, conversations)] == [run.answer for run in full]
