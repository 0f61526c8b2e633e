"""What the sync and the async backend for OpenAI-compatible APIs share: settings, the requests' arguments, one dialogue a reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal, Self

from entropy_chains.backends import Generation, Message, Sampling
from entropy_chains.backends.remote import forms
from entropy_chains.backends.remote.continuations import WAYS, Request, Way, begun, way
from entropy_chains.backends.remote.dialogue import Dialogue
from entropy_chains.backends.remote.introductions import Introduction
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.plugin import settings_for
from entropy_chains.backends.remote.readers import ChatReader, CompletionReader, ResponsesReader, Update, error_of, held_back
from entropy_chains.backends.remote.refused import REMEDY, UNREAD, Known, known, without_logprobs
from entropy_chains.backends.remote.servers import RENDER, Server
from entropy_chains.backends.remote.token_count import SMALLEST_LIMIT
from entropy_chains.backends.remote.transfer import Transfer
from entropy_chains.backends.remote.trial import Trial
from entropy_chains.core.families import ThinkTags, detect_tags, template_hash
from entropy_chains.core.policy import Policy, stopping_enabled
from entropy_chains.core.steps import Segmentation, detect_segmentation
from entropy_chains.errors import BackendError, NoLogprobsError, SettingsError
from entropy_chains.options import (
    Continuation,
    OnMismatch,
    TemperatureMode,
    WithoutLogprobs,
    check_counts,
    check_mappings,
    check_options,
)

OWN = {"messages", "prompt", "input", "stream", "n", "logprobs", "top_logprobs", "stream_options", *forms.LIMITS}
"""Request settings that early stopping sets itself."""

LOGPROBS = "message.output_text.logprobs"
"""What the Responses API is asked to include."""

REQUEST_OPTIONS = {"extra_headers": "headers", "extra_query": "params", "timeout": "timeout"}
"""What ``request`` may say besides the body, and what the SDK's ``post`` calls it."""

Reader = ChatReader | CompletionReader | ResponsesReader


