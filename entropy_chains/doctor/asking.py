"""One request of an examination, its reply, and the findings so far. Pure."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from entropy_chains.backends.remote.events import Close, Control, Event, Exchange, Send
from entropy_chains.backends.remote.readers import Piece, Update, Usage
from entropy_chains.backends.remote.servers import Server
from entropy_chains.doctor.findings import Finding

ASKED = [{"role": "user", "content": "4821*93=?"}]
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        address: after the base URL, or a full one.
        body: None = GET. With ``stream`` in it the reply is read as it comes.
        read: close the stream after so many tokens; None = read it to its end.
        control: at that point tell the server to end the thinking instead, and read on.
        wait: seconds before it is sent.
    """

    address: str
    body: Mapping[str, Any] | None = None
    read: int | None = None
    control: bool = False
    wait: float = 0.0

    @property
    def measured(self) -> bool:
        """It asks for logprobs."""
        return bool(self.body and self.body.get("logprobs"))


@dataclass(frozen=True, slots=True)
class Heard:
    """The reply to one request.

    Attributes:
        content: JSON or text of a reply that was not streamed.
        pieces, usage, finish: of a reply with tokens.
        refused: the server's message, or None; status: of the refusal, None for one in the stream.
        blind: it was refused because it asked for logprobs.
        controlled: the server said that it ended the thinking.
    """

    content: Any = None
    pieces: tuple[Piece, ...] = ()
    usage: Usage | None = None
    finish: str | None = None
    refused: str | None = None
    status: int | None = None
    blind: bool = False
    controlled: bool = False

    @property
    def tokens(self) -> int:
        """Tokens as the server counts them, else those that came."""
        counted = self.usage.completion_tokens if self.usage else None
        return len(self.pieces) if counted is None else counted

    @property
    def prompt(self) -> int | None:
        """Tokens of the prompt."""
        return self.usage.prompt_tokens if self.usage else None

    @property
    def text(self) -> str:
        """The whole text, tokens that are not shown included."""
        return "".join(p.token.text or p.text for p in self.pieces)


Asking = Generator[Ask, Heard, Any]
"""A generator that yields requests and is sent their replies."""


class StreamedReply(Exchange[Ask]):
    """A streamed reply, read to its end or as far as its request says."""

    def __init__(self, ask: Ask):
        self._ask, self._reached, self._controlled = ask, False, False
        self._pieces: list[Piece] = []
        self._usage: Usage | None = None
        self._finish: str | None = None

    def start(self) -> Send[Ask]:
        """See :class:`entropy_chains.backends.remote.events.Exchange`."""
        return Send(self._ask)

    def feed(self, update: Update) -> list[Event]:
        """Keep it; where enough was read, close the stream or end the thinking."""
        self._pieces += update.pieces
        self._usage, self._finish = update.usage or self._usage, update.finish_reason or self._finish
        if self._ask.read is None or self._reached or len(self._pieces) < self._ask.read:
            return []
        self._reached = True
        return [Control(update.id) if self._ask.control else Close()]

    def controlled(self, done: bool) -> None:
        """The server was told to end the thinking."""
        self._controlled = done

    @property
    def heard(self) -> Heard:
        """What has come so far."""
        return Heard(None, tuple(self._pieces), self._usage, self._finish, controlled=self._controlled)


class Book:
    """The findings so far, and how many requests and tokens they took.

    Attributes:
        server: what is known about it.
        requests, prompt_tokens, completion_tokens: of all requests that may make tokens.
    """

    def __init__(self, base_url: str, model: str):
        self.base_url, self.model = base_url, model
        self.server = Server(root=base_url)
        self.findings: list[Finding] = []
        self.requests = self.prompt_tokens = self.completion_tokens = 0

    def __getitem__(self, name: str) -> Any:
        """Returns the value of a finding; None where it was not looked at."""
        return next((f.value for f in self.findings if f.name == name), None)

    def found(self, name: str, value: str | int | bool | None, evidence: str, meaning: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(name, value, evidence, meaning))

    def ask(self, ask: Ask) -> Generator[Ask, Heard, Heard]:
        """Ask, and count the request and its tokens."""
        heard = yield ask
        if ask.body is not None:
            self.requests += 1
            self.prompt_tokens += heard.prompt or 0
            self.completion_tokens += heard.tokens
        return heard

    def chat(self, max_tokens: int, *, read: int | None = None, control: bool = False, **settings: Any) -> Asking:
        """Ask the one question of the examination."""
        body = {"model": self.model, "messages": ASKED, self.server.can.max_tokens: max_tokens, **settings}
        return (yield from self.ask(Ask("/chat/completions", body, read, control)))
