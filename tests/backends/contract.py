"""What every backend keeps: inherit :class:`BackendContract` and give it a backend and conversations.

The backend must think in at least two steps on at least one of the four conversations, within ``sampling``'s tokens.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from dataclasses import replace
from itertools import accumulate

import pytest

from entropy_chains.backends import Generation, Sampling
from entropy_chains.backends.local.threads import astream, in_thread
from entropy_chains.backends.text.answer import MALFORMED
from entropy_chains.core.monitor import NO_STEP, NO_THINKING
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import MassFloor
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.errors import PolicyMismatch, SettingsError


def same_run(a: Generation, b: Generation) -> bool:
    """Equal but for wall time."""
    still = [replace(g, seconds=0.0, steps=tuple(replace(s, seconds=0.0) for s in g.steps)) for g in (a, b)]
    return still[0] == still[1]


def same_text(a: Generation, b: Generation) -> bool:
    """The same tokens, steps and answer; policy and outcome may differ."""
    parts = [(g.reasoning, g.answer, g.tokens, g.rest_tokens, g.token_ids, [s.record for s in g.steps]) for g in (a, b)]
    return parts[0] == parts[1]


TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}


class BackendContract:
    """Subclasses define the fixtures ``backend`` and ``conversations`` (four), and may override the rest up to ``policy``.

    Attributes:
        sampling: of every run.
        closes_in_place: the closing text is forced as the run's next tokens, and not sent with another request.
    """

    sampling = Sampling(temperature=1.0, max_tokens=100, seed=5)
    closes_in_place = True

    @pytest.fixture
    def backend(self):
        raise NotImplementedError

    @pytest.fixture
    def conversations(self):
        raise NotImplementedError

    def idle(self, backend) -> bool:
        """Nothing is being computed any more."""
        return True

    def awaited(self, backend, conversations, **given):
        """The runs, awaited as both integrations await a backend that is not async."""
        return asyncio.run(in_thread(lambda cancelled: self.run(backend.worker(cancelled), conversations, **given)))

    def awaited_chunks(self, backend, messages, **given):
        """The chunks of a stream, awaited alike."""

        async def read():
            return [chunk async for chunk in astream(backend.stream(messages, sampling=self.sampling, **given))]

        return asyncio.run(read())

    def cancelled(self, backend, conversations):
        """Runs that were cancelled before they began."""
        cancelled = threading.Event()
        cancelled.set()
        return self.run(backend.worker(cancelled), conversations)

    def offered(self, backend):
        """The settings of the chat template that reach the model; None where that is seen elsewhere."""

    def policy(self, backend, threshold=99.0, **fields):
        """For this backend; by default it stops after the first step, whatever its entropy and mass."""
        fixed = {
            "model": backend.model,
            "thresholds": (threshold,),
            "segmentation": backend.segmentation,
            "template": backend.template,
            "mass_floor": MassFloor(0.0, 0.0),
            "calibration": {"remaining_tokens": [30.0, 10.0]},
        }
        return Policy(**{**fixed, **fields})

    def run(self, backend, conversations, **given):
        return backend.generate(conversations, **{"sampling": self.sampling, **given})

    @pytest.fixture
    def full(self, backend, conversations):
        """Every conversation, measured without a policy."""
        runs = self.run(backend, conversations)
        assert any(len(g.steps) > 1 for g in runs), "the conversations are too short to show anything"
        return runs

    @pytest.fixture
    def stepped(self, full):
        """A conversation of two steps at least."""
        return next(n for n, g in enumerate(full) if len(g.steps) > 1)

    def chunks(self, backend, messages, **given):
        """The chunks of a stream and its run."""
        found = list(backend.stream(messages, **{"sampling": self.sampling, **given}))
        assert all(c.final is None for c in found[:-1])
        return found[:-1], found[-1].final

    # --- counting

    def test_tokens_counted_are_tokens_produced(self, backend, conversations):
        """In full and stopped: a chunk a token, steps and rest add up, reasoning is a part."""
        for given in ({}, {"policy": self.policy(backend)}):
            for messages in conversations:
                chunks, run = self.chunks(backend, messages, **given)
                assert run.tokens == sum(c.token is not None for c in chunks)
                assert run.reasoning_tokens <= run.tokens == run.outcome.tokens
                if run.outcome.reason != MALFORMED:  # then the discarded stop's tokens count as well
                    assert run.tokens == sum(s.record.tokens for s in run.steps) + run.rest_tokens <= self.sampling.max_tokens
                assert [s.end for s in run.steps] == list(accumulate(s.record.tokens for s in run.steps))

    def test_the_text_is_the_run(self, backend, conversations):
        """What the chunks of each phase show is the run's reasoning and its answer."""
        for messages in conversations:
            chunks, run = self.chunks(backend, messages)
            shown = "".join(c.text for c in chunks if c.phase is Phase.ANSWER).strip()
            closed = [c for c in chunks if c.token.text == backend.tags.close]
            assert shown.endswith(run.answer or "")
            assert shown == (run.answer or "") or len(closed) > 1  # only what follows the last closing tag is the answer
            assert "".join(c.text for c in chunks if c.phase is Phase.THINKING).strip("\n") == run.reasoning

    def test_the_text_of_a_stopped_run_is_the_run(self, backend, conversations):
        """After a stop, too: what is shown of the answer is the answer."""
        for messages in conversations:
            chunks, run = self.chunks(backend, messages, policy=self.policy(backend))
            if run.outcome.stopped:  # else, after a malformed answer, both attempts' texts stand in the stream
                assert "".join(c.text for c in chunks if c.phase is Phase.ANSWER).strip() == run.answer

    def test_stream_and_generate_give_the_same_run(self, backend, conversations):
        """The same seed, the same batch of one: token for token, with and without a policy."""
        for given in ({}, {"policy": self.policy(backend)}):
            for messages in conversations[:2]:
                _, streamed = self.chunks(backend, messages, **given)
                assert same_run(streamed, self.run(backend, [messages], **given)[0])

    def test_the_same_seed_gives_the_same_runs(self, backend, conversations, full):
        """All of them, in the same batch."""
        assert all(map(same_run, full, self.run(backend, conversations)))

    # --- entropy

    def test_a_step_is_the_mean_of_its_own_tokens(self, backend, conversations, full, stepped):
        """Of the reasoning tokens that its chunks showed, those of low mass with their upper bound."""
        chunks, run = self.chunks(backend, conversations[stepped])
        assert run.steps
        at = 0
        for step in run.steps:
            of_step = [c for c in chunks[at : step.end] if c.bounds and not c.forced and c.phase is Phase.THINKING]
            of_step = [c for c in of_step if c.token.text != backend.tags.open]
            values = [c.bounds.upper if c.bounds.mass < 0.5 else c.bounds.entropy for c in of_step]
            assert step.record.entropy == pytest.approx(sum(values) / len(values), rel=1e-5)
            assert step.record.mass == pytest.approx(sum(c.bounds.mass for c in of_step) / len(values), rel=1e-5)
            at = step.end

    def test_forced_tokens_have_no_entropy(self, backend, conversations, full, stepped):
        """The closing tag is forced, and says nothing of what the model thought."""
        chunks, run = self.chunks(backend, conversations[stepped], policy=self.policy(backend))
        forced = [c for c in chunks if c.forced]
        assert run.outcome.stopped
        closing = backend.tags.close + backend.tags.after if self.closes_in_place else ""
        assert "".join(c.token.text for c in forced) == closing
        assert all(c.bounds is None for c in forced)

    # --- stopping

    def test_a_stop_is_at_a_boundary_and_never_in_the_answer(self, backend, conversations, full, stepped):
        """The thinking ends with the deciding step; then come the closing tag and the answer, and no other token."""
        chunks, run = self.chunks(backend, conversations[stepped], policy=self.policy(backend))
        assert (run.outcome.stopped, run.outcome.active, run.outcome.step) == (True, True, 1)
        assert len(run.steps) == 1
        assert run.steps[0].text.endswith("\n")
        after = chunks[run.steps[0].end :]
        assert {c.phase for c in chunks[: run.steps[0].end]} <= {Phase.BEFORE, Phase.THINKING}
        forced = [c.forced for c in after]
        assert forced == sorted(forced, reverse=True)
        assert all(c.phase is Phase.ANSWER for c in after if not c.forced)
        assert run.rest_tokens == len(after)
        assert run.answer

    def test_a_decision_in_the_answer_is_too_late(self, backend, conversations):
        """A policy that waits for a step that never comes ends in full, and says so."""
        for run in self.run(backend, conversations, policy=self.policy(backend, min_steps=1000)):
            assert (run.outcome.stopped, run.outcome.step) == (False, None)
            assert run.outcome.reason == ("reasoning ended by itself" if run.steps else NO_STEP if run.reasoning else NO_THINKING)

    def test_stopping_one_row_changes_no_other(self, backend, conversations, full, stepped):
        """Same seed, same batch: the stopped row is the full run up to its stop, the others are the full runs to the end."""
        held = [n != stepped for n in range(len(conversations))]
        runs = self.run(backend, conversations, policy=self.policy(backend), holdout=held)
        assert runs[stepped].outcome.stopped
        assert runs[stepped].steps[0].record == full[stepped].steps[0].record
        assert runs[stepped].steps[0].text == full[stepped].steps[0].text
        end = full[stepped].steps[0].end
        assert runs[stepped].token_ids[:end] == full[stepped].token_ids[:end]
        assert all(same_text(runs[n], full[n]) for n in range(len(runs)) if n != stepped)

    def test_what_is_not_stopped_runs_in_full(self, backend, conversations, full, stepped, monkeypatch):
        """Switched off, by the environment too, held out, or not active: the full run, why, and where it would have stopped."""
        p = self.policy(backend)
        cases = [({"policy": p, "stop": False}, "switched off", 1)]
        cases += [({"policy": p, "holdout": [True] * len(conversations)}, "holdout", 1)]
        cases += [({"policy": replace(p, active=False, reason="no_signal")}, "no_signal", None)]
        cases += [({"policy": p}, "switched off", 1)]
        for n, (given, reason, step) in enumerate(cases):
            if n == len(cases) - 1:
                monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
            runs = self.run(backend, conversations, **given)
            assert all(map(same_text, runs, full))
            outcome = runs[stepped].outcome
            assert (outcome.active, outcome.stopped, outcome.step) == (False, False, step)
            assert reason in outcome.reason
            assert outcome.policy == given["policy"].fingerprint
            assert outcome.tokens_saved is None

    def test_no_policy_only_measures(self, full):
        """The outcome says so, and names no policy."""
        for run in full:
            told = run.outcome
            assert (told.active, told.stopped, told.policy, told.reason) == (False, False, None, "no policy: measuring only")

    def test_agreement_pays_for_its_probes(self, backend, conversations, full, stepped):
        """A rule that reads answers counts every probe's tokens, and what it read again to go on."""
        p = self.policy(backend, -1.0, rule="entropy+agreement", min_steps=2)  # it asks, and never stops
        messages = conversations[stepped]
        greedy = replace(self.sampling, temperature=0.0, max_tokens=60)
        run = self.run(backend, [messages], policy=p, sampling=greedy)[0]
        steps = range(1, len(run.steps) + 1)
        probes = backend.probe([(messages, run, s) for s in steps], sampling=greedy)
        own = run.tokens - sum(q.tokens for q in probes)
        assert own == sum(s.record.tokens for s in run.steps) + run.rest_tokens
        assert all(q.tokens > 0 for q in probes)
        assert (run.prefill_tokens > 0) is bool(run.steps)

    def test_a_malformed_answer_means_the_full_run(self, backend, conversations, full, stepped):
        """A stop with no room left for an answer: run again in full, not stopped, and both are paid for."""
        messages = conversations[stepped]
        first = self.run(backend, [messages])[0].steps[0].end
        small = replace(self.sampling, max_tokens=first + 1)
        run = self.run(backend, [messages], policy=self.policy(backend), sampling=small)[0]
        assert run.outcome.stopped is False
        assert "malformed" in run.outcome.reason
        assert run.tokens == run.outcome.tokens == 2 * small.max_tokens
        assert run.outcome.tokens_saved is None

    def test_out_of_tokens_while_thinking(self, backend, conversations, full, stepped):
        """No answer, and the reason is the length."""
        first = full[stepped].steps[0].end
        run = self.run(backend, conversations, sampling=replace(self.sampling, max_tokens=first))[stepped]
        assert (run.answer, run.finish_reason, run.tokens) == (None, "length", first)

    # --- what does not fit

    @pytest.mark.parametrize(
        ("field", "value"),
        [("model", "other"), ("template", "sha256:ffff"), ("temperature_mode", "scaled"), ("mode", "refine")],
    )
    def test_a_policy_for_something_else(self, backend, conversations, field, value):
        """An error in both calls before anything runs, or a warning where that is asked for."""
        p = self.policy(backend, **{field: value})
        with pytest.raises(PolicyMismatch, match=field):
            self.run(backend, conversations, policy=p)
        with pytest.raises(PolicyMismatch, match=field):
            next(backend.stream(conversations[0], policy=p, sampling=self.sampling))
        with pytest.warns(UserWarning, match=field):
            self.run(backend, conversations[:1], policy=p, sampling=Sampling(max_tokens=1), on_mismatch="warn")

    def test_a_segmentation_besides_the_policys(self, backend, conversations):
        """The policy's steps are the ones it was calibrated on."""
        with pytest.raises(PolicyMismatch, match="segmentation"):
            self.run(backend, conversations, policy=self.policy(backend), segmentation=Segmentation("line", 77))

    def test_another_name_of_the_checkpoint(self, backend, conversations):
        """``for_model`` lets it through in silence."""
        p = self.policy(backend, model="elsewhere").for_model(backend.model)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            self.run(backend, conversations[:1], policy=p, sampling=Sampling(max_tokens=1))

    @pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"max_tokens": 0}])
    def test_impossible_sampling(self, bad):
        """The message names the value."""
        with pytest.raises(SettingsError, match=next(iter(bad))):
            Sampling(**bad)

    # --- the end of a stream

    @pytest.mark.parametrize("read", [1, 3])
    def test_a_closed_stream_ends_the_work(self, backend, conversations, read):
        """Closed after a few chunks, nothing goes on, and the backend can be used again."""
        stream = backend.stream(conversations[0], sampling=self.sampling)
        for _ in range(read):
            next(stream)
        stream.close()
        assert self.idle(backend)
        with pytest.raises(StopIteration):
            next(stream)
        assert self.run(backend, conversations[:1])[0].tokens > read

    # --- every way in which the integrations call a backend

    def test_awaited_runs_are_the_same(self, backend, conversations, full):
        """The work is done in another thread, or in tasks: the same runs, stopped ones too."""
        assert all(map(same_run, full, self.awaited(backend, conversations)))
        policy = self.policy(backend)
        assert all(
            map(same_run, self.run(backend, conversations, policy=policy), self.awaited(backend, conversations, policy=policy))
        )

    def test_an_awaited_stream_is_the_same(self, backend, conversations):
        """Chunk by chunk."""
        chunks, run = self.chunks(backend, conversations[0])
        *awaited, last = self.awaited_chunks(backend, conversations[0])
        assert [(c.text, c.phase, c.token, c.bounds) for c in awaited] == [(c.text, c.phase, c.token, c.bounds) for c in chunks]
        assert same_run(last.final, run)

    def test_cancelled_runs_end_at_their_next_token(self, backend, conversations, full):
        """One for each conversation, and the backend goes on as before."""
        found = self.cancelled(backend, conversations)
        assert [run.tokens <= 2 < whole.tokens for run, whole in zip(found, full, strict=True)] == [True] * 4
        assert self.idle(backend)
        assert all(map(same_run, full, self.run(backend, conversations)))

    def test_template_settings_and_tools(self, backend, conversations, full):
        """They make another backend of the same model, which answers in every way; this one stays as it is."""
        other = backend.with_template(tools=[TOOL]).with_template(enable_thinking=True)
        assert (other.model, other.tags, other.segmentation) == (backend.model, backend.tags, backend.segmentation)
        for given in ({}, {"policy": self.policy(other)}):
            runs = self.run(other, conversations[:2], **given)
            assert all(map(same_run, runs, self.awaited(other, conversations[:2], **given)))
            assert same_run(self.chunks(other, conversations[0], **given)[1], self.run(other, conversations[:1], **given)[0])
        assert self.offered(other) in (None, {"tools": [TOOL], "enable_thinking": True})
        assert all(map(same_run, full, self.run(backend, conversations)))
        assert self.offered(backend) in (None, {})

    def test_what_it_says_of_its_model(self, backend):
        """Whoever calls it reads these."""
        assert isinstance(backend.model, str)
        assert backend.template is None or backend.template.startswith("sha256:")
        assert backend.context_window is None or backend.context_window > 0

    def test_no_conversations(self, backend):
        """Nothing asked, nothing answered."""
        assert self.run(backend, []) == []

    def test_details_fit_a_trace(self, backend):
        """What recording writes down about the entropies."""
        told = backend.details(self.sampling)
        assert {"estimator", "k", "temperature", "temperature_mode", "segmentation", "template"} <= set(told)
        assert told["template"] == backend.template
        assert told["segmentation"] == backend.segmentation.to_dict()
