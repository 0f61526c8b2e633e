"""What to ask a server, and what its answers show. Pure: a generator that yields requests and is sent their replies.

:func:`entropy_chains.doctor.examine.examine` sends them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

from entropy_chains.backends.remote import providers
from entropy_chains.backends.remote.continuations import WAYS, begun, way
from entropy_chains.backends.remote.plugin import VERSION_PATH, hello, may_be_greeted, version_in
from entropy_chains.backends.remote.readers import Piece
from entropy_chains.backends.remote.refused import allowed
from entropy_chains.backends.remote.servers import identify
from entropy_chains.backends.text.markup import clean_answer
from entropy_chains.core.entropy import token_entropy
from entropy_chains.core.families import FAMILIES, ThinkTags, detect_tags
from entropy_chains.core.phases import Phase, phase_at_start
from entropy_chains.doctor.asking import ASKED, STREAMED, Ask, Asking, Book, Heard
from entropy_chains.doctor.closing import READ, close
from entropy_chains.doctor.findings import ENOUGH, Examination, continuation, judge, temperature_mode
from entropy_chains.errors import SettingsError

FIRST, NEXT = 64, 16
"""Most tokens of the first reply, and of a continuation."""
TOO_MANY = 200
"""Alternatives that most servers refuse."""
LOW, HIGH = 0.5, 1.5
"""Temperatures that are compared."""


def examination(base_url: str, model: str) -> Generator[Ask, Heard, Examination]:
    """Examine a server. Raises SettingsError where it cannot be asked at all: a wrong key, a model that it does not know."""
    return _Examiner(base_url, model).run()


def _is_measured(piece: Piece) -> bool:
    """Whether a token has an entropy: alternatives, and its own ones."""
    return token_entropy(piece.token) is not None


class _Examiner(Book):
    """What is looked at, in order."""

    def __init__(self, base_url: str, model: str):
        super().__init__(base_url, model)
        self._enough = True
        self._first = Heard()
        self._rendered: str | None = None
        self._tags, self._thinking = ThinkTags(), list[Piece]()

    def run(self) -> Generator[Ask, Heard, Examination]:
        yield from self._who()
        yield from self._begin()
        yield from self._reasoning()
        if self["logprobs"]:
            self._entries()
            yield from self._k()
            yield from self._temperature()
        if self["reasoning"] in ("field", "inline", "opened"):
            yield from self._ways()
        yield from close(self)
        stopping, verdict, remedies = judge({f.name: f.value for f in self.findings} | {"entries_enough": self._enough})
        took = (self.requests, self.prompt_tokens, self.completion_tokens)
        return Examination(self.model, stopping, verdict, remedies, tuple(self.findings), *took)

    # --- who it is, and the reply that most is seen in

    def _who(self) -> Asking:
        server = self.server = yield from identify(self.base_url, self.model, self._content_at)
        self.found("server", server.kind, "the owner that /models names", "what is tried below depends on it")
        if matches := providers.at(self.base_url):
            meaning = "; ".join(f"logprobs {p.gives}; asked for what it does not give: {p.refuses}" for p in matches)
            self.found("provider", " or ".join(p.name for p in matches), "the address of its API", meaning)
        if server.can.plugin:
            plugin, evidence = None, "the server does not tell a version of 0.6.4 or later, and older ones die of the question"
            if may_be_greeted((yield from self._content_at(f"{server.root}{VERSION_PATH}"))):
                heard = yield from self.ask(Ask("/completions", hello(self.model)))
                plugin, evidence = version_in(heard.refused or ""), "a request that only the plug-in answers"
            self.server = replace(server, plugin=plugin)
            there = "it closes the thinking inside the engine: one request a reply, nothing read twice"
            missing = "without it the client closes the stream and asks for the answer (docs/vllm.md says how to load it)"
            self.found("plugin", plugin, evidence, there if plugin else missing)
        self._tags = detect_tags(server.chat_template) or ThinkTags()

    def _content_at(self, address: str) -> Asking:
        """The JSON at an address."""
        return (yield from self.ask(Ask(address))).content

    def _begin(self) -> Asking:
        """The first reply, greedy and with logprobs, or with less where the server will not have that."""
        whole = {**STREAMED, "temperature": 0}
        refusals: list[str] = []
        wanted: list[dict[str, Any]] = [{"top_logprobs": ENOUGH}, {"top_logprobs": 5}, {}, {"temperature": None}]
        for settings in wanted:
            body = {**whole, **({"logprobs": True} if "top_logprobs" in settings else {}), **settings}
            body = {name: value for name, value in body.items() if value is not None}
            heard = yield from self.chat(FIRST, **body)
            if heard.refused is None:
                break
            if heard.status in (401, 403, 404) and not heard.blind:
                raise SettingsError(f"model {self.model!r} cannot be examined: {heard.refused}")
            refusals.append(heard.refused)
            if settings == wanted[0] and (most := allowed(heard.refused, ENOUGH)):
                wanted[1] = {"top_logprobs": most}
        else:
            raise SettingsError(f"model {self.model!r} cannot be examined: not even a plain request is accepted: {refusals[-1]}")
        self._first = heard
        entries = sum(_is_measured(p) for p in heard.pieces)
        listed = sum(bool(p.token.alternatives) for p in heard.pieces)
        evidence = f"{listed} of {heard.tokens} tokens came with alternatives"
        evidence += f", {listed - entries} of them with those of another token" if listed > entries else ""
        evidence += f"; asked for {ENOUGH}: {refusals[0]}" if refusals else ""
        meaning = "entropy can be computed" if entries else "no entropy, so nothing to stop by"
        self.found("logprobs", bool(entries), evidence, meaning)

    def _reasoning(self) -> Asking:
        """Find where the thinking is, and whether it has logprobs."""
        heard, text = self._first, self._first.text
        field = [p for p in heard.pieces if p.phase is Phase.THINKING]
        tags = next((t for t in FAMILIES if phase_at_start(text.lstrip(), t) is Phase.THINKING), None)
        closed = next((t for t in FAMILIES if t.close in text and t.close != "<|end|>"), None)
        hidden = heard.usage.reasoning_tokens if heard.usage else None
        self._tags = tags or closed or self._tags
        if field:
            value, evidence = "field", "it comes in a field of its own"
        elif tags:
            value, evidence = "inline", f"it comes in the text, marked by {tags.open}"
        elif closed:
            value, evidence = "opened", f"{closed.close} comes in the text, and nothing opens it: the prompt does"
        elif hidden:
            value, evidence = "hidden", f"{hidden} reasoning tokens are counted, and not sent"
        else:
            opened = yield from self._is_opened()
            value = "opened" if opened else "none"
            evidence = "the prompt ends with the opening tag" if opened else f"none in the first {heard.tokens} tokens"
        meanings = {"hidden": "it can neither be measured nor cut", "none": "there is nothing to cut in mode 'thinking'"}
        self.found("reasoning", value, evidence, meanings.get(value, "steps can be told from the answer"))
        if value in ("hidden", "none"):
            return
        answer = next((n for n, p in enumerate(heard.pieces) if p.phase is Phase.ANSWER), len(heard.pieces))
        ended = next((n for n, p in enumerate(heard.pieces) if self._tags.close in (p.token.text, p.text)), answer)
        self._thinking = list(heard.pieces[: min(answer, ended)])
        visible = [p for p in self._thinking if p.text]
        with_entries = sum(map(_is_measured, visible))
        evidence = f"{with_entries} of {len(visible)} tokens of it have them"
        if self["logprobs"]:
            meaning = "its entropy can be measured" if with_entries else "its entropy cannot be measured"
            self.found("reasoning_logprobs", bool(with_entries), evidence, meaning)

    def _is_opened(self) -> Asking:
        """Whether the rendered prompt ends with the opening tag, where the server shows it."""
        if path := self.server.can.tokenizes_at:
            body = {"model": self.model, "messages": ASKED, "return_token_strs": True}
            heard = yield from self.ask(Ask(f"{self.server.root}{path}", body))
            last = (heard.content or {}).get("token_strs") or [] if isinstance(heard.content, Mapping) else []
            return self._tags.open in "".join(map(str, last[-8:]))
        prompt = yield from self._prompt()
        return bool(prompt and prompt.rstrip().endswith(self._tags.open))

    def _prompt(self) -> Asking:
        """The conversation as the server renders it, where it does so."""
        path = self.server.can.renders_at
        if self._rendered is None and path is not None:
            heard = yield from self.ask(Ask(f"{self.server.root}{path}", {"messages": ASKED}))
            prompt = heard.content.get("prompt") if isinstance(heard.content, Mapping) else None
            self._rendered = prompt if isinstance(prompt, str) else None
        return self._rendered

    # --- the entropies

    def _entries(self) -> None:
        count = self._first.usage.completion_tokens if self._first.usage else None
        entries = sum(p.token.alternatives is not None for p in self._first.pieces)
        if count is None:
            self.found("missing_entries", None, "the server does not count its tokens", "tokens are counted by their entries")
            return
        missing = count - entries
        self._enough = missing <= count / 10
        meaning = "every token is seen" if not missing else "tokens without one are left out of a step's entropy"
        self.found("missing_entries", missing, f"{entries} entries, {count} tokens by the server's count", meaning)

    def _k(self) -> Asking:
        came = max(len(p.token.alternatives or ()) for p in self._first.pieces)
        heard = yield from self.chat(1, logprobs=True, top_logprobs=TOO_MANY)
        if heard.refused is not None:
            k = allowed(heard.refused, TOO_MANY) or came
            evidence = f"{came} came; {TOO_MANY} are refused: {heard.refused}"
        else:
            k = max([came, *(len(p.token.alternatives or ()) for p in heard.pieces)])
            evidence = f"{came} came first; of {TOO_MANY} asked for, {k}"
        enough = f"calibrate and run with the same k, {ENOUGH} by default"
        self.found("k", k, evidence, enough if k >= ENOUGH else f"a policy calibrated with more does not fit: calibrate with {k}")

    def _temperature(self) -> Asking:
        seen: list[list[dict[str, float]]] = []
        texts: list[list[str]] = []
        for temperature in (LOW, HIGH):
            heard = yield from self.chat(4, logprobs=True, top_logprobs=min(ENOUGH, self["k"]), temperature=temperature, seed=0)
            some = [p.token for p in heard.pieces if p.token.alternatives]
            texts.append([t.text for t in some])
            seen.append([{a.text: a.logprob for a in t.alternatives or ()} for t in some])
        same = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)) - 1) + 1
        mode = temperature_mode(seen[0][:same], seen[1][:same], HIGH / LOW)
        meanings = {
            "raw": "they are before temperature: one policy serves several temperatures",
            "scaled": "they are after temperature: pass temperature_mode='scaled', a policy holds for its temperature only",
            None: "not observable: keep to one temperature",
        }
        evidence = f"{same} positions compared at temperatures {LOW} and {HIGH}"
        self.found("temperature_mode", mode, evidence, meanings[mode])

    # --- the answer after a stop

    def _ways(self) -> Asking:
        """Try the ways to continue a thinking: sampled greedily, the model must go on as it did by itself."""
        half = max(1, len(self._thinking) // 2)
        raw = begun("".join(p.token.text or p.text for p in self._thinking[:half]), self._tags, self["reasoning"] == "opened")
        expected = "".join(p.token.text or p.text for p in self._thinking[half : half + NEXT])
        for name in ("prefill", "completion"):
            yield from self._way(name, raw, expected, half)
        if self.server.can.control:
            heard = yield from self.chat(2 * FIRST, **STREAMED, read=READ, control=True, reasoning_control=True)
            answered = heard.controlled and any(p.phase is Phase.ANSWER for p in heard.pieces)
            meaning = "continuation='control' saves the second request, and cuts in the middle of a line"
            self.found(
                "control", answered, "the running stream was told to end its thinking", meaning if answered else "do not use it"
            )
        best = next((n for n in self.server.can.ways if self[n] == "exact"), "turn")
        request = way(best, self.server.can.unthinking).request("probe", ASKED, raw, self._tags, FIRST)
        body: dict[str, Any] = {**request.extra, "temperature": 0}
        if request.prefix is not None:
            heard = yield from self._complete(f"{self._rendered}{request.prefix}", FIRST, body)
        else:
            # Streamed as live: servers split a whole reply off in another way.
            heard = yield from self.chat(FIRST, **STREAMED, **body, messages=list(request.messages))
        again = any(p.phase is Phase.THINKING and p.text.strip() for p in heard.pieces)
        text = None if again else clean_answer("".join(p.text for p in heard.pieces), self._tags)
        evidence = f"thinking closed after {half} tokens, answer asked for by {best!r}: {heard.tokens} tokens came"
        evidence += "" if text or not heard.pieces else ", and the model thinks again" if again else ", and no answer among them"
        meaning = "a stop gives an answer" if text else "a stop would be run again in full"
        self.found("answer", best if text else None, evidence + (f"; {heard.refused}" if heard.refused else ""), meaning)

    def _way(self, name: str, raw: str, expected: str, half: int) -> Asking:
        prompt = (yield from self._prompt()) if name == "completion" else None
        if name == "completion" and prompt is None:
            self.found(name, None, "the server does not render its chat template", "not tried")
            return
        if name == "completion":
            heard = yield from self._complete(f"{prompt}{raw}", NEXT, {"temperature": 0})
        else:
            extra = WAYS[name].request("probe", ASKED, raw, self._tags, NEXT).extra
            turn = {"role": "assistant", "content": raw}
            heard = yield from self.chat(NEXT, **extra, temperature=0, **STREAMED, messages=[*ASKED, turn])
        if heard.refused is not None:
            self.found(name, "refused", heard.refused, "this way cannot be used")
            return
        before, now = self._first.prompt, heard.prompt
        value = continuation(expected, heard.text, now - before if before and now else None, half)
        meanings = {
            "exact": "a stop reads the model's own tokens: the answer is the one it would have given",
            "inexact": "the thinking is read again, but not token for token",
            "ignored": "the begun thinking is thrown away: this way cannot be used",
        }
        went = {"exact": "the model went on as it did by itself", "inexact": "more or other tokens were read"}
        evidence = f"{half} tokens of thinking begun, greedy: {went.get(value, 'it went on otherwise')}"
        self.found(name, value, evidence, meanings[value])

    def _complete(self, prompt: str, max_tokens: int, settings: Mapping[str, Any]) -> Asking:
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, **settings}
        return (yield from self.ask(Ask("/completions", body)))