class ServedModel:
    """What the sync and the async backend share: settings, and a dialogue for every reply."""

    _drops_reasoning = False
    _plain = False  # a call that is not streamed is the app's own, and goes through its class
    _chunks_of = "the server", REMEDY
    _since: tuple[str, ...] = ()  # releases of the client that logprobs need

    def __init__(
        self,
        client: Any,
        model: str,
        *,
        name: str | None = None,
        k: int = 20,
        think_tags: ThinkTags | None = None,
        segmentation: Segmentation | None = None,
        opened: bool = False,
        continuation: Continuation | Sequence[Continuation] = "auto",
        temperature_mode: TemperatureMode = "raw",
        without_logprobs: WithoutLogprobs = "error",
        concurrency: int = 8,
        plugin: Literal["auto", False] = "auto",
        api: Literal["chat", "responses"] = "chat",
        request: Mapping[str, Any] | None = None,
    ):
        check_counts({"k": k, "concurrency": concurrency})
        check_mappings({"request": request})
        check_options({"without_logprobs": without_logprobs, "continuation": continuation, "temperature_mode": temperature_mode})
        if plugin not in ("auto", False):
            raise SettingsError(f"plugin is {plugin!r}; it must be 'auto' (use vLLM's plug-in where it is there) or False")
        if api not in ("chat", "responses"):
            raise SettingsError(f"api is {api!r}; it must be 'chat' or 'responses'")
        if api == "responses" and continuation not in ("auto", "turn"):
            raise SettingsError(f"continuation is {continuation!r}; the Responses API has 'turn' only: leave it out, or api='chat'")
        reserved = ", ".join(sorted(OWN & set(request or {})))
        if reserved:
            raise SettingsError(f"request sets {reserved}, which early stopping sets itself; use Sampling, k, …")
        self._client, self._served, self._name, self._k = client, model, name or model, k
        self._given_tags, self._given_segmentation, self._opened = think_tags, segmentation, opened
        self._continuation = continuation
        self._mode: TemperatureMode = temperature_mode
        self.without_logprobs: str = without_logprobs
        self._concurrency, self._plugin, self._request = concurrency, plugin, dict(request or {})
        self._uncut = forms.never_cut(forms.merged(self._request))
        self._responses = api == "responses"
        self._server: Server | None = None
        self._introduction = Introduction()
        self._probes_measured = True
        self._loop: tuple[Policy | None, OnMismatch] = None, "error"  # whose calls these are, and what a mismatch is there

    @property
    def model(self) -> str:
        """The model's label, compared with the policy's."""
        return self._name

    @property
    def concurrency(self) -> int:
        """Most requests at a time."""
        return self._concurrency

    @property
    def server(self) -> Server | None:
        """What is known about the server; None before the first request."""
        return self._server

    @property
    def tags(self) -> ThinkTags:
        """The family's thinking tags."""
        template = self._server.chat_template if self._server else None
        return self._given_tags or detect_tags(template) or ThinkTags()

    @property
    def segmentation(self) -> Segmentation:
        """How a stream is cut where no policy says."""
        return self._given_segmentation or detect_segmentation(self._server.chat_template if self._server else None)

    @property
    def template(self) -> str | None:
        """Hash of the chat template and the closing text, where the server tells its template."""
        template = self._server.chat_template if self._server else None
        return template_hash(template, self.tags) if template else None

    @property
    def context_window(self) -> int | None:
        """None: an OpenAI-compatible API does not tell how many tokens prompt and reply may have together."""
        return None

    def with_template(self, **settings: Any) -> Self:
        """The same model with further settings of its chat template; ``tools`` go where the API has them."""
        variant, extra = copy(self), dict(self._request.get("extra_body") or {})
        tools = {"tools": settings.pop("tools")} if "tools" in settings else {}
        if settings:
            extra["chat_template_kwargs"] = {**(extra.get("chat_template_kwargs") or {}), **settings}
        variant._request = {**self._request, **tools, **({"extra_body": extra} if extra else {})}
        return variant

    def details(self, sampling: Sampling = Sampling(), segmentation: Segmentation | None = None) -> dict[str, Any]:
        """What a trace says about how its entropies came about."""
        return {
            "estimator": "renormalised",
            "k": self._known(self._k).within(self._k),
            "temperature": sampling.temperature,
            "temperature_mode": self._mode,
            "segmentation": (segmentation or self.segmentation).to_dict(),
            "template": self.template,
            "recorded_with": {
                "think_tags": self.tags.to_list(),
                "opened": self._opened,
                "continuation": [*self._named_ways],
                "without_logprobs": self.without_logprobs,
            },
        }

    def for_loop(self, policy: Policy | None, *, stop: bool, on_mismatch: OnMismatch = "error") -> Self:
        """Returns this backend for the calls of a loop. They have no policy of their own, and need logprobs where the loop does."""
        if policy is None:
            return self
        variant = copy(self)
        variant._loop = policy, on_mismatch
        reads = policy.stop_rule.reads_signal
        variant.without_logprobs = without_logprobs(self.without_logprobs, policy, stop=stop) if reads else UNREAD
        return variant

    def _known(self, k: int) -> Known:
        """Returns what is known about the logprobs of this model through this client."""
        return known(self._client, (self._served, k, self._responses))

    @property
    def _named_ways(self) -> Sequence[str]:
        return [self._continuation] if isinstance(self._continuation, str) else self._continuation

    def _ways(self) -> tuple[Way, ...]:
        named = self._named_ways
        if list(named) == ["auto"]:
            named = self._server.can.ways if self._server and not self._responses else ["turn"]
        unthinking = self._server.can.unthinking if self._server and not self._responses else {}
        return tuple(way(n, unthinking) for n in named if n in WAYS) or (way("turn", unthinking),)

    def _dialogue(
        self,
        messages: Sequence[Message],
        policy: Policy | None,
        sampling: Sampling,
        segmentation: Segmentation | None,
        stop: bool,
        holdout: bool,
        on_mismatch: OnMismatch,
    ) -> Dialogue:
        k = (policy.k if policy else None) or self._k
        ways, known = self._ways(), self._known(k)
        uncut = self._uncut or known.in_vain(ways)
        may_stop = stop and uncut is None
        loop, theirs = self._loop
        plan = Plan(
            tags=self.tags,
            ways=ways,
            k=k,
            opened=self._opened,
            control=self._control_wanted,
            engine=self._engine(policy, may_stop and not holdout, on_mismatch),
            without_logprobs=without_logprobs(self.without_logprobs, policy, stop=may_stop) if policy else self.without_logprobs,
            on_mismatch=theirs if loop else on_mismatch,
            model=self._served,
            known=known,
            uncut=uncut,
            dropped=self._drops_reasoning,
            client=self._chunks_of,
            since=(self._server.can.since, *self._since) if self._server and self._server.can.since else (),
            plain=self._plain,
            loop=loop,
        )
        return Dialogue(
            messages,
            plan,
            policy=policy,
            max_tokens=sampling.max_tokens,
            segmentation=None if policy else segmentation or self.segmentation,
            stop=stop and stopping_enabled(),
            holdout=holdout,
        )

    def _engine(self, policy: Policy | None, stop: bool, on_mismatch: OnMismatch) -> dict[str, Any] | None:
        """Returns settings under which the server's plug-in stops the run; None where it does not."""
        if policy is None or not stop or not stopping_enabled() or not self._server or not self._server.plugin:
            return None
        return settings_for(policy, self._served, self._request, on_mismatch=on_mismatch)

    def _check(self, policy: Policy | None, sampling: Sampling, segmentation: Segmentation | None, on_mismatch: OnMismatch) -> None:
        if policy is None:
            return
        policy.check(
            on_mismatch=on_mismatch,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            mode="thinking",
            model=self._name,
            estimator="renormalised",
            temperature_mode=self._mode,
            **({"template": self.template} if self.template else {}),
            **({"segmentation": segmentation} if segmentation else {}),
        )
        if policy.k is None:
            remedy = "an API gives a top-k only: calibrate with top-logprobs, or use the vLLM plug-in or the transformers backend"
            raise SettingsError(f"policy has k null (the full vocabulary): {remedy}")

    def _sending(self, request: Request, sampling: Sampling) -> tuple[Reader, str, dict[str, Any]]:
        """Returns the reader of the stream, the request's path, and what else the client's ``post`` is given.

        ``post`` hands the chunks on as the dicts they are. The SDK's ``create`` would make an object of each of a token's
        alternatives, which takes longer than everything that is done with them here.
        """
        raw = request.prefix is not None
        body: dict[str, Any] = {**self._request, "model": self._served, "stream": True}
        options = {theirs: body.pop(ours) for ours, theirs in REQUEST_OPTIONS.items() if body.get(ours) is not None}
        wanted = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")}
        body |= {name: value for name, value in wanted.items() if value is not None}
        if self._responses:
            body |= {"input": list(request.messages), "max_output_tokens": max(request.max_tokens, SMALLEST_LIMIT)}
            logprobs: dict[str, Any] = {"include": [*(body.get("include") or ()), LOGPROBS], "top_logprobs": request.k}
        else:
            limit = self._server.can.max_tokens if self._server and not raw else "max_tokens"
            body |= {limit: request.max_tokens, **({"stream_options": {"include_usage": True}} if request.usage else {})}
            body |= {} if raw else {"messages": list(request.messages)}
            logprobs = {"logprobs": request.k} if raw else {"logprobs": True, "top_logprobs": request.k}
        if request.logprobs:
            body |= logprobs
            if self._control_wanted:
                # The end tag comes right after what the model was writing when it was told to end: give it a line of its own.
                body |= {"reasoning_control": True, "reasoning_budget_message": "\n"}
        body |= {**(body.pop("extra_body", None) or {}), **request.extra}
        arguments = {"body": body, "options": options, "cast_to": object, "stream": True}
        if raw:
            return CompletionReader(held_back(body.get("stop"))), "/completions", arguments
        if self._responses:
            return ResponsesReader(), "/responses", arguments
        return ChatReader(held_back(body.get("stop")), request.begun), "/chat/completions", arguments

    def _trial(self, messages: Sequence[Message], run: Generation, step: int, sampling: Sampling) -> Trial:
        """A probe of a finished run after one of its steps, with logprobs where the server gives them."""
        thinking = begun("".join(s.text for s in run.steps[:step]), self.tags, self._opened)
        memory = self._known(self._k)
        measured = self._probes_measured and memory.refused is None
        plain = [way.request("probe", messages, thinking, self.tags, sampling.max_tokens) for way in self._ways()]
        changes: dict[str, Any] = {"logprobs": measured, "k": memory.within(self._k), "usage": memory.no_usage is None}
        requests = [replace(request, **changes) for request in plain]
        return Trial(requests, refused=self._measure_no_more)

    def _measure_no_more(self, refused: NoLogprobsError) -> None:
        """Logprobs of a probe were refused: later ones are asked without. They are not needed for a finished run's answer."""
        self._probes_measured = False
        self._known(self._k).warn(f"{self._served}: {refused}")

    @property
    def _control_wanted(self) -> bool:
        return bool("control" in self._continuation and self._server and self._server.can.control)

    def _to_render(self, request: Request) -> dict[str, Any]:
        """What the server renders its chat template with."""
        body = forms.merged(self._request)
        settings = {name: body[name] for name in ("tools", "chat_template_kwargs") if body.get(name)}
        return {"messages": list(request.messages), **settings}

    @property
    def _template_url(self) -> str:
        return f"{self._server.root if self._server else ''}{RENDER}"


def prompt_of(rendered: Any, request: Request) -> str:
    """Returns a raw completion's prompt: the conversation as the server rendered it, and the request's text."""
    text = rendered.get("prompt") if isinstance(rendered, Mapping) else None
    if not isinstance(text, str):
        raise BackendError("the server does not render its chat template: use continuation='turn'")
    return text + (request.prefix or "")


def seeded(sampling: Sampling, n: int) -> Sampling:
    """Returns the sampling of the n-th conversation: with a seed each draws its own numbers."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + n)


def ended(reader: Reader, transfer: Transfer) -> Update:
    """Returns what is left when a stream is over.

    Raises:
        BackendError: it broke off, for a part of an answer is no answer; or an error came in its place.
    """
    if reader.finished:
        return reader.finish()
    if reader.begun and (stray := reader.stray or transfer.stray):
        raise stray
    if transfer.failed:
        raise BackendError("the server sent an error event in the stream; look at its log")
    if reader.begun and transfer.done:
        return replace(reader.finish(), unfinished=True)
    if not reader.begun and (error := error_of(transfer.error)):
        raise error
    how = "broke off: no finish reason came" if reader.begun else "held no chunk of an answer"
    raise BackendError(f"the stream {how}; check that base_url is that of an OpenAI-compatible API, and the server's log")


def only_its_own(error: BackendError) -> BackendError:
    """Returns the error of one conversation, which others survive; raises one that all of them would meet."""
    if isinstance(error, NoLogprobsError):
        raise error
    return error
